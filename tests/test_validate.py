"""Validation views, counts and thresholds, against the whole scene at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raysegment.classes import ClassMap
from raysegment.geometry import Size, Window
from raysegment.metrics import Scores, confusion
from raysegment.model.spec import ModelSpec, default_classes
from raysegment.training.dataset import find_scenes
from raysegment.training.parallel import Workers
from raysegment.training.thresholds import choose
from raysegment.training.validate import Validator, label, spread, views
from raysegment.training.windows import WindowReader


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([16, 32]))
def test_views_count_every_pixel_once(height: int, width: int, tile: int) -> None:
    counted = np.zeros((height, width), int)
    for view in views([Size(height, width)], tile):
        counted[view.own.slices()] += 1
        assert view.window.holds(view.own)
        assert view.window.size == (tile, tile)
        if min(height, width) >= tile:
            assert Window(y=0, x=0, height=height, width=width).holds(view.window)
    assert (counted == 1).all()


def test_views_spread_over_all() -> None:
    all_views = views([Size(100, 100)] * 10, 10)
    some = spread(all_views, 37)
    assert len(some) == 37
    assert {v.scene for v in some} == set(range(10))
    assert spread(some, 100) == some


class _Shrink(nn.Module):
    """Logit of class 1 = the pixel; `margin` pixels less on each side."""

    def __init__(self, margin: int) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        m = self.margin
        return x[:, :, m : x.shape[2] - m, m : x.shape[3] - m]


def _validator(root: Path, margin: int, workers: Workers) -> tuple[Validator, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 50, 41)).astype(np.float32)
    masks = rng.choice(np.array([0, 1, 9], np.uint8), (3, 50, 41))
    for folder, stack in (("images", images), ("masks", masks)):
        (root / folder).mkdir(exist_ok=True)
        for i, pixels in enumerate(stack):
            tifffile.imwrite(root / folder / f"{i}.tif", pixels)
    classes = ClassMap(default_classes(2), {0: 0, 1: 1, 9: -1}, source="a test")
    spec = ModelSpec(classes=classes.classes, channels=1, activation="sigmoid", tile=16, margin=margin)
    device = torch.device("cpu")
    off = lambda: torch.autocast("cpu", enabled=False)  # noqa: E731
    return (
        Validator(WindowReader(find_scenes(root), (0,), classes), spec, workers, device, 4, off),
        images,
        masks,
    )


@pytest.mark.parametrize("margin", [0, 3])
@pytest.mark.parametrize("thresholds", [None, (0.3, 0.7)])
def test_counts_are_those_of_the_whole_scenes(
    tmp_path: Path, margin: int, thresholds: tuple[float, float] | None
) -> None:
    validator, images, masks = _validator(tmp_path, margin, Workers())
    seen = views([Size(50, 41)] * 3, 16)
    p1 = 1 / (1 + np.exp(-images))
    theta = thresholds or (0.5, 0.5)
    predicted = (p1 / theta[1] > (1 - p1) / theta[0]).astype(int)
    expected = confusion(np.where(masks == 9, 255, masks), predicted, 2)
    assert np.array_equal(validator.count(_Shrink(margin), seen, thresholds), expected)


def test_workers_divide_the_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validator, _, _ = _validator(tmp_path, 0, Workers())
    seen = views([Size(50, 41)] * 3, 16)
    whole, parts = validator.count(_Shrink(0), seen), np.zeros((2, 2), np.int64)
    for rank in range(2):
        worker = Workers()
        worker.rank, worker.size = rank, 2
        monkeypatch.setattr(worker, "sum", lambda values: values)
        parts += _validator(tmp_path, 0, worker)[0].count(_Shrink(0), seen)
    assert np.array_equal(parts, whole)


def test_sampled_pixels_are_a_fair_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validator, images, masks = _validator(tmp_path, 0, Workers())
    seen = views([Size(50, 41)] * 3, 16)
    p, truth, scene = validator.sample(_Shrink(0), seen)
    assert len(p) == (masks != 9).sum()
    assert p[:, 1].sum() == pytest.approx((1 / (1 + np.exp(-images)))[masks != 9].sum(), rel=1e-5)
    assert np.bincount(truth).tolist() == [(masks == 0).sum(), (masks == 1).sum()]
    assert np.bincount(scene).tolist() == [(m != 9).sum() for m in masks]
    monkeypatch.setattr("raysegment.training.validate._KEPT_PX", 500)
    fewer = validator.sample(_Shrink(0), seen)[0]
    assert 200 < len(fewer) < 500


def test_ties_go_to_the_lower_class() -> None:
    assert label(np.full((3, 1, 1), 1 / 3, np.float32), None) == 0
    assert label(np.array([0.2, 0.4, 0.4], np.float32).reshape(3, 1, 1), (0.2, 0.4, 0.4)) == 0


def _shifted(bias: float, n: int = 40_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of a good network whose odds for class 1 are off by exp(bias)."""
    rng = np.random.default_rng(0)
    truth = (rng.random(n) < 0.25).astype(np.int64)
    z = rng.normal(size=n) + 3 * truth - 1.5 - bias
    p1 = 1 / (1 + np.exp(-z))
    return np.column_stack([1 - p1, p1]).astype(np.float32), truth, rng.integers(0, 6, n)


def test_thresholds_mend_timid_probabilities() -> None:
    p, truth, scene = _shifted(2.0)
    thresholds = choose(p, truth, scene, "mean_dice")
    assert thresholds is not None
    assert sum(thresholds) == pytest.approx(1)
    assert thresholds[1] < 0.3

    def dice(theta: tuple[float, ...]) -> float:
        labels = label(p.T.reshape(2, -1, 1), theta).ravel()
        return Scores.of(confusion(truth, labels, 2), ["a", "b"]).mean_dice

    best = max(dice((1 - t, t)) for t in np.linspace(0.02, 0.98, 97))
    assert dice(thresholds) > best - 0.002
    assert dice(thresholds) > dice((0.5, 0.5)) + 0.02


def test_thresholds_are_left_equal_where_they_gain_little() -> None:
    rng = np.random.default_rng(0)
    p1 = rng.beta(0.5, 0.5, 40_000)
    calibrated = np.column_stack([1 - p1, p1]).astype(np.float32)
    truth = (rng.random(40_000) < p1).astype(np.int64)
    assert choose(calibrated, truth, rng.integers(0, 6, 40_000), "accuracy") is None
    p = rng.random((300, 1)).astype(np.float32)
    noise = np.column_stack([1 - p, p])
    assert choose(noise, rng.integers(0, 2, 300), rng.integers(0, 4, 300), "accuracy") is None


def test_no_class_pays_for_the_thresholds() -> None:
    """A network that is mostly wrong: one class everywhere scores better, and is no threshold to keep."""
    rng = np.random.default_rng(0)
    truth = (rng.random(20_000) < 0.9).astype(np.int64)
    p1 = np.clip(rng.normal(0.45, 0.1, 20_000) + 0.02 * truth, 0.01, 0.99)
    p = np.column_stack([1 - p1, p1]).astype(np.float32)
    everywhere = label(p.T.reshape(2, -1, 1), (0.99, 0.01)).ravel()
    gain = Scores.of(confusion(truth, everywhere, 2), ["a", "b"]).mean_iou
    assert gain > Scores.of(confusion(truth, p.argmax(axis=1), 2), ["a", "b"]).mean_iou + 0.1
    assert choose(p, truth, rng.integers(0, 6, 20_000), "mean_iou") is None


def test_thresholds_of_three_classes() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 20_000)
    z = rng.normal(size=(20_000, 3)) + 2 * np.eye(3)[truth] + np.array([2.0, 0.0, -2.0])
    p = np.exp(z)
    p = (p / p.sum(axis=1, keepdims=True)).astype(np.float32)
    thresholds = choose(p, truth, rng.integers(0, 5, 20_000), "mean_iou")
    assert thresholds is not None
    assert thresholds[0] > thresholds[1] > thresholds[2]
