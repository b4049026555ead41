"""What tiling and stitching promise, as properties, against the plain way in float64; no Ray yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import ArrayRaster, make_plan, probabilities, summed
from networks import constant, convolutional, identity
from reference import whole_image

from raysegment.errors import AnswerError, InputError, UsageError, WorkError
from raysegment.geometry import Window
from raysegment.inference.outcome import labels_of
from raysegment.inference.plan import Plan
from raysegment.inference.request import Request, choose_cells, choose_tile
from raysegment.inference.scratch import Scratch
from raysegment.inference.segmenter import Segmenter
from raysegment.inference.stitch import stitch
from raysegment.model.model import Model
from raysegment.model.spec import ModelSpec, default_classes

BLENDS = st.sampled_from(["hann", "gaussian", "linear", "none"])


def noise(height: int, width: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def stitched(
    model: Model, plan: Plan, image: np.ndarray, folder: Path, valid: np.ndarray | None = None
) -> np.ndarray:
    """The labels of the wanted region: segmented block by block, stitched shard by shard, in this process."""
    scratch, segmenter, raster = Scratch(folder), Segmenter(model, plan), ArrayRaster(image, valid)
    for index, block in plan.blocks:
        scratch.save_record(plan.images[index].key, block, segmenter.segment(raster, index, block).record)
    region, edge = plan.images[0].region, plan.block_edge(0)
    mask = np.empty(region.size, plan.label_dtype)
    for y in range(region.y, region.bottom, edge):
        for x in range(region.x, region.right, edge):
            shard = Window.between(y, x, min(y + edge, region.bottom), min(x + edge, region.right))
            mask[shard.slices(region)] = stitch(plan, 0, shard, scratch)["labels"]
    return mask


@given(
    blend=BLENDS,
    height=st.sampled_from([1, 7, 31, 32, 33, 63, 101]),
    width=st.sampled_from([1, 7, 31, 32, 33, 63, 101]),
    overlap=st.sampled_from([0, 2, 8, 16, 24]),
)
def test_a_constant_stays_that_constant(blend: str, height: int, width: int, overlap: int) -> None:
    model = constant((0.3, 0.7))
    image = noise(height, width)
    cells = -(-overlap // (32 - overlap)) + 1
    plan = make_plan(model, image, blend=blend, overlap=overlap, cells_per_block=cells)
    p = probabilities(summed(model, plan, image))
    assert np.abs(p - np.array([0.3, 0.7])[:, None, None]).max() <= 1e-6


@given(blend=BLENDS, height=st.integers(1, 100), width=st.integers(1, 100), seed=st.integers(0, 9))
def test_it_equals_every_tile_blended_in_float64(blend: str, height: int, width: int, seed: int) -> None:
    model = convolutional(channels=2)
    image = noise(height, width, 2, seed)
    plan = make_plan(model, image, blend=blend)
    p = probabilities(summed(model, plan, image))
    assert np.abs(p - whole_image(model, image, 32, 8, blend)).max() <= 1e-5  # type: ignore[arg-type]


def test_the_ramp_comes_back_at_every_blend() -> None:
    image = np.broadcast_to(np.arange(120, dtype=np.uint8)[None, :, None], (90, 120, 1)).copy()
    model = identity()
    for blend in ("hann", "gaussian", "linear", "none"):
        plan = make_plan(model, image, blend=blend)
        p = probabilities(summed(model, plan, image))
        assert np.abs(p[1] - image[..., 0] / 255).max() <= 1e-6


@given(
    cells=st.integers(2, 6),
    batch=st.integers(1, 5),
    blend=BLENDS,
    height=st.integers(1, 160),
    width=st.integers(1, 160),
)
@settings(max_examples=20)
def test_sums_do_not_depend_on_block_size(
    cells: int, batch: int, blend: str, height: int, width: int
) -> None:
    model, image = identity(), noise(height, width)
    one = summed(model, make_plan(model, image, blend=blend, cells_per_block=50), image)
    other = summed(
        model, make_plan(model, image, blend=blend, cells_per_block=cells, batch_size=batch), image
    )
    assert np.array_equal(one, other)


@given(st.data())
@settings(max_examples=20)
def test_stitched_labels_are_the_argmax_of_all_sums(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    overlap = data.draw(st.sampled_from([0, 8, 16, 24]))
    cells = -(-overlap // (32 - overlap)) + data.draw(st.integers(1, 3))
    image = noise(data.draw(st.integers(1, 140)), data.draw(st.integers(1, 140)))
    model = convolutional()
    plan = make_plan(model, image, overlap=overlap, cells_per_block=cells, blend=data.draw(BLENDS))
    mask = stitched(model, plan, image, tmp_path_factory.mktemp("scratch"))
    assert np.array_equal(mask, summed(model, plan, image).argmax(axis=0))


@given(st.data())
@settings(max_examples=20)
def test_a_region_is_the_whole_mask_cropped(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    image, model = noise(150, 170), convolutional()
    y, x = data.draw(st.integers(0, 149)), data.draw(st.integers(0, 169))
    region = Window.between(y, x, data.draw(st.integers(y + 1, 150)), data.draw(st.integers(x + 1, 170)))
    whole = make_plan(model, image)
    part = make_plan(model, image, region=region)
    want = stitched(model, whole, image, tmp_path_factory.mktemp("whole"))[region.slices()]
    assert np.array_equal(stitched(model, part, image, tmp_path_factory.mktemp("part")), want)
    assert part.tiles <= whole.tiles


def test_every_tile_is_forwarded_once_at_every_block_size() -> None:
    image = noise(200, 150)
    calls = 0
    model = convolutional()

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model.module.register_forward_hook(count)
    for cells in (2, 3, 5, 40):
        calls = 0
        plan = make_plan(model, image, cells_per_block=cells)
        summed(model, plan, image)
        assert calls == plan.tiles == -(-200 // 24) * -(-150 // 24)


def test_unpadded_networks_see_real_pixels_around_the_tile() -> None:
    image = noise(90, 110)
    model = identity(margin=5)
    plan = make_plan(model, image, tile=32, overlap=8)
    p = probabilities(summed(model, plan, image))
    assert np.abs(p[1] - image[..., 0] / 255).max() <= 1e-6


def test_no_blend_with_enough_overlap_is_the_network_on_the_whole_mirrored_image() -> None:
    image, model = noise(70, 90), convolutional()  # receptive radius 3
    plan = make_plan(model, image, blend="none", overlap=8)
    padded = np.pad(image, ((40, 40), (40, 40), (0, 0)), mode="reflect")
    whole = model.predict(padded[None])[0][:, 40:-40, 40:-40]
    assert np.abs(probabilities(summed(model, plan, image)) - whole).max() <= 1e-5


def test_nodata_is_nodata_and_enters_as_zero(tmp_path: Path) -> None:
    image, model = noise(100, 100), convolutional()
    valid = np.random.default_rng(1).random((100, 100)) > 0.2
    plan = make_plan(model, image)
    mask = stitched(model, plan, image, tmp_path / "a", valid)
    assert np.array_equal(mask == 255, ~valid)
    changed = np.where(valid[..., None], image, 99).astype(np.uint8)
    assert np.array_equal(stitched(model, plan, changed, tmp_path / "b", valid), mask)


def test_a_region_of_three_classes_with_thresholds(tmp_path: Path) -> None:
    image = noise(80, 80)
    model = convolutional()
    spec = model.spec.model_copy(update={"thresholds": (0.5, 0.3, 0.2)})
    weighted = Model(model.module, spec)
    plan = make_plan(weighted, image)
    want = (summed(weighted, plan, image) / np.array(spec.thresholds)[:, None, None]).argmax(axis=0)
    assert np.array_equal(stitched(weighted, plan, image, tmp_path), want)


def test_ties_go_to_the_lower_index() -> None:
    sums = np.array([5, 5, 5, 4], np.int32).reshape(4, 1, 1)
    assert labels_of(sums, 4, None, np.dtype(np.uint8))[0, 0] == 0


def test_float_pixels_nan_is_zero_and_inf_is_an_error() -> None:
    image = np.ones((40, 40, 1), np.float32)
    image[3, 4] = np.nan
    model = constant()
    assert np.isfinite(probabilities(summed(model, make_plan(model, image), image))).all()
    image[3, 4] = np.inf
    with pytest.raises(WorkError, match="inf in block 0,0"):
        summed(model, make_plan(model, image), image)


def test_what_float32_cannot_hold_is_an_error_and_no_inf() -> None:
    image = np.ones((40, 40, 1))
    image[3, 4] = np.finfo(np.float32).max
    model = constant()
    assert np.isfinite(probabilities(summed(model, make_plan(model, image), image))).all()
    image[3, 4] = -1e300
    with pytest.raises(WorkError, match=r"holds -1e\+300, which is beyond float32, in block 0,0"):
        summed(model, make_plan(model, image), image)


@pytest.mark.parametrize("p", [(float("nan"), 0.5), (1.5, -0.5)])
def test_answers_that_are_no_probabilities_name_the_block(p: tuple[float, float]) -> None:
    image, model = noise(40, 40), constant(p)
    with pytest.raises(AnswerError, match="block 0,0"):
        summed(model, make_plan(model, image), image)


def test_a_network_of_another_size_or_class_count_is_refused() -> None:
    image = noise(40, 40)
    spec = ModelSpec(classes=default_classes(2), channels=1, activation="none", margin=4)
    with pytest.raises(InputError, match="its spec"):
        summed(Model(constant().module, spec), make_plan(Model(constant().module, spec), image), image)
    three = ModelSpec(classes=default_classes(3), channels=1, activation="none")
    with pytest.raises(InputError, match="3 classes"):
        summed(Model(constant().module, three), make_plan(Model(constant().module, three), image), image)


def test_blocks_hold_at_least_the_overlap() -> None:
    region = Window(y=0, x=0, height=5000, width=5000)
    assert choose_cells(Request(block=1), region, 64, 48) == 4
    assert choose_cells(Request(block=1000), region, 512, 64) == 3


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"tile": 500}, "496 and 512"),
        ({"tile": 512, "overlap": 512}, "not smaller than --tile 512.*496"),
        ({"tile": 512, "overlap": 100}, "96 and 112"),
        ({"tile": 512, "overlap": 33}, "32 and 48"),
    ],
)
def test_tiles_that_do_not_fit_name_the_nearest_that_do(asked: dict[str, int], says: str) -> None:
    spec = ModelSpec(classes=default_classes(2), channels=1, multiple=16)
    with pytest.raises(UsageError, match=says):
        choose_tile(Request(**asked), spec)


def test_memory_of_a_worker_does_not_know_the_image() -> None:
    model = constant()
    small, large = (
        make_plan(model, np.broadcast_to(np.uint8(0), (n, n, 1)), cells_per_block=20) for n in (4000, 400_000)
    )
    assert small.worker_bytes(1) == large.worker_bytes(1)
