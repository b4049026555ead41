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


def _keras_same(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A 2×2 cross-correlation of one channel as Keras pads it: the missing row and column are below and right."""
    wide = np.pad(x, ((0, 1), (0, 1)))
    h, w = x.shape
    return sum(kernel[i, j] * wide[i : i + h, j : j + w] for i in range(2) for j in range(2))


def test_the_keras_network_is_the_variants() -> None:
    """Parameters of zhixuhao/unet for 1 channel: 31,031,685 as Keras' own summary counts them."""
    arch = {"name": "unet-keras", "in_channels": 1, "out_channels": 1}
    net = build(arch)
    assert sum(p.numel() for p in net.parameters()) == 31_031_685
    assert [(m.p, type(m)) for m in net.drop[3:]] == [(0.5, torch.nn.Dropout)] * 2
    assert {type(m) for m in net.drop[:3]} == {torch.nn.Identity}
    first = net.down[0][0].weight  # He-normal, cut at two deviations of what it is drawn from
    assert float(first.detach().std()) == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    deep = net.down[4][2].weight
    assert float(deep.detach().std()) == pytest.approx((2 / (9 * 1024)) ** 0.5, rel=0.01)
    assert float(deep.detach().abs().max()) <= 2 * (2 / (9 * 1024)) ** 0.5 / 0.8796 * 1.0001
    answer = build({**arch, "base_width": 2, "out_channels": 3}).eval()(torch.zeros(1, 1, 32, 48))
    assert answer.shape == (1, 3, 32, 48)


def test_an_even_kernel_is_padded_as_keras_does() -> None:
    net = build({"name": "unet-keras", "in_channels": 1, "out_channels": 1, "base_width": 1, "depth": 1})
    widening = net.widen[0]
    with torch.no_grad():
        widening[2].weight[:, 1] = 0
        widening[2].weight.abs_()
    coarse = np.random.default_rng(0).random((3, 4)).astype(np.float32)
    x = torch.from_numpy(np.stack([coarse, coarse]))[None]
    fine = np.kron(coarse, np.ones((2, 2), np.float32))
    expected = _keras_same(fine, widening[2].weight[0, 0].detach().numpy())
    np.testing.assert_allclose(widening(x)[0, 0].detach().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3])
@torch.no_grad()
def test_receptive_radius_of_the_keras_network_is_exact(depth: int) -> None:
    arch = {"name": "unet-keras", "in_channels": 1, "out_channels": 1, "base_width": 1, "depth": depth}
    net, radius, step = build(arch).eval().double(), receptive_radius(arch), 2**depth
    for p in net.parameters():
        torch.nn.init.uniform_(p, 0.1, 0.5)
    edge = 2 * ((radius // step + 4) * step)
    x = torch.zeros(1, 1, edge, edge, dtype=torch.float64)
    still, reached = net(x), 0
    for y in range(edge // 2, edge // 2 + step):
        for place in (*range(y - radius - 2, y - radius + 3), *range(y + radius - 2, y + radius + 3)):
            moved = x.clone()
            moved[..., place, edge // 2] = 1e9
            if float((net(moved) - still)[0, 0, y].abs().max()) > 0:
                reached = max(reached, abs(place - y))
    assert reached == radius


def test_what_the_coarser_levels_answer_is_where_they_say() -> None:
    for padding, edge in (("same", 32), ("valid", 128)):
        net = build({**net_arch(3, padding), "base_width": 2}).eval()
        x = torch.randn(1, 1, edge, edge)
        features = list(net.features(x))
        assert [f.shape[1] for f in features] == net.widths
        assert torch.equal(net.head(features[-1]), net(x))
