"""Folding BatchNorm, joining ReLU: the same answers for every U-Net, hands off where it would not be safe."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import nn
from torch.nn.utils.prune import l1_unstructured

from raysegment.model.fold import fold_batchnorm
from raysegment.model.fuse import fuse_relu
from raysegment.model.unet import UNet


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def lived(module: nn.Module) -> nn.Module:
    """As after a training: statistics, scales and shifts that are not those of the start, and a loud head."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.3)
            part.running_var.uniform_(0.3, 2.0)
            if part.affine:
                nn.init.normal_(part.bias, std=0.3)
                nn.init.uniform_(part.weight, 0.3, 2.0)
    if isinstance(module, UNet):
        nn.init.normal_(module.head.weight, std=0.1)
    return module.eval()


def norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


@torch.no_grad()
def difference(a: nn.Module, b: nn.Module, edge: int = 128) -> float:
    """Of the class probabilities."""
    x = torch.randn(1, 2, edge, edge, dtype=next(a.parameters()).dtype)
    return float((a(x).softmax(dim=1) - b(x).softmax(dim=1)).abs().max())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize(("depth", "width"), [(1, 3), (2, 16), (3, 2)])
def test_every_unet_answers_the_same(
    depth: int,
    width: int,
    norm: Literal["batch", "group", "none"],
    padding: Literal["same", "valid"],
    dropout: float,
) -> None:
    net = lived(UNet(2, 3, base_width=width, depth=depth, norm=norm, padding=padding, dropout=dropout))
    before = copy.deepcopy(net.state_dict())
    folded = fold_batchnorm(net)
    assert norms(folded) == 0
    assert (folded is net) == (norm != "batch")
    assert difference(net, folded) < 1e-5
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_it_keeps_dtype_and_memory_format_and_leaves_training_mode() -> None:
    net = lived(UNet(2, 3, base_width=8, depth=1)).to(dtype=torch.float64, memory_format=torch.channels_last)
    folded = fold_batchnorm(net.train())
    assert net.training
    assert not folded.training
    weight = folded.down[0][0].weight
    assert weight.dtype == torch.float64
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert difference(net.eval(), folded) < 1e-12  # so the algebra is exact: what float32 shows is rounding


class Tapped(nn.Module):
    """The convolution's answer is used twice: what comes after the norm is not all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class Shared(Tapped):
    """One convolution, called with the norm after it and without."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(self.conv(x)))


class Peeking(Tapped):
    """The convolution's weight is used by itself too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) * self.conv.weight.mean()


class Branching(Tapped):
    """What it does depends on the pixels: it cannot be followed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) if x.mean() > 10 else self.conv(x)


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    net[0].register_forward_hook(lambda _m, _i, out: out * 2)
    return net


def by_the_batch() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))


def after_an_activation() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.BatchNorm2d(2))


@pytest.mark.parametrize(
    "make", [Tapped, Shared, Peeking, Branching, hooked, by_the_batch, after_an_activation]
)
def test_hands_off_where_it_would_change_the_answer(make: Callable[[], nn.Module]) -> None:
    net = make().eval()
    assert fold_batchnorm(net) is net


def test_strided_grouped_and_dilated_convolutions_fold_too() -> None:
    net = lived(
        nn.Sequential(
            nn.Conv2d(2, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, groups=4, dilation=2),
            nn.BatchNorm2d(8, affine=False),
            nn.ReLU(),
        )
    )
    folded = fold_batchnorm(net)
    assert norms(folded) == 0
    assert difference(net, folded) < 1e-5


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_a_unet_with_its_relus_joined_answers_the_same(
    norm: Literal["batch", "group", "none"], padding: Literal["same", "valid"]
) -> None:
    net = lived(UNet(2, 3, base_width=8, depth=2, norm=norm, padding=padding))
    fused = fuse_relu(fold_batchnorm(net))
    relus = sum(isinstance(part, nn.ReLU) for part in fused.modules())
    assert relus == (10 if norm == "group" else 0)  # a GroupNorm stands between
    assert difference(net, fused) <= 1e-5
    assert sum(isinstance(part, nn.ReLU) for part in net.modules()) == 10


def test_a_relu_that_is_shared_or_watched_stays() -> None:
    relu = nn.ReLU()
    shared = nn.Sequential(nn.Conv2d(2, 4, 3), relu, nn.Conv2d(4, 3, 3), relu).eval()
    assert fuse_relu(shared) is shared
    watched = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()).eval()
    watched[0].register_forward_hook(lambda *_: None)
    assert fuse_relu(watched) is watched
    mirrored = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.ReLU()).eval()
    assert fuse_relu(mirrored) is mirrored


class Tied(nn.Module):
    """Two convolutions of one weight; only the first is followed by a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.second = nn.Conv2d(2, 2, 3, padding=1)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.norm(self.first(x)))


def test_who_shares_a_folded_weight_keeps_it() -> None:
    net = lived(Tied())
    assert norms(folded := fold_batchnorm(net)) == 0
    assert difference(net, folded) < 1e-5


class Cast(nn.Module):
    """Computes in another precision than it is asked in."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x.to(self.layers[0].weight.dtype)).float()


def patched() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU())
    net[0].forward = lambda x: nn.functional.conv2d(x, net[0].weight) * 3
    return net


def pruned() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU())
    l1_unstructured(net[0], "weight", 0.5)
    return net


@pytest.mark.parametrize("make", [patched, pruned, lambda: Cast(torch.float64), lambda: Cast(torch.float16)])
def test_what_is_not_quite_a_convolution_stays_as_it_is(make: Callable[[], nn.Module]) -> None:
    net = lived(make())
    assert fold_batchnorm(net) is net
    assert fuse_relu(net) is net
