"""Every loss term against its formula, at its extremes, and with pixels that do not count."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from together import together

from raysegment.errors import UsageError
from raysegment.training.losses import Loss
from raysegment.training.parallel import Workers
from raysegment.training.windows import IGNORE

_ALONE = Workers()
#: Every term, alone and with every argument.
_ALL = [
    "ce", "bce", "focal", "focal(gamma=0)", "focal(alpha=1,gamma=0.5)", "dice", "tversky",
    "tversky(alpha=0.2,beta=0.9,gamma=0.75)", "lovasz", "0.5*focal(alpha=0.25,gamma=2)+dice+0.3*lovasz",
]  # fmt: skip


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


def _jaccard_extension(errors: np.ndarray, is_class: np.ndarray) -> float:
    """Lovász extension by its definition: largest error first, each times the step of 1 − IoU that it takes."""
    loss, wrong, last = 0.0, np.zeros(len(errors), bool), 0.0
    for i in np.argsort(-errors, kind="stable"):
        wrong[i] = True
        step = 1 - (is_class & ~wrong).sum() / (is_class | wrong).sum()
        loss, last = loss + errors[i] * (step - last), step
    return loss


@pytest.mark.parametrize(
    ("outputs", "weights"), [(1, None), (3, None), (1, [1.0, 3.0]), (3, [0.5, 2.0, 1.0])]
)
def test_lovasz_is_the_extension_of_iou_window_by_window(outputs: int, weights: list[float] | None) -> None:
    logits, target, valid = _case(outputs)
    target[0][target[0] == 1] = 0  # a class that the first window does not hold
    expected = []
    for z, t, v in zip(logits, target, valid, strict=True):
        z, t = z[:, v].numpy(), t[v].numpy()
        parts, of = [], []
        for c in np.unique(t):
            margin = np.maximum(1 - z[0] * (2.0 * (t == 1) - 1), 0)
            p = np.exp(z) / np.exp(z).sum(0)
            errors = margin if outputs == 1 else np.abs((t == c) - p[c])
            parts.append(_jaccard_extension(errors, t == c))
            of.append(1.0 if weights is None else weights[c])
        if parts:
            expected.append(np.average(parts, weights=of))
    assert len(expected) == 2  # the window without a valid pixel does not count
    got = Loss.parse("lovasz")(logits, target, _ALONE, weights)
    assert float(got) == pytest.approx(np.mean(expected), abs=1e-12)


def test_tversky_is_its_formula_and_dice_at_one_half() -> None:
    logits, target, valid = _case(3)
    p, y = logits.softmax(dim=1).permute(0, 2, 3, 1)[valid], F.one_hot(target[valid].long(), 3).double()
    tp, fp, fn = (p * y).sum(0), (p * (1 - y)).sum(0), ((1 - p) * y).sum(0)
    plain = 1 - (tp + 0.5) / (tp + 0.2 * fp + 0.9 * fn + 0.5)
    for gamma, expected in ((1, plain.mean()), (0.75, (plain**0.75).mean())):
        got = Loss.parse(f"tversky(alpha=0.2,beta=0.9,gamma={gamma})")(logits, target, _ALONE)
        assert float(got) == pytest.approx(float(expected), abs=1e-12)
    half = Loss.parse("tversky(alpha=0.5,beta=0.5)")(logits, target, _ALONE)
    assert float(half) == pytest.approx(float(Loss.parse("dice")(logits, target, _ALONE)), abs=1e-12)


def _share(
    expression: str, logits: torch.Tensor, target: torch.Tensor, weights: list[float] | None, workers: Workers
) -> tuple[float, torch.Tensor]:
    """The loss and the gradient of this worker's windows, in the place that they have in the batch."""
    mine = list(workers.share(len(logits)))
    own = logits[mine].clone().requires_grad_()
    loss = Loss.parse(expression)(own, target[mine], workers, weights)
    loss.backward()
    gradient = torch.zeros_like(logits)
    gradient[mine] = own.grad
    return float(loss.detach()), gradient


@given(
    st.sampled_from(_ALL), st.sampled_from([1, 4]), st.integers(0, 10**6), st.booleans(),
    st.sampled_from([torch.float64, torch.float32]),
)  # fmt: skip
def test_loss_and_gradient_do_not_depend_on_how_many_share_the_batch(
    expression: str, outputs: int, seed: int, weighted: bool, dtype: torch.dtype
) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(5, outputs, 9, 8, generator=rng, dtype=torch.float64)).to(dtype)
    target = torch.randint(0, max(2, outputs), (5, 9, 8), generator=rng, dtype=torch.uint8)
    share_ignored = torch.tensor([0, 0.2, 0.5, 1, 1])[:, None, None]  # of four workers one has nothing at all
    target[torch.rand(5, 9, 8, generator=rng) < share_ignored] = IGNORE
    weights = [0.5, 2.0, 0.0, 1.0][: max(2, outputs)] if weighted else None
    loss, gradient = _share(expression, logits, target, weights, _ALONE)
    scale = float(gradient.abs().max())
    near = 1e-10 if dtype == torch.float64 else 1e-5
    for size in (2, 4):
        shares = together(size, functools.partial(_share, expression, logits, target, weights))
        assert {share[0] for share in shares} == {shares[0][0]}  # to the bit the same on every worker
        assert shares[0][0] == pytest.approx(loss, rel=near, abs=near)
        total = sum(share[1] for share in shares)
        assert torch.isfinite(total).all()
        torch.testing.assert_close(total, gradient, rtol=0, atol=near * max(scale, 1e-30))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("expression", _ALL)
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


@pytest.mark.parametrize("expression", _ALL)
def test_without_a_pixel_that_counts_loss_and_gradient_are_zero(expression: str) -> None:
    logits = torch.randn(2, 1, 4, 4, requires_grad=True)
    loss = Loss.parse(expression)(logits, torch.full((2, 4, 4), IGNORE, dtype=torch.uint8), _ALONE)
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@given(st.sampled_from(_ALL), st.integers(0, 100), st.sampled_from([1, 3]))
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
        ("tversky(bata=1)", "tversky has no argument 'bata'; the nearest is 'beta'"),
        ("lovas", "unknown term 'lovas'; the nearest is 'lovasz'"),
        ("focal(alpha=1.5)", "'1.5' is not a number from 0 to 1"),
        ("0*ce", "every weight is 0"),
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
