"""Scores against brute force over sets of pixels, and the properties that counts must have."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysegment.metrics import Scores, Tally, confusion
from raysegment.metrics.boundary import TOLERANCE_PX, boundary_counts, boundary_f1
from raysegment.metrics.rand import cells, rand_counts, v_rand


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
        commonest = max(range(classes), key=lambda c: (truth == c)[valid].sum())
        constant = Scores.of(confusion(truth, np.full_like(truth, commonest), classes), list(scores.classes))
        assert scores.beats_constant == (scores.mean_iou > constant.mean_iou + 1e-12)
        assert not constant.beats_constant


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
    assert scores.absent == {"c"}


def test_a_class_predicted_but_never_true_counts_against_the_mean() -> None:
    scores = Scores.of(np.array([[4, 0, 1], [0, 5, 0], [0, 0, 0]]), ["a", "b", "c"])
    assert scores.mean_iou == pytest.approx((0.8 + 1 + 0) / 3)
    assert scores.absent == set()
    assert (
        Scores.of(np.array([[4, 0], [0, 0]]), ["a", "b"], np.array([0, 3])).absent == set()
    )  # missed, not absent


def test_a_rare_class_found_is_more_than_none_found() -> None:
    found = Scores.of(np.array([[960, 30], [0, 10]]), ["ground", "well"])
    assert found.accuracy < found.constant_accuracy
    assert found.beats_constant


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


def _outline(labels: np.ndarray, c: int) -> set[tuple[int, int]]:
    """Pixels of class c beside a pixel of another class, by looking at each."""
    found = set()
    for y, x in np.argwhere(labels == c).tolist():
        beside = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        near = [labels[p] for p in beside if 0 <= p[0] < labels.shape[0] and 0 <= p[1] < labels.shape[1]]
        if any(n not in (c, 255) for n in near):
            found.add((y, x))
    return found


@given(_pair(), st.sampled_from([0.0, 1.0, 1.5, TOLERANCE_PX, 3.0]))
def test_outlines_are_compared_by_distance(
    pair: tuple[np.ndarray, np.ndarray, int], tolerance: float
) -> None:
    truth, prediction, classes = pair
    counts = boundary_counts(truth, prediction, classes, tolerance)
    seen = np.where(truth == 255, 255, prediction)
    for c in range(classes):
        true, found = _outline(truth, c), _outline(seen, c)

        def near(these: set[tuple[int, int]], those: set[tuple[int, int]]) -> int:
            return sum(any(np.hypot(a - y, b - x) <= tolerance for y, x in those) for a, b in these)

        assert counts[c].tolist() == [near(found, true), len(found), near(true, found), len(true)]


def test_boundary_f1_is_the_harmonic_mean_of_its_shares() -> None:
    f1 = boundary_f1(np.array([[1, 2, 3, 4], [0, 3, 0, 5], [0, 0, 0, 7], [0, 0, 0, 0]]))
    assert f1[0] == pytest.approx(2 * 0.5 * 0.75 / 1.25)
    assert f1[1:3].tolist() == [0, 0]
    assert np.isnan(f1[3])


@st.composite
def _membranes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    true, found = (rng.random(shape) < draw(st.sampled_from([0.2, 0.5, 0.8])) for _ in range(2))
    return true, found


def _components(is_cell: np.ndarray) -> np.ndarray:
    """4-connected components, by walking."""
    found, number = np.zeros(is_cell.shape, int), 0
    for start in np.argwhere(is_cell).tolist():
        todo = [tuple(start)] if not found[tuple(start)] else []
        number += bool(todo)
        while todo:
            y, x = todo.pop()
            if 0 <= y < is_cell.shape[0] and 0 <= x < is_cell.shape[1] and is_cell[y, x] and not found[y, x]:
                found[y, x] = number
                todo += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return found


@given(_membranes())
def test_v_rand_is_its_definition_over_pairs_of_pixels(masks: tuple[np.ndarray, np.ndarray]) -> None:
    """Of all ordered pairs of pixels of true cells: together in both, in what is found, in the truth."""
    true_membrane, found_membrane = masks
    true, found = _components(~true_membrane), _components(~found_membrane)
    places = np.argwhere(found > 0)
    counts = rand_counts(cells(true_membrane), found_membrane)
    choices = []
    for y, x in np.argwhere(true > 0).tolist():
        distance = ((places - (y, x)) ** 2).sum(axis=1)
        nearest = places[distance == distance.min()] if len(places) else places
        choices.append((true[y, x], {int(found[tuple(p)]) for p in nearest} or {0}))
    if any(len(at) > 1 for _, at in choices):
        return  # as near to two cells: either is right
    of = [(t, at.pop()) for t, at in choices]
    pairs = [(a[0] == b[0], a[1] == b[1]) for a in of for b in of]
    assert counts.tolist() == [
        sum(t and s for t, s in pairs),
        sum(s for _, s in pairs),
        sum(t for t, _ in pairs),
    ]
    precision, recall = (counts[0] / n if n else 0 for n in counts[1:])
    expected = 2 * precision * recall / (precision + recall) if counts[0] else 0
    assert v_rand(counts) == pytest.approx(expected)


def test_v_rand_sees_a_gap_and_not_the_width_of_a_membrane() -> None:
    true = np.zeros((40, 40), bool)
    true[:, 20] = True
    assert v_rand(rand_counts(cells(true), true)) == 1
    thick, gap, merged = true.copy(), true.copy(), np.zeros_like(true)
    thick[:, 18:23] = True
    assert v_rand(rand_counts(cells(true), thick)) == 1
    gap[7, 20] = False
    together = v_rand(rand_counts(cells(true), gap))
    assert together == v_rand(rand_counts(cells(true), merged)) < 0.7
    assert v_rand(rand_counts(cells(true), np.ones_like(true))) == together  # no cell at all is one


@given(st.lists(_pair(), min_size=1, max_size=4))
def test_a_tally_scores_the_set_and_each_image(pairs: list[tuple[np.ndarray, np.ndarray, int]]) -> None:
    classes = max(c for _, _, c in pairs)
    names = [str(c) for c in range(classes)]
    tally, halves = (Tally(len(pairs) + 1, classes, boundaries=True, membrane=0) for _ in range(2))
    each = []
    for i, (truth, prediction, _) in enumerate(pairs):
        tally.add(i, truth, prediction)
        part = Tally(len(pairs) + 1, classes, boundaries=True, membrane=0)
        part.add(i, truth, prediction)
        halves.counts = halves.counts + part.counts  # as workers do
        if (truth != 255).any():
            each.append(Scores.of(confusion(truth, prediction, classes), names))
    scores = tally.scores(names)
    assert halves.scores(names).to_json() == scores.to_json()  # NaN equals nothing
    assert scores.mean_iou_per_image == pytest.approx(np.mean([s.mean_iou for s in each]) if each else 0)
    assert scores.mean_dice_per_image == pytest.approx(np.mean([s.mean_dice for s in each]) if each else 0)
    plain = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert Scores.from_json(plain).to_json() == plain == scores.to_json()
    assert list(scores.to_json())[-4:] == [
        "mean_iou_per_image", "mean_dice_per_image", "boundary_f1", "v_rand"
    ]  # fmt: skip


def test_boundary_f1_without_any_outline_is_undefined() -> None:
    uniform = np.zeros((5, 5), np.uint8)
    tally = Tally(2, 2, boundaries=True)
    tally.add(0, uniform, uniform)
    tally.add(1, uniform + 1, uniform + 1)
    scores = tally.scores(["a", "b"])
    assert scores.boundary_f1 is not None
    assert np.isnan(scores.boundary_f1)
    data = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert data["boundary_f1"] is None
    assert Scores.from_json(data).to_json() == data
    assert Tally(2, 2).scores(["a", "b"]).boundary_f1 is None  # it was not counted
    assert "boundary_f1" not in Tally(2, 2).scores(["a", "b"]).to_json()
    one = np.eye(5, dtype=np.uint8)  # a third class without an outline takes no part in the mean
    tally = Tally(1, 3, boundaries=True)
    tally.add(0, one, one)
    assert tally.scores(["a", "b", "c"]).boundary_f1 == 1
