"""The U-Net's geometry, by measurement; its file, by round trip; its settings, by mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from raysegment.errors import InputError
from raysegment.model.architectures import build, margin, multiple, receptive_radius, settings
from raysegment.model.file import load_model, save_model
from raysegment.model.spec import ModelSpec, default_classes
from raysegment.model.unet import UNet


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _random_unet(
    depth: int, padding: Literal["same", "valid"], norm: Literal["batch", "none"] = "batch"
) -> UNet:
    net = UNet(2, 3, base_width=2, depth=depth, padding=padding, norm=norm)
    torch.nn.init.normal_(net.head.weight)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval().double()


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_margin_is_what_the_output_lacks(depth: int, padding: Literal["same", "valid"]) -> None:
    arch = {
        "name": "unet",
        "in_channels": 2,
        "out_channels": 3,
        "base_width": 1,
        "depth": depth,
        "padding": padding,
    }
    step = multiple(arch)
    smallest = (2 * margin(arch) // step + 1) * step
    net = build(arch).eval()
    for height in (smallest, smallest + step):
        answer = net(torch.zeros(1, 2, height, smallest + 2 * step))
        assert answer.shape == (1, 3, height - 2 * margin(arch), smallest + 2 * step - 2 * margin(arch))


def test_the_classic_network_is_the_papers() -> None:
    classic = settings({"name": "unet", "in_channels": 1, "out_channels": 2, "padding": "valid"})
    assert (classic.multiple, classic.margin) == (16, 94)
    net = UNet(1, 2, base_width=1, padding="valid")
    assert net(torch.zeros(1, 1, 576, 576)).shape == (1, 2, 388, 388)  # 572 in, 388 out in the paper


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_output_is_centred_in_the_input(depth: int, padding: Literal["same", "valid"]) -> None:
    """With `margin` cut off, an output pixel answers to the input pixel of the same place."""
    net = _positive(depth, padding)
    edge = multiple(net_arch(depth, padding)) * 12
    cut = margin(net_arch(depth, padding))
    x = torch.zeros(1, 1, edge, edge, dtype=torch.float64)
    centre = edge // 2
    x[..., centre, centre] = 1e6
    change = (net(x) - net(torch.zeros_like(x)))[0, 0].abs() > 1e-9
    rows = torch.nonzero(change.any(dim=1))[:, 0] + cut
    low, high = int(rows[0]), int(rows[-1])
    assert low < centre < high
    assert abs((centre - low) - (high - centre)) < 2**depth


def net_arch(depth: int, padding: str = "same") -> dict[str, object]:
    return {"name": "unet", "in_channels": 1, "out_channels": 1, "depth": depth, "padding": padding}


def _positive(depth: int, padding: Literal["same", "valid"]) -> UNet:
    """Positive weights everywhere: whatever is reachable by a path changes the answer, nothing cancels."""
    net = UNet(1, 1, base_width=1, depth=depth, padding=padding, norm="none").eval().double()
    for p in net.parameters():
        torch.nn.init.uniform_(p, 0.1, 0.5)
    return net


@pytest.mark.parametrize("depth", [1, 2, 3])
@torch.no_grad()
def test_receptive_radius_is_exact(depth: int) -> None:
    net, radius, step = _positive(depth, "same"), receptive_radius(net_arch(depth)), 2**depth
    edge = 2 * ((radius // step + 4) * step)
    x = torch.zeros(1, 1, edge, edge, dtype=torch.float64)
    still, reached = net(x), 0
    for y in range(edge // 2, edge // 2 + step):
        for place in (*range(y - radius - 3, y - radius + 3), *range(y + radius - 3, y + radius + 3)):
            moved = x.clone()
            moved[..., place, edge // 2] = 1e9
            if float((net(moved) - still)[0, 0, y].abs().max()) > 0:
                reached = max(reached, abs(place - y))
    assert reached == radius


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_shifting_by_multiple_shifts_the_answer(padding: Literal["same", "valid"]) -> None:
    depth = 2
    net, step, radius = _random_unet(depth, padding), 4, receptive_radius(net_arch(depth))
    cut = margin(net_arch(depth, padding))
    edge = 4 * ((2 * (radius + step) + 8) // 4 + 1)
    scene = torch.randn(1, 2, edge + step, edge + step, dtype=torch.float64)
    first = net(scene[:, :, :edge, :edge])
    second = net(scene[:, :, step:, step:])
    away = max(radius - cut, 0)  # what zero padding at the border can reach; nothing in the paper's network
    a = first[:, :, away + step : first.shape[2] - away, away + step : first.shape[3] - away]
    b = second[:, :, away : second.shape[2] - away - step, away : second.shape[3] - away - step]
    assert a.shape[2] >= 4
    assert torch.allclose(a, b, atol=1e-10)
    assert not torch.allclose(net(scene[:, :, 1 : 1 + edge, :edge])[:, :, :-1], first[:, :, 1:], atol=1e-4)


@torch.no_grad()
def test_prior_is_the_first_answer() -> None:
    net = UNet(1, 3, base_width=4)
    net.set_prior([0.7, 0.2, 0.1], "softmax")
    p = net.eval()(torch.randn(2, 1, 32, 32)).softmax(dim=1).mean(dim=(0, 2, 3))
    assert p.tolist() == pytest.approx([0.7, 0.2, 0.1], abs=0.03)
    one = UNet(1, 1, base_width=4)
    one.set_prior([0.9], "sigmoid")
    assert float(one.eval()(torch.randn(2, 1, 32, 32)).sigmoid().mean()) == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_channels_last_and_every_norm_train(norm: str) -> None:
    arch = {"name": "unet", "in_channels": 3, "out_channels": 2, "base_width": 4, "depth": 2, "norm": norm}
    net = build({**arch, "dropout": 0.5}).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    answer = net(x)
    assert answer.is_contiguous(memory_format=torch.channels_last)
    answer.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_round_trip_through_the_file(tmp_path: Path) -> None:
    arch = {"name": "unet", "in_channels": 3, "out_channels": 1, "base_width": 4, "depth": 2, "norm": "group"}
    net = build(arch).eval()
    spec = ModelSpec(
        classes=default_classes(2), channels=3, mean=(1.0, 2.0, 3.0), std=(2.0,), activation="sigmoid",
        tile=16, multiple=multiple(arch), architecture=arch, thresholds=(0.4, 0.6),
    )  # fmt: skip
    save_model(net, spec, tmp_path / "m.safetensors")
    model = load_model(tmp_path / "m.safetensors")
    assert model.spec == spec
    pixels = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    x = (
        torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - torch.tensor([1.0, 2, 3]).view(1, 3, 1, 1)
    ) / 2
    with torch.no_grad():
        expected = net(x).sigmoid()[:, 0].numpy()
    assert np.allclose(model.predict(pixels)[:, 1], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"name": "unett"}, "unknown architecture 'unett'; the nearest is 'unet'"),
        ({}, "unknown architecture None"),
        ({"name": "unet", "base_with": 8}, "unknown key 'base_with'; the nearest is 'base_width'"),
        ({"name": "unet", "in_channels": 1}, "out_channels: Field required"),
        ({"name": "unet", "in_channels": 1, "out_channels": 1, "depth": 0}, "depth: .* not 0"),
        ({"name": "unet", "in_channels": 1, "out_channels": 1, "norm": "layer"}, "norm: .* not 'layer'"),
    ],
)  # fmt: skip
def test_mistakes_are_named(architecture: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(architecture)
