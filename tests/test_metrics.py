"""Scores against brute force over sets of pixels, and the properties that counts must have."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysegment.metrics import Scores, confusion


@st.composite
def _pair(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    classes = draw(st.integers(2, 5))
    shape = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    truth = rng.integers(0, classes, shape).astype(np.uint8)
    truth[rng.random(shape) < draw(st.sampled_from([0.0, 0.3]))] = 255
    return truth, rng.integers(0, classes, shape).astype(np.uint8), classes


@given(_pair())
def test_scores_equal_set_arithmetic(pair: tuple[np.ndarray, np.ndarray, int]) -> None:
    truth, prediction, classes = pair
    scores = Scores.of(confusion(truth, prediction, classes), [str(c) for c in range(classes)])
    valid = truth != 255
    ious, dices = [], []
    for c in range(classes):
        t, p = (truth == c) & valid, (prediction == c) & valid
        both, either = (t & p).sum(), (t | p).sum()
        got = scores.classes[str(c)]
        assert got.support == t.sum()
        assert got.iou == pytest.approx(both / either if either else 0)
        assert got.dice == pytest.approx(2 * both / (t.sum() + p.sum()) if either else 0)
        assert got.precision == pytest.approx(both / p.sum() if p.any() else 0)
        assert got.recall == pytest.approx(both / t.sum() if t.any() else 0)
        if either:
            ious.append(got.iou)
            dices.append(got.dice)
    assert scores.mean_iou == pytest.approx(np.mean(ious) if ious else 0)
    assert scores.mean_dice == pytest.approx(np.mean(dices) if dices else 0)
    if valid.any():
        assert scores.accuracy == pytest.approx((truth == prediction)[valid].mean())
        best = max((truth == c)[valid].mean() for c in range(classes))
        assert scores.constant_accuracy == pytest.approx(best)


@given(_pair(), st.integers(0, 9))
def test_counts_add_up_over_blocks(pair: tuple[np.ndarray, np.ndarray, int], cut: int) -> None:
    truth, prediction, classes = pair
    parts = confusion(truth[:cut], prediction[:cut], classes) + confusion(
        truth[cut:], prediction[cut:], classes
    )
    assert np.array_equal(parts, confusion(truth, prediction, classes))


def test_rows_are_truth() -> None:
    counts = confusion(np.array([[0, 0, 1]]), np.array([[1, 1, 1]]), 2)
    assert counts.tolist() == [[0, 2], [0, 1]]
    assert counts.dtype == np.int64


def test_a_class_that_is_nowhere_is_left_out_of_the_means() -> None:
    scores = Scores.of(np.array([[5, 0, 0], [0, 5, 0], [0, 0, 0]]), ["a", "b", "c"])
    assert (scores.mean_iou, scores.mean_dice, scores.accuracy) == (1.0, 1.0, 1.0)
    assert scores.classes["c"].support == 0


def test_a_class_predicted_but_never_true_counts_against_the_mean() -> None:
    scores = Scores.of(np.array([[4, 0, 1], [0, 5, 0], [0, 0, 0]]), ["a", "b", "c"])
    assert scores.mean_iou == pytest.approx((0.8 + 1 + 0) / 3)


def test_json_is_plain() -> None:
    scores = Scores.of(confusion(np.array([[0, 1]]), np.array([[0, 1]]), 2), ["a", "b"])
    data = json.loads(json.dumps(scores.to_json()))
    assert list(data) == ["classes", "mean_iou", "mean_dice", "accuracy", "constant_accuracy", "confusion"]
    assert list(data["classes"]["a"]) == ["iou", "dice", "precision", "recall", "support"]


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        confusion(np.zeros((2, 2), int), np.zeros((2, 3), int), 2)
    with pytest.raises(ValueError, match="prediction holds 0 … 7"):
        confusion(np.zeros((1, 2), int), np.array([[0, 7]]), 2)
    with pytest.raises(ValueError, match="does not fit"):
        Scores.of(np.zeros((2, 2)), ["a"])
