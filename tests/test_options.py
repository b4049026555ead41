"""What each option promises, in this process: one plane, augmentation, side outputs, foreground, memory, self-check."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from made import ArrayRaster, make_plan, probabilities, summed
from networks import Constant, constant, contrasting, convolutional, identity
from PIL import Image as Picture
from reference import whole_image
from torch import nn

from raysegment.errors import InputError, ReadError, UsageError, WorkError
from raysegment.geometry import Block, Size, Window
from raysegment.inference import segmenter as segmenting
from raysegment.inference.assembly import Assembly, Shard
from raysegment.inference.blend import Blend, window
from raysegment.inference.foreground import Foreground, Layer
from raysegment.inference.image import Image, open_planned
from raysegment.inference.network import Network
from raysegment.inference.options import request_of
from raysegment.inference.outcome import ONE, labels_of
from raysegment.inference.plan import Plan
from raysegment.inference.resolve import _fitted, copy_dear_sources, planned
from raysegment.inference.scratch import MAX_ATTEMPTS, Scratch
from raysegment.inference.segmenter import Segmenter
from raysegment.inference.selfcheck import self_check
from raysegment.inference.sources import expand, place
from raysegment.inference.stitch import stitch
from raysegment.inference.worker import InferenceWorker
from raysegment.mask.store import MaskStore
from raysegment.model.model import Model
from raysegment.model.spec import ModelSpec, default_classes
from raysegment.raster.sampling import Sampling, sampled

BLENDS = st.sampled_from(["hann", "gaussian", "linear", "none"])
TILE, OVERLAP = 32, 8
BYTE = np.dtype(np.uint8)


@pytest.fixture(autouse=True, scope="module")
def no_fsync() -> Iterator[None]:
    """Nothing here is about power cuts, and thousands of records are written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


def noise(height: int, width: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def segmented(
    model: Model, plan: Plan, raster: Any, folder: Path, foreground: Foreground | None = None
) -> tuple[dict[str, np.ndarray], int]:
    """Everything that is written of the wanted region, through records and shards, and how many tiles were run."""
    scratch, segmenter, tiles = Scratch(folder), Segmenter(model, plan), 0
    for index, block in plan.blocks:
        record = segmenter.segment(raster, index, block, foreground).record
        scratch.save_record(plan.images[index].key, block, record)
        tiles += record.tiles
    return stitched(plan, scratch), tiles


def stitched(plan: Plan, scratch: Scratch) -> dict[str, np.ndarray]:
    """Shard by shard, from the records."""
    region, edge = plan.images[0].region, plan.block_edge(0)
    made: dict[str, np.ndarray] = {}
    for y, x in product(range(region.y, region.bottom, edge), range(region.x, region.right, edge)):
        shard = Window.between(y, x, min(y + edge, region.bottom), min(x + edge, region.right))
        for name, values in stitch(plan, 0, shard, scratch).items():
            whole = made.setdefault(name, np.empty((*values.shape[:-2], *region.size), values.dtype))
            whole[..., *shard.slices(region)] = values
    return made


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


# ── one plane instead of two ─────────────────────────────────────────────────────


@given(
    blend=BLENDS,
    thresholds=st.sampled_from([None, (0.5, 0.5), (0.3, 0.7), (0.9, 0.05), (0.1, 0.6)]),
    overlap=st.sampled_from([0, 8, 16]),
    seed=st.integers(0, 9),
)
@settings(max_examples=12)
def test_one_plane_says_what_two_say(
    tmp_path_factory: pytest.TempPathFactory,
    blend: Blend,
    thresholds: tuple[float, float] | None,
    overlap: int,
    seed: int,
) -> None:
    model, image = contrasting(2, seed), noise(75, 90, seed=seed)
    sides = {"probabilities": True, "uncertainty": True, "thresholds": thresholds}
    one, two = (
        segmented(
            model,
            make_plan(model, image, blend=blend, overlap=overlap, planes=planes, **sides),
            ArrayRaster(image),
            tmp_path_factory.mktemp(f"{planes}"),
        )[0]
        for planes in (1, 2)
    )
    p = whole_image(model, image, TILE, overlap, blend) / np.array(thresholds or (1, 1))[:, None, None]
    sure = np.abs(p[1] - p[0]) > 1e-5
    assert sure.mean() > 0.99
    assert np.array_equal(one["labels"][sure], two["labels"][sure])
    assert np.array_equal(one["labels"][sure], p.argmax(axis=0)[sure])
    for name in ("probabilities", "uncertainty"):
        assert np.abs(one[name].astype(int) - two[name]).max() <= 1


@given(blend=BLENDS, overlap=st.sampled_from([0, 8, 10, 16, 24]), size=st.integers(1, 110))
def test_a_network_that_cannot_tell_says_the_first_class(
    tmp_path_factory: pytest.TempPathFactory, blend: Blend, overlap: int, size: int
) -> None:
    """A tie is a tie at every pixel, wherever tiles overlap, however the weights were rounded."""
    spec = ModelSpec(classes=default_classes(2), channels=1)  # softmax of equal logits
    model, image = Model(Constant((0.0, 0.0)), spec), noise(size, 70)
    cells = -(-overlap // (TILE - overlap)) + 1
    for planes in (1, 2):
        plan = make_plan(model, image, blend=blend, overlap=overlap, planes=planes, cells_per_block=cells)
        made, _ = segmented(model, plan, ArrayRaster(image), tmp_path_factory.mktemp("tie"))
        assert not made["labels"].any()


@given(sum_=st.integers(0, ONE), first=st.integers(1, 20), second=st.integers(1, 20))
@settings(max_examples=200)
def test_the_label_of_one_plane_is_the_larger_share_of_its_threshold(
    sum_: int, first: int, second: int
) -> None:
    """Against exact fractions; what differs by less than a float32 can tell is a tie, and the first class."""
    border = Fraction(second, first + second) * ONE
    thresholds = (first / 20, second / 20)
    around = [sum_, *(int(border) + step for step in (-500, -1, 0, 500))]
    label = labels_of(np.array([[around]], np.int64).astype(np.int32), 2, thresholds, BYTE)[0]
    for value, got in zip(around, label, strict=True):
        if value <= border:
            assert got == 0
        elif value > border + 300:
            assert got == 1


# ── test-time augmentation ───────────────────────────────────────────────────────

FLIPS = [(1, 1), (1, -1), (-1, 1), (-1, -1)]


class Averaged:
    """A model of which every tile is asked in all its flips, and transposed too for d4: by NumPy, one by one."""

    def __init__(self, model: Model, tta: str) -> None:
        self.model, self.spec = model, model.spec
        self.transposes = (False, True) if tta == "d4" else (False,)

    def predict(self, tiles: np.ndarray) -> np.ndarray:
        answers = []
        for (y, x), transpose in product(FLIPS, self.transposes):
            view = tiles[:, ::y, ::x]
            view = view.transpose(0, 2, 1, 3) if transpose else view
            p = self.model.predict(np.ascontiguousarray(view)).astype(np.float64)
            p = p.transpose(0, 1, 3, 2) if transpose else p
            answers.append(p[:, :, ::y, ::x])
        assert len(answers) == (8 if len(self.transposes) == 2 else 4)
        return np.mean(answers, axis=0)


@given(tta=st.sampled_from(["flip", "d4"]), blend=BLENDS, planes=st.integers(1, 2), batch=st.integers(1, 3))
@settings(max_examples=8)
def test_augmented_is_the_mean_of_all_views_of_every_tile(
    tta: str, blend: Blend, planes: int, batch: int
) -> None:
    model, image = convolutional(channels=2, classes=2), noise(70, 45, 2)
    plan = make_plan(model, image, tta=tta, blend=blend, planes=planes, batch_size=batch)
    p = probabilities(summed(model, plan, image))
    want = whole_image(Averaged(model, tta), image, TILE, OVERLAP, blend)  # type: ignore[arg-type]
    assert np.abs(p[-1] - want[1]).max() <= 1e-5
    assert np.abs(want - whole_image(model, image, TILE, OVERLAP, blend)).max() > 0.01


def test_augmentation_multiplies_the_forward_passes() -> None:
    model, image, calls = convolutional(), noise(60, 80), 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model.module.register_forward_hook(count)
    plans = {tta: make_plan(model, image, tta=tta) for tta in ("none", "flip", "d4")}
    for views, plan in zip((1, 4, 8), plans.values(), strict=True):
        calls = 0
        summed(model, plan, image)
        assert calls == views * plan.tiles


@pytest.mark.parametrize("tta", ["flip", "d4"])
def test_a_network_that_knows_no_direction_answers_the_same(tta: str) -> None:
    model, image = convolutional(), noise(60, 80)
    with torch.no_grad():
        for layer in model.module:
            if isinstance(layer, nn.Conv2d):
                w = layer.weight
                turned = [w.rot90(k, (2, 3)) for k in range(4)]
                layer.weight.copy_(sum(t + t.flip(3) for t in turned) / 8)
    plain, augmented = (
        probabilities(summed(model, make_plan(model, image, tta=t), image)) for t in ("none", tta)
    )
    assert np.abs(plain - augmented).max() <= 1e-5


class Careless(nn.Module):
    """Works on its own input in place, and answers with a view of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(0.5)[:, :1]


@pytest.mark.parametrize("tta", ["none", "flip", "d4"])
def test_a_network_that_changes_its_input_spoils_no_other_view(tta: str) -> None:
    image, spec = noise(60, 80), identity().spec
    for model, share in ((identity(), 1.0), (Model(Careless(), spec), 0.5)):
        p = probabilities(summed(model, make_plan(model, image, tta=tta, planes=1), image))
        assert np.abs(p[0] - share * image[..., 0] / 255).max() <= 1e-6


# ── probabilities and uncertainty ────────────────────────────────────────────────


def disagreement(
    model: Model, image: np.ndarray, overlap: int, blend: Blend
) -> tuple[np.ndarray, np.ndarray]:
    """Σ_c of the weighted variance of what the tiles answer, float64 (h, w), and how many tiles count at a pixel."""
    height, width, _ = image.shape
    stride, half = TILE - overlap, overlap // 2
    rows, cols = -(-height // stride), -(-width // stride)
    pads = ((half, rows * stride + half - height), (half, cols * stride + half - width), (0, 0))
    padded = np.pad(image, pads, mode="reflect")
    weight = np.outer(window(blend, TILE, overlap), window(blend, TILE, overlap))
    tiles = []
    for y, x in product(range(0, rows * stride, stride), range(0, cols * stride, stride)):
        at = np.s_[y : y + TILE, x : x + TILE]
        answer = model.predict(np.ascontiguousarray(padded[None, *at]))[0].astype(np.float64)
        tiles.append((at, answer))
    total, count = np.zeros((2, *padded.shape[:2]))
    mean, variance = np.zeros((2, len(model.spec.classes), *padded.shape[:2]))
    for at, _ in tiles:
        total[at] += weight
        count[at] += weight > 0

    def share(at: Any) -> np.ndarray:
        return np.divide(weight, total[at], out=np.zeros_like(weight), where=weight > 0)

    for at, answer in tiles:
        mean[:, *at] += share(at) * answer
    for at, answer in tiles:
        variance[:, *at] += share(at) * (answer - mean[:, *at]) ** 2
    inside = np.s_[half : half + height, half : half + width]
    return variance.sum(axis=0)[inside], count[inside]


@given(
    blend=BLENDS,
    classes=st.integers(2, 4),
    overlap=st.sampled_from([0, 8, 16]),
    height=st.integers(1, 90),
    seed=st.integers(0, 9),
    planes=st.integers(1, 2),
)
@settings(max_examples=15)
def test_side_outputs_are_what_the_formulas_say(
    tmp_path_factory: pytest.TempPathFactory,
    blend: Blend,
    classes: int,
    overlap: int,
    height: int,
    seed: int,
    planes: int,
) -> None:
    model, image = contrasting(classes, seed), noise(height, 70, seed=seed)
    valid = np.random.default_rng(seed).random((height, 70)) > 0.1
    values = np.where(valid[..., None], image, 2).astype(np.uint8)
    plan = make_plan(
        model,
        image,
        blend=blend,
        overlap=overlap,
        probabilities=True,
        uncertainty=True,
        planes=1 if classes == 2 and planes == 1 else classes,
    )
    # 2 / 64 − 2 is not 0: what is not valid must enter as 0, which is 128 as stored
    image, seen = values, np.where(valid[..., None], values, 128).astype(np.uint8)
    made, _ = segmented(model, plan, ArrayRaster(image, valid), tmp_path_factory.mktemp("sides"))
    p = whole_image(model, seen, TILE, overlap, blend)
    got = made["probabilities"].astype(int)
    assert made["probabilities"].dtype == made["uncertainty"].dtype == np.uint8
    assert np.abs(got - 255 * p)[:, valid].max(initial=0) <= 0.51  # rounded, not cut off
    assert not got[:, ~valid].any()
    assert np.abs(got.sum(axis=0)[valid] - 255).max(initial=0) <= classes
    variance, count = disagreement(model, seen, overlap, blend)
    uncertainty = made["uncertainty"].astype(int)
    assert np.abs(uncertainty - 255 * np.minimum(1, 4 * variance))[valid].max(initial=0) <= 0.51
    assert not uncertainty[~valid].any()
    assert not uncertainty[count == 1].any()


@pytest.mark.parametrize(("classes", "planes"), [(2, 1), (2, 2), (3, 3)])
def test_networks_that_see_the_whole_tile_disagree(classes: int, planes: int, tmp_path: Path) -> None:
    model, image = contrasting(classes), noise(90, 90)
    image[:, 45:] //= 4
    plan = make_plan(model, image, uncertainty=True, overlap=16, planes=planes)
    made, _ = segmented(model, plan, ArrayRaster(image), tmp_path)
    variance, count = disagreement(model, image, 16, "hann")
    assert (made["uncertainty"][count > 1] > 10).mean() > 0.1
    assert np.abs(made["uncertainty"] - 255 * np.minimum(1, 4 * variance)).max() <= 0.51


def test_classes_that_are_certain_each_by_itself_disagree_as_well(tmp_path: Path) -> None:
    """Of sigmoids, Σ p² may reach the number of classes, and a fixed-point sum ends at two."""
    plain, image = contrasting(3), noise(90, 90)
    image[:, 45:] //= 4
    module = nn.Sequential(plain.module, nn.BatchNorm2d(3))
    nn.init.constant_(module[1].bias, 2.0)
    model = Model(module, plain.spec.model_copy(update={"activation": "sigmoid"}))
    plan = make_plan(model, image, uncertainty=True, overlap=16, planes=3)
    made, _ = segmented(model, plan, ArrayRaster(image), tmp_path)
    variance, _ = disagreement(model, image, 16, "hann")
    assert ((model.predict(image[None, :32, 30:62]) ** 2).sum(axis=1) > 2.2).any()
    assert (variance > 0.01).any()
    assert np.abs(made["uncertainty"] - 255 * np.minimum(1, 4 * variance)).max() <= 0.51


@given(cells=st.integers(2, 5), batch=st.integers(1, 4), tta=st.sampled_from(["none", "flip"]))
@settings(max_examples=8)
def test_side_outputs_do_not_depend_on_block_size(
    tmp_path_factory: pytest.TempPathFactory, cells: int, batch: int, tta: str
) -> None:
    """Batches of an elementwise network: whatever the batch, its answer is the same to the last bit."""
    model, image = identity(), noise(130, 150)
    valid = np.random.default_rng(3).random((130, 150)) > 0.1
    for planes in (1, 2):
        one, other = (
            segmented(
                model,
                make_plan(model, image, probabilities=True, uncertainty=True, planes=planes, tta=tta, **how),
                ArrayRaster(image, valid),
                tmp_path_factory.mktemp("sizes"),
            )[0]
            for how in ({"cells_per_block": 50}, {"cells_per_block": cells, "batch_size": batch})
        )
        assert equal(one, other)


@given(p=st.floats(0, 1, width=32), blend=BLENDS, overlap=st.sampled_from([8, 16]))
@settings(max_examples=10)
def test_tiles_that_agree_leave_no_uncertainty(
    tmp_path_factory: pytest.TempPathFactory, p: float, blend: Blend, overlap: int
) -> None:
    model, image = constant((1 - p, p)), noise(70, 70)
    plan = make_plan(model, image, blend=blend, overlap=overlap, uncertainty=True)
    made, _ = segmented(model, plan, ArrayRaster(image), tmp_path_factory.mktemp("agree"))
    assert not made["uncertainty"].any()


# ── foreground ───────────────────────────────────────────────────────────────────


@st.composite
def foregrounds(draw: Any) -> tuple[Size, Foreground, np.ndarray | None]:
    """An image's size, random grids over it, and where it has data."""
    size = Size(draw(st.integers(1, 150)), draw(st.integers(1, 150)))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    layers = []
    for _ in range(draw(st.integers(1, 2))):
        length = Size(draw(st.integers(1, 200)), draw(st.integers(1, 200)))
        cell = Size(draw(st.integers(1, 60)), draw(st.integers(1, 60)))
        grid = rng.random([-(-n // c) for n, c in zip(length, cell, strict=True)]) < draw(
            st.sampled_from([0.05, 0.3, 0.9])
        )
        layers.append(Layer(grid, length, cell))
    valid = None
    if draw(st.booleans()):
        coarse = rng.random((-(-size.height // 20), -(-size.width // 20))) < 0.6
        valid = coarse.repeat(20, 0).repeat(20, 1)[: size.height, : size.width]
    return size, Foreground(size, tuple(layers), 0.5), valid


@given(case=foregrounds(), cells=st.integers(2, 4), blend=BLENDS)
@settings(max_examples=25)
def test_skipping_changes_no_foreground_pixel(
    tmp_path_factory: pytest.TempPathFactory,
    case: tuple[Size, Foreground, np.ndarray | None],
    cells: int,
    blend: Blend,
) -> None:
    size, foreground, valid = case
    model, image = convolutional(classes=2), noise(*size)
    options = {"blend": blend, "cells_per_block": cells, "probabilities": True, "uncertainty": True}
    whole = make_plan(model, image, **options)
    raster = ArrayRaster(image, valid)
    everything, all_tiles = segmented(model, whole, raster, tmp_path_factory.mktemp("all"))
    skipping = make_plan(model, image, skip=True, **options)
    made, run = segmented(model, skipping, raster, tmp_path_factory.mktemp("some"), foreground)

    seen = foreground.pixels(Window(y=0, x=0, height=size.height, width=size.width))
    counts = np.ones(size, bool) if seen is None else seen
    counts = counts if valid is None else counts & valid
    assert np.array_equal(made["labels"] == 255, ~counts)
    for name, values in made.items():
        assert np.array_equal(values[..., counts], everything[name][..., counts])
    assert not made["probabilities"][:, ~counts].any()
    assert not made["uncertainty"][~counts].any()
    grid, image_window = whole.grids[0], Window(y=0, x=0, height=size.height, width=size.width)
    needed = sum(
        bool(counts[grid.tile_window(r, c).intersect(image_window).slices()].any())
        for r, c in product(range(grid.y.cells), range(grid.x.cells))
    )
    assert (all_tiles, run) == (whole.tiles, needed)


class Untouchable(ArrayRaster):
    """Pixels of the right half must not be looked at."""

    def read(self, window: Window, level: int = 0) -> np.ndarray:
        if window.right > self.shape[1] // 2:
            raise AssertionError(f"{window} was read")
        return super().read(window, level)


def test_a_block_of_background_alone_is_never_read(tmp_path: Path) -> None:
    image, model = noise(100, 480), identity()
    there = np.zeros((1, 48), bool)
    there[:, :16] = True
    foreground = Foreground(Size(100, 480), (Layer(there, Size(100, 480), Size(100, 10)),), 1 / 3)
    plan = make_plan(model, image, skip=True)  # blocks of 72 px
    made, run = segmented(model, plan, Untouchable(image), tmp_path, foreground)
    assert np.array_equal(made["labels"], np.where(np.arange(480) < 160, image[..., 0] > 127, 255))
    assert run == 5 * 7  # tiles begin at 24 k − 4: the first seven reach into what is left of 160
    with pytest.raises(AssertionError, match="was read"):
        segmented(model, plan, Untouchable(image), tmp_path, None)


# ── the model's nodata ───────────────────────────────────────────────────────────

WHOLE = Window(y=0, x=0, height=90, width=120)


def with_holes(kind: str, value: float) -> tuple[np.ndarray, np.ndarray]:
    """An image of two channels (one in a picture), and where all of them are `value`, or NaN."""
    pixels = noise(WHOLE.height, WHOLE.width, 1 if kind == "png" else 2).astype(
        np.float32 if kind == "float" else np.uint8
    )
    pixels[pixels == value] += 1
    pixels[:40, :50] = value
    holes = np.zeros(WHOLE.size, bool)
    holes[:40, :50] = True
    if pixels.shape[2] == 2:
        pixels[60:80, 60:100, 0] = value  # one of two bands: still a measurement
    if kind == "float":
        pixels[80:, 100:] = np.nan
        holes[80:, 100:] = True
    return pixels, holes


def write_as(kind: str, folder: Path, pixels: np.ndarray, own: int | None = None) -> Path:
    if kind == "png":
        Picture.fromarray(pixels[..., 0]).save(folder / "scene.png")
        return folder / "scene.png"
    if kind == "zarr":
        zarr.save_array(folder / "scene.zarr", np.moveaxis(pixels, 2, 0), zarr_format=3)
        return folder / "scene.zarr"
    tags = [] if own is None else [(42113, 2, 0, str(own), True)]
    options: Any = {"planarconfig": "contig", "photometric": "minisblack", "extrasamples": [0]}
    tifffile.imwrite(
        folder / "scene.tif",
        pixels,
        tile=(32, 32),
        extratags=tags,
        metadata=None,
        compression="zlib",
        **options,
    )
    return folder / "scene.tif"


def segmented_file(model: Model, source: Path, folder: Path, **asked: Any) -> tuple[np.ndarray, int]:
    """The labels of a file as `infer` opens it and a worker opens it again, and how many tiles were run."""
    image = Image.open(source, folder / "mask.zarr", request_of(asked), model.spec, None)
    scratch = Scratch(folder / "scratch")
    plan = make_plan(model, noise(*image.view.shape), images=(planned(image, TILE, OVERLAP),))
    plan = copy_dear_sources(plan, [image], scratch)
    made, run = segmented(
        model, plan, open_planned(plan.images[0], scratch), folder / "records", image.foreground
    )
    return made["labels"], run


@pytest.mark.parametrize("kind", ["tiff", "float", "zarr", "png", "copied"])
def test_the_model_s_nodata_holds_where_the_image_says_none(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "copied":
        monkeypatch.setattr("raysegment.inference.resolve.is_dear", lambda *_: True)
    pixels, holes = with_holes(kind, 7)
    source = write_as(kind, tmp_path, pixels)
    model = convolutional(channels=pixels.shape[2], nodata=7)
    labels, _ = segmented_file(model, source, tmp_path)
    assert np.array_equal(labels == 255, holes)
    seen = np.where(holes[..., None], 128, pixels)  # 128 / 64 − 2 is 0: so nodata enters the network
    p = whole_image(model, seen, TILE, OVERLAP, "hann")
    assert np.array_equal(labels[~holes], p.argmax(axis=0)[~holes])
    assert (tmp_path / "scratch" / "copies").exists() == (kind == "copied")


@pytest.mark.parametrize(("own", "said"), [(9, 7), (None, -9999), (None, 7.5), (None, None)])
def test_the_image_s_own_nodata_wins_and_what_no_pixel_holds_is_none(
    own: int | None, said: float | None, tmp_path: Path
) -> None:
    pixels, _ = with_holes("tiff", 7)
    pixels[50:60] = 9
    source = write_as("tiff", tmp_path, pixels, own)
    labels, _ = segmented_file(convolutional(channels=2, nodata=said), source, tmp_path)
    assert np.array_equal(labels == 255, (pixels == 9).all(axis=2) & (own == 9))


def test_the_model_s_nodata_is_skipped_resampled_and_in_no_tile_that_is_not_stored(tmp_path: Path) -> None:
    pixels, holes = with_holes("tiff", 7)
    model, source = convolutional(channels=2, nodata=7), write_as("tiff", tmp_path, pixels)
    everything, every_tile = segmented_file(model, source, tmp_path / "all")
    skipping, fewer = segmented_file(model, source, tmp_path / "auto", foreground="auto")
    assert np.array_equal(everything, skipping)
    assert fewer < every_tile
    half = Image.open(source, tmp_path / "m.zarr", request_of({}), model.spec, None)
    view = sampled(half.stored, Sampling(level=0, size=Size(45, 60)))
    window = Window(y=0, x=0, height=45, width=60)
    valid = view.valid(window, view.read(window))
    assert valid is not None
    assert np.array_equal(~valid, holes[::2, ::2])
    # what a file leaves out is 0 unless the file itself says otherwise
    sparse, there = tmp_path / "sparse.tif", np.full((32, 32), 3, np.uint8)
    options: Any = {"photometric": "minisblack", "tile": (32, 32), "metadata": None, "dtype": np.uint8}
    tifffile.imwrite(sparse, iter([there, None, None, None]), shape=(64, 64), **options)
    image = Image.open(sparse, tmp_path / "m.zarr", request_of({}), identity(nodata=7).spec, None)
    assert np.unique(image.stored.read(Window(y=0, x=0, height=64, width=64))).tolist() == [0, 3]


# ── what cannot be done ──────────────────────────────────────────────────────────


class Broken(ArrayRaster):
    """Chunks of 20 × 30 px, of which some cannot be read."""

    def __init__(self, pixels: np.ndarray, broken: list[tuple[int, int]]) -> None:
        super().__init__(pixels)
        self.chunk, self.chunks, self.broken = Size(20, 30), (Size(20, 30),), broken

    def lost(self) -> np.ndarray:
        lost = np.zeros(self.shape[:2], bool)
        for row, col in self.broken:
            lost[20 * row : 20 * row + 20, 30 * col : 30 * col + 30] = True
        return lost

    def read(self, window: Window, level: int = 0) -> np.ndarray:
        if self.lost()[window.slices()].any():
            raise ReadError(f"{window} is broken")
        return super().read(window, level)


def test_what_cannot_be_read_is_nodata_at_every_block_size(tmp_path: Path) -> None:
    image, model = noise(150, 200), convolutional()
    raster = Broken(image, [(2, 1), (2, 2), (7, 6)])
    plan = make_plan(model, image, on_error="skip", probabilities=True, uncertainty=True)
    made, _ = segmented(model, plan, raster, tmp_path / "3")
    other, _ = segmented(
        model,
        make_plan(model, image, on_error="skip", probabilities=True, uncertainty=True, cells_per_block=2),
        raster,
        tmp_path / "2",
    )
    assert equal(made, other)
    assert np.array_equal(made["labels"] == 255, raster.lost())
    undamaged, _ = segmented(model, plan, ArrayRaster(image), tmp_path / "whole")
    reach = np.zeros((150, 200), bool)
    inside = Window(y=0, x=0, height=150, width=200)
    grid = plan.grids[0]
    for row, col in product(range(grid.y.cells), range(grid.x.cells)):
        at = grid.tile_window(row, col).intersect(inside).slices()
        if raster.lost()[at].any():
            reach[at] = True
    assert 0.1 < reach.mean() < 0.9
    assert np.array_equal(made["labels"][~reach], undamaged["labels"][~reach])
    failing = make_plan(model, image)
    with pytest.raises(ReadError, match="is broken"):
        segmented(model, failing, raster, tmp_path / "fail")


def actor(model: Model, plan: Plan, raster: Any, folder: Path) -> InferenceWorker:
    """A worker without Ray."""
    scratch = Scratch(folder)
    worker = InferenceWorker(plan, "no file", scratch)
    worker._segmenter = Segmenter(model, plan)
    worker._images[0] = raster, None
    return worker


def test_a_model_that_was_replaced_meanwhile_is_no_images_fault(tmp_path: Path) -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    plan, path = make_plan(identity(channels=3), image), tmp_path / "model.safetensors"
    path.write_bytes(b"another than the plan's")
    worker = InferenceWorker(plan, str(path), Scratch(tmp_path / "scratch"))
    for index, block in plan.blocks[:2]:  # the second says the same as the first
        row = worker.segment(index, block.row, block.col)
        assert row["of_run"]
        assert "is another model than at the start of this run" in row["error"]


def errors_of(worker: InferenceWorker) -> list[str]:
    """Have every block segmented, one after the other; what went wrong."""
    found = []
    for index, block in worker.plan.blocks:
        found.append(worker.segment(index, block.row, block.col)["error"])
    return [error for error in found if error]


class NanAtMarker(nn.Module):
    """The first channel, but NaN everywhere where it is 1 anywhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, torch.nan) if (x == 1).any() else x / 2


@pytest.mark.parametrize("kind", ["inf", "nan"])
def test_a_block_that_cannot_be_answered_is_named_or_lost(kind: str, tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((150, 150, 1), np.float32) * 0.9
    spec = ModelSpec(classes=default_classes(2), channels=1, activation="none")
    model = Model(NanAtMarker(), spec)
    undamaged, _ = segmented(model, make_plan(model, image), ArrayRaster(image), tmp_path / "whole")
    image[100, 10] = np.inf if kind == "inf" else 1
    failing = make_plan(model, image)
    named = errors_of(actor(model, failing, ArrayRaster(image), tmp_path / "fail"))
    assert len(named) == 1
    assert "block 1,0" in named[0]
    assert "\n" not in named[0]
    plan = make_plan(model, image, on_error="skip")
    worker = actor(model, plan, ArrayRaster(image), tmp_path / "skip")
    assert not errors_of(worker)
    lost = np.zeros((150, 150), bool)
    extent = plan.grids[0].extent(Block(1, 0))
    assert extent == Window.between(68, 0, 148, 76)
    lost[extent.slices()] = True
    made = stitched(plan, worker.scratch)["labels"]
    assert np.array_equal(made == 255, lost)
    assert np.array_equal(made[~lost], undamaged["labels"][~lost])
    assert "block 1,0" in worker.scratch.open_record(plan.images[0].key, Block(1, 0)).failed


def test_a_block_that_took_its_worker_down_too_often_is_not_tried_again(tmp_path: Path) -> None:
    image, model = noise(150, 150), identity()
    for on_error in ("skip", "fail"):
        plan = make_plan(model, image, on_error=on_error)
        worker = actor(model, plan, ArrayRaster(image), tmp_path / on_error)
        for _ in range(MAX_ATTEMPTS):
            worker.scratch.count_attempt(plan.images[0].key, Block(0, 1))
        errors = errors_of(worker)
        assert bool(errors) == (on_error == "fail")
        if errors:
            assert re.fullmatch(r"block 0,1 of memory took its worker down 3 times.*", errors[0])
        else:
            assert (
                worker.scratch.open_record(plan.images[0].key, Block(0, 1)).failed
                == "took its worker down 3 times"
            )


# ── memory ───────────────────────────────────────────────────────────────────────


class Limited(nn.Module):
    """Does not fit into memory above a batch of `most`; says what it was given."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.seen = most, list[int]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("no room")
        return x[:, :1]


def test_a_batch_that_does_not_fit_is_halved_for_good(tmp_path: Path) -> None:
    image, spec = noise(150, 150), identity().spec
    network = Limited(2)
    model = Model(network, spec)
    plan = make_plan(model, image, batch_size=8)
    worker = actor(model, plan, ArrayRaster(image), tmp_path / "8")
    assert not errors_of(worker)
    assert network.seen[:2] == [8, 4]
    assert set(network.seen[2:]) == {2}
    assert worker.scratch.batch_limit(8) == 2
    assert worker.scratch.batch_limit(1) == 1
    again = InferenceWorker(plan, "no file", worker.scratch)
    assert again.scratch.batch_limit(plan.batch_size) == 2
    two, _ = segmented(model, make_plan(model, image, batch_size=2), ArrayRaster(image), tmp_path / "2")
    assert equal(stitched(plan, worker.scratch), two)


def test_a_block_that_does_not_fit_beside_others_waits_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, model = noise(70, 70), identity()
    plan = make_plan(model, image)
    hold, fails = Network.hold, [True, False]

    def crowded(network: Network, seen: Any) -> Any:
        if fails and fails.pop(0):
            raise torch.OutOfMemoryError("no room")
        return hold(network, seen)

    monkeypatch.setattr(Network, "hold", crowded)
    worker = actor(model, plan, ArrayRaster(image), tmp_path / "once")
    assert not errors_of(worker)
    assert not fails
    fails += [True] * 100
    worker = actor(model, plan, ArrayRaster(image), tmp_path / "always")
    assert set(map(str, errors_of(worker))) >= {
        "block 0,0 does not fit into the device's memory: choose a smaller --block"
    }


def test_sums_that_do_not_fit_are_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    image, model = noise(40, 40), identity()
    monkeypatch.setattr(Segmenter, "sums", full)
    with pytest.raises(WorkError, match=r"^block 0,0 does not fit .*--block$"):
        segmented(model, make_plan(model, image), ArrayRaster(image), tmp_path)


def test_a_worker_whose_gpu_fails_makes_room_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class AcceleratorError(RuntimeError):
        """As torch has one since 2.8."""

    def broken(*_: Any) -> Any:
        raise AcceleratorError("CUDA error: an illegal memory access was encountered")

    def leave(code: int) -> Any:
        raise SystemExit(code)

    image, model = noise(70, 70), identity()
    monkeypatch.setattr(torch, "AcceleratorError", AcceleratorError, raising=False)
    monkeypatch.setattr("raysegment.inference.worker.os._exit", leave)
    monkeypatch.setattr(Network, "hold", broken)
    worker = actor(model, make_plan(model, image), ArrayRaster(image), tmp_path)
    with pytest.raises(SystemExit, match="1"):
        worker.segment(0, 0, 0)
    assert "illegal memory access" in capsys.readouterr().err


def test_a_tile_that_never_fits_is_one_clear_line(tmp_path: Path) -> None:
    image = noise(40, 40)
    model = Model(Limited(0), identity().spec)
    with pytest.raises(WorkError, match=r"^one tile in block 0,0 does not fit .*--tile$"):
        segmented(model, make_plan(model, image, batch_size=4), ArrayRaster(image), tmp_path)


@given(
    memory=st.integers(100 << 20, 3000 << 20),
    tile=st.sampled_from([256, 512, 1024]),
    cells=st.integers(2, 40),
    activations=st.integers(0, 500 << 20),
    weights=st.integers(0, 50 << 20),
)
@settings(max_examples=60)
def test_blocks_shrink_to_what_memory_holds_or_the_least_is_named(
    memory: int, tile: int, cells: int, activations: int, weights: int
) -> None:
    image = np.broadcast_to(np.uint16(0), (90_000, 90_000, 4))
    model = convolutional(channels=4)
    network = {"activations": activations, "weights": weights}
    asked = make_plan(model, image, tile=tile, overlap=tile // 8, cells_per_block=cells, **network)
    todo: Any = [SimpleNamespace(view=ArrayRaster(np.zeros((1, 1, 1), np.uint16)))]

    def size(plan: Plan) -> int:
        return plan.worker_bytes(2)

    def made(cells: int, frugal: bool = False) -> Plan:
        image = asked.images[0].model_copy(update={"cells_per_block": cells})
        return asked.model_copy(update={"images": (image,), "frugal": frugal})

    try:
        plan = _fitted(asked, todo, memory)
    except UsageError as e:
        named = re.search(r"the least that works is (\d+)M", str(e))
        assert named is not None
        assert int(named[1]) * 10**6 > memory
        plan = _fitted(asked, todo, int(named[1]) * 10**6)
        least = size(made(2, frugal=True))
        assert 1.04 < int(named[1]) * 10**6 / least < 1.15  # measured a little otherwise, it fits
        assert size(plan) <= int(named[1]) * 10**6
        return
    used = plan.images[0].cells_per_block
    assert size(plan) <= memory
    assert used == cells or size(made(used + 1, plan.frugal)) > memory
    assert not plan.frugal or size(made(2)) > memory
    assert plan == made(used, plan.frugal)


# ── names ────────────────────────────────────────────────────────────────────────


def test_several_images_become_a_folder_of_masks(tmp_path: Path) -> None:
    for name in ("b.tif", "a.tif", "slide.ome.tif"):
        (tmp_path / name).touch()
    found = expand([str(tmp_path / "*.tif")])
    assert [Path(p).name for p in found] == ["a.tif", "b.tif", "slide.ome.tif"]
    placed = [out for _, out in place(found, tmp_path / "masks")]
    assert placed == [tmp_path / "masks" / f"{stem}.zarr" for stem in ("a", "b", "slide")]
    with pytest.raises(InputError, match=r"\*\.jp2 matches no file"):
        expand([str(tmp_path / "*.jp2")])
    with pytest.raises(UsageError, match=r"would both become a\.zarr"):
        place([tmp_path / "a.tif", tmp_path / "other" / "a.tif"], tmp_path / "masks")
    with pytest.raises(UsageError, match="one mask for 2 images"):
        place(found[:2], tmp_path / "mask.zarr")


@pytest.mark.parametrize("name", ["masks_v1.2", "2026.11", "run.final"])
def test_a_new_folder_may_have_a_dot(name: str, tmp_path: Path) -> None:
    placed = place([str(tmp_path / "a.tif"), str(tmp_path / "b.tif")], tmp_path / name)
    assert [out for _, out in placed] == [tmp_path / name / "a.zarr", tmp_path / name / "b.zarr"]


@pytest.mark.parametrize("name", ["mask.png", "mask.JPG", "mask.ZARR", "mask.npy", "mask.gpkg"])
def test_a_mask_of_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"name it \*\.zarr"):
        place([str(tmp_path / "a.tif")], tmp_path / name)
    (tmp_path / name).mkdir()
    assert place([str(tmp_path / "a.tif")], tmp_path / name)[0][1] == tmp_path / name / "a.zarr"


# ── self-check ───────────────────────────────────────────────────────────────────


@given(
    blend=BLENDS,
    overlap=st.sampled_from([0, 8, 16]),
    height=st.integers(1, 260),
    width=st.integers(1, 260),
    how=st.sampled_from([{}, {"tta": "d4"}, {"batch_size": 3}, {"skip": True}, {"on_error": "skip"}]),
    side=st.booleans(),
    margin=st.sampled_from([0, 3]),
    crop=st.booleans(),
)
@settings(max_examples=10)
def test_a_sound_plan_passes_its_self_check(
    blend: Blend,
    overlap: int,
    height: int,
    width: int,
    how: dict[str, Any],
    side: bool,
    margin: int,
    crop: bool,
) -> None:
    model, image = identity(margin=margin), noise(height, width, 1)
    region = (
        Window.between(height // 3, width // 4, height, width)
        if crop
        else Window.between(0, 0, height, width)
    )
    plan = make_plan(
        model, image, blend=blend, overlap=overlap, uncertainty=side, region=region, cells_per_block=2, **how
    )
    self_check(plan)


@pytest.mark.parametrize("spoil", ["constant", "ramp"])
def test_a_spoilt_weight_fails_the_self_check(spoil: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = segmenting.weights

    def spoilt(axis: Any, k: int, blend: Blend) -> np.ndarray:
        w = sound(axis, k, blend).copy()
        if spoil == "constant" and k == 1:
            w[-1] += 3e-6  # one row of one tile, by a hair
        if spoil == "ramp":
            w = np.roll(w, 1)
            w[0] = sound(axis, k, blend)[0]
        return w

    model, image = identity(), noise(200, 170)
    monkeypatch.setattr(segmenting, "weights", spoilt)
    with pytest.raises(WorkError, match=r"self-check: a .* comes back"):
        self_check(make_plan(model, image))


# ── what is written when ─────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("said", "meant"),
    [("600M", 600 * 10**6), ("1.5 GB", 1500 * 10**6), ("2GiB", 2 << 30), ("4096", 4096), (4096, 4096)],
)
def test_memory_is_said_as_people_say_it(said: str | int, meant: int) -> None:
    assert request_of({"max_memory": said}).max_memory == meant


@pytest.mark.parametrize("said", ["much", "0", "-1G", "1Q", "G"])
def test_memory_that_is_no_size_is_refused(said: str) -> None:
    with pytest.raises(UsageError, match=f"--max-memory '{said}'"):
        request_of({"max_memory": said})


@given(data=st.data())
@settings(max_examples=40)
def test_a_shard_is_released_once_all_that_it_is_made_of_is_there(data: Any) -> None:
    height, width = data.draw(st.integers(1, 6000)), data.draw(st.integers(1, 6000))
    tile, overlap = data.draw(st.sampled_from([(256, 0), (256, 64), (256, 160), (512, 64)]))
    cells = -(-overlap // (tile - overlap)) + data.draw(st.integers(1, 8))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    region = Window.between(
        top, left, data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    )
    model = identity()
    plan = make_plan(
        model,
        np.broadcast_to(np.uint8(0), (height, width, 1)),
        tile=tile,
        overlap=overlap,
        cells_per_block=cells,
        region=region,
    )
    store = MaskStore(Path("none"), region.size, BYTE, plan.block_edge(0))
    assembly, grid, edge = Assembly(plan, 0, store), plan.grids[0], store.shard
    sizes = store.level_shapes
    order = data.draw(st.randoms(use_true_random=False))
    blocks = [block for _, block in plan.blocks]
    order.shuffle(blocks)

    def made_of(shard: Shard) -> tuple[set[Block], set[Shard]]:
        """By brute force: the blocks with a tile that reaches into it, and the shards a level above under it."""
        at = assembly.window(shard)
        if shard.level:
            under = Window.between(2 * at.y, 2 * at.x, 2 * at.bottom, 2 * at.right)
            above = sizes[shard.level - 1]
            parts = product(range(-(-above.height // edge)), range(-(-above.width // edge)))
            return set(), {
                Shard(0, shard.level - 1, r, c)
                for r, c in parts
                if Window(y=r * edge, x=c * edge, height=edge, width=edge).intersect(under).area
            }
        wanted = Window(y=at.y + region.y, x=at.x + region.x, height=at.height, width=at.width)
        tiles = product(range(grid.y.cells), range(grid.x.cells))
        return {
            Block(r // cells, c // cells) for r, c in tiles if grid.tile_window(r, c).intersect(wanted).area
        }, set()

    there: set[Block] = set()
    written: set[Shard] = set()
    ready: list[Shard] = []
    released: list[Shard] = []
    while blocks or ready:
        if blocks and (not ready or order.random() < 0.5):
            there.add(block := blocks.pop())
            new = assembly.done(block)
        else:
            shard = ready.pop(order.randrange(len(ready)))
            written.add(shard)
            new = assembly.written(shard)
        for shard in new:
            reaching, parts = made_of(shard)
            assert reaching <= there
            assert parts <= written
        ready += new
        released += new
        assert assembly.is_finished == (len(written) == sum(len(store.shards(n)) for n in range(len(sizes))))
    assert len(set(released)) == len(released)
    assert {(s.level, assembly.window(s)) for s in released} == {
        (n, w) for n in range(len(sizes)) for w in store.shards(n)
    }
    assert assembly.is_finished
