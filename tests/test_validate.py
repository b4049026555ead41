"""Validation views, counts and thresholds, against the whole scene at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from alone import without_ray
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from together import together
from torch import nn

from raysegment.classes import ClassMap
from raysegment.errors import UsageError
from raysegment.evaluation import evaluate
from raysegment.geometry import Size, Window
from raysegment.inference.run import infer
from raysegment.metrics import Scores, Tally, confusion
from raysegment.model.architectures import build
from raysegment.model.file import save_model
from raysegment.model.spec import ModelSpec, default_classes
from raysegment.training.dataset import find_scenes
from raysegment.training.metric import Metric
from raysegment.training.parallel import Workers
from raysegment.training.stitched import pieces
from raysegment.training.thresholds import best_for_membranes, choose, for_membranes
from raysegment.training.validate import Validator, spread, views
from raysegment.training.windows import WindowReader

_TWO = ["a", "b"]


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


_SIZE = Size(50, 41)


def _validator(
    root: Path, margin: int = 0, workers: Workers | None = None, metric: str = "mean_iou"
) -> tuple[Validator, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = ndimage.gaussian_filter(rng.normal(size=(3, *_SIZE)), (0, 1, 1)).astype(np.float32) * 8
    masks = np.where(rng.random((3, *_SIZE)) < 0.2, 9, images + rng.normal(size=images.shape) > 0).astype(
        np.uint8
    )
    for folder, stack in (("images", images), ("masks", masks)):
        (root / folder).mkdir(exist_ok=True)
        for i, pixels in enumerate(stack):
            tifffile.imwrite(root / folder / f"{i}.tif", pixels)
    classes = ClassMap(default_classes(2), {0: 0, 1: 1, 9: -1}, source="a test")
    spec = ModelSpec(classes=classes.classes, channels=1, activation="sigmoid", tile=16, margin=margin)
    return (
        Validator(
            WindowReader(find_scenes(root), (0,), classes),
            spec,
            Metric.of(metric, spec.class_names, (0.3, 0.7)),
            workers or Workers(),
            torch.device("cpu"),
            4,
            lambda: torch.autocast("cpu", enabled=False),
        ),
        images,
        masks,
    )


@pytest.mark.parametrize("margin", [0, 3])
@pytest.mark.parametrize("thresholds", [None, (0.3, 0.7)])
def test_counts_are_those_of_the_whole_scenes(
    tmp_path: Path, margin: int, thresholds: tuple[float, float] | None
) -> None:
    validator, images, masks = _validator(tmp_path, margin)
    p1 = 1 / (1 + np.exp(-images))
    theta = thresholds or (0.5, 0.5)
    predicted = (p1 / theta[1] > (1 - p1) / theta[0]).astype(int)
    truth = np.where(masks == 9, 255, masks)
    in_scenes = validator.in_scenes(_Shrink(margin), thresholds)
    tally = Tally(3, 2, boundaries=True)
    for i in range(3):
        tally.add(i, truth[i], predicted[i])
    assert in_scenes == tally.scores(["class 0", "class 1"])
    assert in_scenes.confusion == tuple(map(tuple, confusion(truth, predicted, 2).tolist()))
    if thresholds is None:  # an epoch's windows hold every pixel once, too
        in_windows = validator.after_epoch(_Shrink(margin))
        assert in_windows.confusion == in_scenes.confusion
        assert in_windows.mean_iou_per_image == in_scenes.mean_iou_per_image


def _as_one_of(size: int, root: Path, metric: str) -> list[tuple[object, ...]]:
    def work(workers: Workers) -> tuple[object, ...]:
        validator, _, _ = _validator(root / str(workers.rank), 0, workers, metric)
        network = _Shrink(0)
        theta = validator.thresholds(network)
        return theta, validator.after_epoch(network), validator.in_scenes(network, theta)

    for rank in range(size):
        (root / str(rank)).mkdir(exist_ok=True)
    return together(size, work)


@pytest.mark.parametrize("metric", ["iou:class 1", "v_rand"])
def test_workers_share_the_scenes_and_agree_on_everything(tmp_path: Path, metric: str) -> None:
    alone = _as_one_of(1, tmp_path, metric)[0]
    for size in (2, 4):  # of four workers one has no scene
        assert _as_one_of(size, tmp_path, metric) == [alone] * size


def test_sampled_pixels_are_a_fair_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validator, images, masks = _validator(tmp_path)
    p, truth, scene = validator.sample(_Shrink(0))
    assert len(p) == (masks != 9).sum()
    assert p[:, 1].sum() == pytest.approx((1 / (1 + np.exp(-images)))[masks != 9].sum(), rel=1e-5)
    assert p.sum(axis=1) == pytest.approx(1, abs=1e-6)
    assert np.bincount(truth).tolist() == [(masks == 0).sum(), (masks == 1).sum()]
    assert np.bincount(scene).tolist() == [(m != 9).sum() for m in masks]
    monkeypatch.setattr("raysegment.training.validate._KEPT_PX", 500)
    fewer = validator.sample(_Shrink(0))[0]
    assert 200 < len(fewer) < 500


def test_scenes_too_large_for_one_piece_are_answered_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = nn.Conv2d(1, 1, 5, padding=2)
    validator, _, _ = _validator(tmp_path)
    whole = validator.in_scenes(network)
    monkeypatch.setattr("raysegment.training.stitched._SUMS", 20**2)
    found = pieces([_SIZE] * 3, validator.spec)
    assert len(found) == 3 * 3 * 3
    assert sum(p.window.area for p in found) == 3 * _SIZE.area
    assert validator.in_scenes(network).confusion == whole.confusion


@pytest.mark.parametrize("classes", [2, 3])
def test_final_scores_are_those_of_the_mask_that_infer_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int
) -> None:
    """Through the files: model, mask and `evaluate` know nothing of the validator."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (90, 75, 2)).astype(np.uint8)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    tifffile.imwrite(tmp_path / "images" / "a.tif", pixels, photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(tmp_path / "masks" / "a.tif", rng.integers(0, classes, (90, 75)).astype(np.uint8))
    outputs = 1 if classes == 2 else classes
    architecture = {"name": "unet", "in_channels": 2, "out_channels": outputs, "base_width": 4, "depth": 2}
    torch.manual_seed(1)
    network = build(architecture).eval()
    nn.init.normal_(network.head.weight, std=0.3)  # answers that differ from pixel to pixel
    named = default_classes(classes)
    theta = (0.48, 0.52) if classes == 2 else (0.32, 0.35, 0.33)
    spec = ModelSpec(
        classes=named, channels=2, mean=(120.0,), std=(60.0,), tile=32, multiple=4, thresholds=theta,
        activation="sigmoid" if classes == 2 else "softmax", architecture=architecture,
    )  # fmt: skip
    validator = Validator(
        WindowReader(find_scenes(tmp_path), (0, 1), ClassMap(named, {c: c for c in range(classes)}, source="")),
        spec, Metric("mean_iou"), Workers(), torch.device("cpu"), 2, lambda: torch.autocast("cpu", enabled=False),
    )  # fmt: skip
    scores = validator.in_scenes(network, theta)
    assert all(sum(column) for column in zip(*scores.confusion, strict=True))
    save_model(network, spec, tmp_path / "m.safetensors")
    with monkeypatch.context() as patch:
        without_ray(patch)
        infer(
            tmp_path / "images" / "a.tif", model=tmp_path / "m.safetensors", out=tmp_path / "m.zarr",
            precision="fp32",
        )  # fmt: skip
    assert evaluate(tmp_path / "m.zarr", tmp_path / "masks" / "a.tif").confusion == scores.confusion


def _shifted(bias: float, n: int = 40_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of a good network whose odds for class 1 are off by exp(bias)."""
    rng = np.random.default_rng(0)
    truth = (rng.random(n) < 0.25).astype(np.int64)
    z = rng.normal(size=n) + 3 * truth - 1.5 - bias
    p1 = 1 / (1 + np.exp(-z))
    return np.column_stack([1 - p1, p1]).astype(np.float32), truth, rng.integers(0, 6, n)


def test_thresholds_mend_timid_probabilities() -> None:
    p, truth, scene = _shifted(2.0)
    thresholds = choose(p, truth, scene, Metric("mean_dice"), _TWO)
    assert thresholds is not None
    assert sum(thresholds) == pytest.approx(1)
    assert thresholds[1] < 0.3

    def dice(theta: tuple[float, ...]) -> float:
        labels = (p / np.array(theta, np.float32)).argmax(axis=1)
        return Scores.of(confusion(truth, labels, 2), ["a", "b"]).mean_dice

    best = max(dice((1 - t, t)) for t in np.linspace(0.02, 0.98, 97))
    assert dice(thresholds) > best - 0.002
    assert dice(thresholds) > dice((0.5, 0.5)) + 0.02


def test_thresholds_are_left_equal_where_they_gain_little() -> None:
    rng = np.random.default_rng(0)
    p1 = rng.beta(0.5, 0.5, 40_000)
    calibrated = np.column_stack([1 - p1, p1]).astype(np.float32)
    truth = (rng.random(40_000) < p1).astype(np.int64)
    assert choose(calibrated, truth, rng.integers(0, 6, 40_000), Metric("accuracy"), _TWO) is None
    p = rng.random((300, 1)).astype(np.float32)
    noise = np.column_stack([1 - p, p])
    assert choose(noise, rng.integers(0, 2, 300), rng.integers(0, 4, 300), Metric("accuracy"), _TWO) is None


def test_no_class_pays_for_the_thresholds() -> None:
    """A network that is mostly wrong: one class everywhere scores better, and is no threshold to keep."""
    rng = np.random.default_rng(0)
    truth = (rng.random(20_000) < 0.9).astype(np.int64)
    p1 = np.clip(rng.normal(0.45, 0.1, 20_000) + 0.02 * truth, 0.01, 0.99)
    p = np.column_stack([1 - p1, p1]).astype(np.float32)
    everywhere = np.ones(20_000, int)
    gain = Scores.of(confusion(truth, everywhere, 2), ["a", "b"]).mean_iou
    assert gain > Scores.of(confusion(truth, p.argmax(axis=1), 2), ["a", "b"]).mean_iou + 0.1
    assert choose(p, truth, rng.integers(0, 6, 20_000), Metric("mean_iou"), _TWO) is None


def test_thresholds_of_three_classes() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 20_000)
    z = rng.normal(size=(20_000, 3)) + 2 * np.eye(3)[truth] + np.array([2.0, 0.0, -2.0])
    p = np.exp(z)
    p = (p / p.sum(axis=1, keepdims=True)).astype(np.float32)
    thresholds = choose(p, truth, rng.integers(0, 5, 20_000), Metric("mean_iou"), ["a", "b", "c"])
    assert thresholds is not None
    assert thresholds[0] > thresholds[1] > thresholds[2]


def test_a_class_that_validation_lacks_keeps_its_odds() -> None:
    """No threshold may do away with a class of which nothing is known."""
    rng = np.random.default_rng(2)
    truth = np.where(rng.random(20_000) < 0.7, 1, 2)  # never 0
    z = rng.normal(size=(20_000, 3)) + 2 * np.eye(3)[truth] + np.array([1.0, 2.0, 0.0])
    p = np.exp(z)
    p = (p / p.sum(axis=1, keepdims=True)).astype(np.float32)
    thresholds = choose(p, truth, rng.integers(0, 5, 20_000), Metric("mean_iou"), ["a", "b", "c"])
    assert thresholds is not None
    assert thresholds[0] == pytest.approx(thresholds[1])
    assert thresholds[2] < thresholds[1]


def test_without_a_pixel_that_counts_thresholds_stay_equal() -> None:
    nothing = np.empty((0, 2), np.float32), np.empty(0, np.int64), np.empty(0, np.int64)
    assert choose(*nothing, Metric("mean_iou"), _TWO) is None
    assert for_membranes(*nothing[:2], 1) == [(0.5, 0.5)]
    assert best_for_membranes([(0.9, 0.1), (0.8, 0.2)], np.zeros((2, 3), np.int64)) is None


@pytest.mark.parametrize(("membrane", "power"), [(0, 1.0), (2, 0.2), (2, 6.0)])
def test_thresholds_for_membranes_go_by_the_pixels_that_become_membranes(membrane: int, power: float) -> None:
    """However timid or bold the network: from half their true share to three times it, equal thresholds among them."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 2, 1], 40_000).astype(np.float64) ** power
    p /= p.sum(axis=1, keepdims=True)
    truth = np.where(rng.random(40_000) < 0.2, membrane, 1)
    tried = for_membranes(p.astype(np.float32), truth, membrane)
    shares = [((p / theta).argmax(axis=1) == membrane).mean() for theta in tried]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(0.1, abs=0.005)
    assert shares[-1] == pytest.approx(0.6, abs=0.01)
    assert len(tried) == 22
    assert len(for_membranes(p.astype(np.float32), truth, membrane, few=True)) == 12
    assert any(theta == pytest.approx((1 / 3,) * 3) for theta in tried)
    assert all(len({round(theta[c], 12) for c in range(3) if c != membrane}) == 1 for theta in tried)


def test_a_network_without_a_doubt_is_tried_at_few_thresholds() -> None:
    truth = np.arange(1000) % 4 == 0
    p = np.column_stack([~truth, truth]).astype(np.float32)
    tried = for_membranes(p, truth.astype(np.int64), 1)
    assert (0.5, 0.5) in tried
    assert len(tried) <= 3
    assert for_membranes(p, np.zeros(1000, np.int64), 1) == [(0.5, 0.5)]  # no membrane to go by


def test_of_thresholds_that_are_as_good_the_middle_is_taken() -> None:
    tried = [(1 - t, t) for t in np.linspace(0.9, 0.1, 9).round(3).tolist()]

    def pairs(scores: list[float]) -> np.ndarray:
        return np.array([[round(1e6 * s), 10**6, 10**6] for s in scores])

    assert best_for_membranes(tried, pairs([0.5] * 4 + [0.9] * 3 + [0.6] * 2)) == tried[5]
    assert best_for_membranes(tried, pairs([0.5] * 4 + [0.9] + [0.6] * 4)) is None
    assert best_for_membranes(tried, pairs([0.9] + [0.5] * 7 + [0.9005])) == tried[8]


def test_v_rand_has_its_own_thresholds(tmp_path: Path) -> None:
    """Membranes that are answered too timidly leave gaps; the thresholds close them."""
    rng = np.random.default_rng(0)
    membrane = np.zeros((64, 64), bool)
    membrane[::16], membrane[:, ::16] = True, True
    timid = np.where(membrane, rng.uniform(-4, 1, membrane.shape), -6.0).astype(np.float32)
    for folder, pixels in (("images", timid), ("masks", membrane.astype(np.uint8))):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "a.tif", pixels)
    classes = ClassMap(default_classes(2), {0: 0, 1: 1}, source="a test")
    spec = ModelSpec(classes=classes.classes, channels=1, activation="sigmoid", tile=16)
    validator = Validator(
        WindowReader(find_scenes(tmp_path), (0,), classes), spec,
        Metric.of("v_rand", spec.class_names, (0.9, 0.1)), Workers(), torch.device("cpu"), 4,
        lambda: torch.autocast("cpu", enabled=False),
    )  # fmt: skip
    theta = validator.thresholds(_Shrink(0))
    assert theta is not None
    assert theta[1] < 0.05
    equal, best = validator.in_scenes(_Shrink(0)).v_rand, validator.in_scenes(_Shrink(0), theta).v_rand
    assert equal is not None
    assert best is not None
    assert equal < 0.5 < 0.99 < best
    epoch = validator.after_epoch(_Shrink(0)).v_rand
    assert epoch is not None
    assert equal < epoch <= best
    assert "v_rand:class 1" in validator.rules(theta)["thresholds"]


def test_metrics_are_named_and_mistakes_too() -> None:
    names, shares = ("field", "road"), (0.9, 0.1)
    scores = Tally(1, 2, boundaries=True, membrane=1).scores(names)
    for text in (
        "mean_iou", "mean_dice", "accuracy", "mean_iou_per_image", "mean_dice_per_image", "v_rand",
        "v_rand:field", "iou:road", "dice:road",
    ):  # fmt: skip
        assert Metric.of(text, names, shares).value(scores) == 0
    assert np.isnan(Metric.of("boundary_f1", names, shares).value(scores))
    assert str(Metric.of("v_rand", names, shares)) == "v_rand:road"
    assert Metric.of("v_rand", names, (0.1, 0.9)).membrane(names) == 0
    for text, message in (
        ("mean_iuo", "the nearest is 'mean_iou'; there are mean_iou,"),
        ("iou", "write iou:CLASS, or mean_iou"),
        ("accuracy:road", "accuracy is of all classes"),
        ("iou:raod", "no class 'raod' among field, road; the nearest is 'road'"),
    ):
        with pytest.raises(UsageError, match=message):
            Metric.of(text, names, shares)
    with pytest.raises(UsageError, match="which class are membranes"):
        Metric.of("v_rand", ("a", "b", "c"), (0.3, 0.3, 0.4))
