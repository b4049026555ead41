"""Every loss term against its formula, at its extremes, and with pixels that do not count."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from raysegment.errors import UsageError
from raysegment.training.losses import Loss
from raysegment.training.parallel import Workers
from raysegment.training.windows import IGNORE

_ALONE = Workers()


def _case(outputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, targets with ignored pixels, and where they count."""
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, outputs, 5, 7, generator=rng, dtype=torch.float64)
    target = torch.randint(0, max(2, outputs), (3, 5, 7), generator=rng, dtype=torch.uint8)
    target[torch.rand(3, 5, 7, generator=rng) < 0.3] = IGNORE
    target[1] = IGNORE
    return logits, target, target != IGNORE


def test_ce_is_the_mean_over_the_pixels_that_count() -> None:
    logits, target, valid = _case(4)
    expected = F.cross_entropy(logits.permute(0, 2, 3, 1)[valid], target[valid].long())
    assert float(Loss.parse("ce")(logits, target, _ALONE)) == pytest.approx(float(expected), abs=1e-12)


def test_bce_and_ce_of_one_output_are_binary_cross_entropy() -> None:
    logits, target, valid = _case(1)
    expected = F.binary_cross_entropy_with_logits(logits[:, 0][valid], target[valid].double())
    for name in ("bce", "ce"):
        assert float(Loss.parse(name)(logits, target, _ALONE)) == pytest.approx(float(expected), abs=1e-12)


def test_focal_is_the_published_formula() -> None:
    logits, target, valid = _case(1)
    z, y, alpha, gamma = logits[:, 0][valid].numpy(), target[valid].double().numpy(), 0.3, 1.7
    p = 1 / (1 + np.exp(-z))
    at_one, at_zero = alpha * (1 - p) ** gamma * y, (1 - alpha) * p**gamma * (1 - y)
    expected = (np.log1p(np.exp(-z)) * (at_one + at_zero) + z * at_zero).mean()
    got = Loss.parse(f"focal(alpha={alpha}, gamma={gamma})")(logits, target, _ALONE)
    assert float(got) == pytest.approx(expected, abs=1e-12)


def test_focal_of_more_classes_is_one_against_the_rest() -> None:
    logits, target, valid = _case(3)
    expected = 0.0
    for c in range(3):
        one = torch.where(valid, (target == c).to(torch.uint8), IGNORE).to(torch.uint8)
        expected += float(Loss.parse("focal")(logits[:, c : c + 1], one, _ALONE))
    assert float(Loss.parse("focal")(logits, target, _ALONE)) == pytest.approx(expected, abs=1e-12)


def test_dice_is_the_mean_over_the_classes_that_occur() -> None:
    logits, target, valid = _case(4)
    target[target == 2] = 1  # class 2 never occurs
    p = logits.softmax(dim=1).permute(0, 2, 3, 1)[valid]
    y = F.one_hot(target[valid].long(), 4).double()
    score = (2 * (p * y).sum(0) + 1) / (p.sum(0) + y.sum(0) + 1)
    expected = 1 - score[[0, 1, 3]].mean()
    assert float(Loss.parse("dice")(logits, target, _ALONE)) == pytest.approx(float(expected), abs=1e-12)


def test_dice_of_one_output_counts_both_classes() -> None:
    logits, target, _ = _case(1)
    both = torch.cat([torch.zeros_like(logits), logits], dim=1)  # softmax of (0, z) is sigmoid(z)
    p = both.softmax(dim=1).permute(0, 2, 3, 1)[target != IGNORE]
    y = F.one_hot(target[target != IGNORE].long(), 2).double()
    expected = 1 - ((2 * (p * y).sum(0) + 1) / (p.sum(0) + y.sum(0) + 1)).mean()
    assert float(Loss.parse("dice")(logits, target, _ALONE)) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("expression", ["focal", "focal(gamma=0)", "focal(gamma=0.5)", "ce", "bce", "dice"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_value_and_gradient_are_finite_at_any_logit(
    dtype: torch.dtype, expression: str, outputs: int
) -> None:
    values = torch.tensor([-1e4, -100, -1, 0, 1, 100, 1e4], dtype=torch.float32)
    logits = values.repeat(outputs, 1).view(1, outputs, 1, 7).to(dtype).repeat(1, 1, 2, 1).requires_grad_()
    target = torch.tensor([[[0] * 7, [1] * 7]], dtype=torch.uint8)
    loss = Loss.parse(expression)(logits, target, _ALONE)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_focal_at_the_extremes_is_right_and_not_just_finite() -> None:
    def at(z: float, y: int) -> float:
        return float(
            Loss.parse("focal")(torch.tensor([[[[z]]]]), torch.tensor([[[y]]], dtype=torch.uint8), _ALONE)
        )

    assert at(-1e4, 1) == pytest.approx(0.25 * 1e4)
    assert at(1e4, 0) == pytest.approx(0.75 * 1e4)
    assert at(1e4, 1) == at(-1e4, 0) == 0


@pytest.mark.parametrize("expression", ["ce", "bce", "focal", "dice", "ce+dice"])
def test_without_a_pixel_that_counts_loss_and_gradient_are_zero(expression: str) -> None:
    logits = torch.randn(2, 1, 4, 4, requires_grad=True)
    loss = Loss.parse(expression)(logits, torch.full((2, 4, 4), IGNORE, dtype=torch.uint8), _ALONE)
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@given(st.sampled_from(["ce", "focal", "dice", "bce"]), st.integers(0, 100), st.sampled_from([1, 3]))
def test_ignored_pixels_have_no_say(expression: str, seed: int, outputs: int) -> None:
    logits, target, valid = _case(outputs, seed)
    changed = torch.where(valid[:, None], logits, logits * -7 + 100)
    loss = Loss.parse(expression)
    assert float(loss(changed, target, _ALONE)) == float(loss(logits, target, _ALONE))


def test_class_weights_weigh_pixels_and_dice() -> None:
    logits, target, valid = _case(3)
    weights = [0.5, 2.0, 0.0]
    per_pixel = F.cross_entropy(logits.permute(0, 2, 3, 1)[valid], target[valid].long(), reduction="none")
    expected = (per_pixel * torch.tensor(weights, dtype=torch.float64)[target[valid].long()]).mean()
    assert float(Loss.parse("ce")(logits, target, _ALONE, weights)) == pytest.approx(
        float(expected), abs=1e-12
    )
    even = float(Loss.parse("dice")(logits, target, _ALONE, [1, 1, 1]))
    assert even == pytest.approx(float(Loss.parse("dice")(logits, target, _ALONE)), abs=1e-12)
    assert float(Loss.parse("dice")(logits, target, _ALONE, weights)) != pytest.approx(even)


def test_terms_add_up_with_their_weights() -> None:
    logits, target, _ = _case(1)
    whole = Loss.parse("0.5*focal(alpha=0.3,gamma=1) + dice+1e-1*ce")
    parts = [("focal(alpha=0.3,gamma=1)", 0.5), ("dice", 1.0), ("ce", 0.1)]
    expected = sum(w * float(Loss.parse(e)(logits, target, _ALONE)) for e, w in parts)
    assert float(whole(logits, target, _ALONE)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("dise", "unknown term 'dise'; the nearest is 'dice'"),
        ("ce+", "'' is no term"),
        ("focal(gama=2)", "focal has no argument 'gama'; the nearest is 'gamma'"),
        ("dice(smooth=1)", "dice has no argument 'smooth'; it takes none"),
        ("focal(gamma=two)", "'two' is not a number of 0 or more"),
        ("-1*ce", "'-1' is not a number of 0 or more"),
    ],
)
def test_mistakes_are_named(expression: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        Loss.parse(expression)


def test_what_turns_logits_into_probabilities_follows_from_the_terms() -> None:
    assert Loss.parse("ce+focal").activation(2) == "sigmoid"
    assert Loss.parse("ce+dice").activation(3) == "softmax"
    assert Loss.parse("focal+dice").activation(3) == "sigmoid"
    with pytest.raises(UsageError, match="mixes ce and bce"):
        Loss.parse("ce+bce").activation(3)
