"""Deep supervision: what each level is held to, how much it weighs, and that inference knows nothing of it."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from raysegment.model.architectures import build, margin
from raysegment.training.losses import Loss
from raysegment.training.parallel import Workers
from raysegment.training.supervision import Supervised, supervised_loss
from raysegment.training.windows import IGNORE

_LOSS, _ALONE = Loss.parse("ce"), Workers()


def _network(padding: Literal["same", "valid"] = "same", depth: int = 3) -> dict[str, object]:
    return {
        "name": "unet", "in_channels": 1, "out_channels": 3, "base_width": 2, "depth": depth, "padding": padding,
    }  # fmt: skip


def test_levels_weigh_half_as_much_each_and_one_together() -> None:
    torch.manual_seed(0)
    answers = [torch.randn(2, 3, 16 >> k, 16 >> k, dtype=torch.float64) for k in range(3)]
    targets = torch.randint(0, 3, (2, 16, 16), dtype=torch.uint8)
    targets[0, :9] = IGNORE
    expected = sum(
        2.0**-k / 1.75 * _LOSS(answer, targets[:, (1 << k) // 2 :: 1 << k, (1 << k) // 2 :: 1 << k], _ALONE)
        for k, answer in enumerate(answers)
    )
    assert float(supervised_loss(_LOSS, answers, targets, _ALONE, None)) == pytest.approx(
        float(expected), abs=1e-12
    )


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_every_level_is_held_to_the_pixels_it_stands_on(padding: Literal["same", "valid"]) -> None:
    """Answers that know the truth of a ramp of classes have no loss, wherever the network cut them."""
    arch = _network(padding)
    cut, edge = margin(arch), 128
    net = Supervised(build(arch).eval(), 3)
    scene = torch.arange(edge)[None, None, None, :].expand(1, 1, edge, edge) // 8 % 3  # stripes, 8 px wide
    targets = scene[0, :, cut : edge - cut, cut : edge - cut].to(torch.uint8)
    answers = []
    for level, answer in enumerate(net(torch.zeros(1, 1, edge, edge))):
        size, step = answer.shape[3] << level, 1 << level
        middles = torch.arange((edge - size) // 2 + step // 2, (edge + size) // 2, step)
        covered = scene[0][:, middles][:, :, middles]
        answers.append(torch.nn.functional.one_hot(covered, 3).permute(0, 3, 1, 2) * 100.0)
    found = supervised_loss(_LOSS, answers, targets, _ALONE, None)
    assert float(found) < 1e-6
    shifted = [answer.roll(1, dims=3) for answer in answers]
    assert float(supervised_loss(_LOSS, shifted, targets, _ALONE, None)) > 1


def test_every_head_learns_and_none_is_in_the_network() -> None:
    torch.manual_seed(0)
    arch = _network()
    network = build(arch)
    network.set_prior([0.7, 0.2, 0.1], "softmax")
    supervised = Supervised(network, 3)
    assert all(torch.equal(head.bias, network.head.bias) for head in supervised.heads)
    targets = torch.randint(0, 3, (2, 32, 32), dtype=torch.uint8)
    supervised_loss(_LOSS, supervised(torch.randn(2, 1, 32, 32)), targets, _ALONE, None).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in supervised.heads.parameters())
    assert list(network.state_dict()) == list(build(arch).state_dict())
    assert isinstance(network.eval()(torch.randn(1, 1, 32, 32)), torch.Tensor)
