"""Balanced draws: rarer classes in every batch, from an index that blocks and order do not change."""

from __future__ import annotations

import functools
import itertools
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from raysegment.classes import NO_CLASS, ClassMap
from raysegment.errors import WorkError
from raysegment.geometry import Size, Window
from raysegment.model.spec import default_classes
from raysegment.raster import walk
from raysegment.training import balance, class_index
from raysegment.training.balance import BalancedSampler, ClassIndex, build_index, rarer
from raysegment.training.dataset import find_scenes
from raysegment.training.resolution import at_pixel_size
from raysegment.training.windows import WindowReader, WindowSampler

_FOUR = ClassMap(default_classes(4), {0: 0, 1: 1, 2: 2, 3: 3, 9: NO_CLASS}, source="a test")


def _masks(root: Path, masks: dict[str, np.ndarray]) -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for name, mask in masks.items():
        tifffile.imwrite(root / "images" / f"{name}.tif", np.zeros(mask.shape, np.uint8))
        tifffile.imwrite(root / "masks" / f"{name}.tif", mask, tile=(16, 16))
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Class 1 in both scenes, class 2 at one pixel, class 3 nowhere, some pixels ignored."""
    rng = np.random.default_rng(0)
    first = np.where(rng.random((70, 50)) < 0.1, 1, 0).astype(np.uint8)
    second = np.where(rng.random((40, 90)) < 0.3, 1, 0).astype(np.uint8)
    second[33, 71] = 2
    second[:5] = 9
    return _masks(tmp_path / "data", {"a": first, "b": second})


def _reader(data: Path) -> WindowReader:
    return WindowReader(find_scenes(data), (0,), _FOUR)


def _places(index: ClassIndex) -> dict[tuple[int, int], set[tuple[int, int]]]:
    ends = np.cumsum(index.groups[:, 3])
    return {
        (int(c), int(scene)): {(int(y), int(x)) for y, x in index.places[end - kept : end]}
        for (c, scene, _, kept), end in zip(index.groups, ends, strict=True)
    }


def test_the_index_holds_what_the_masks_hold(data: Path) -> None:
    index = build_index(_reader(data), (1, 2, 3))
    true = {}
    for scene, name in enumerate("ab"):
        mask = tifffile.imread(data / "masks" / f"{name}.tif")
        for c in (1, 2, 3):
            if (mask == c).any():
                true[c, scene] = {(int(y), int(x)) for y, x in np.argwhere(mask == c)}
    assert _places(index) == true
    assert {(c, s): n for c, s, n, _ in index.groups.tolist()} == {k: len(v) for k, v in true.items()}


def test_what_is_kept_is_bounded_and_does_not_depend_on_the_blocks(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build_index(_reader(data), (1, 2))
    monkeypatch.setattr(balance, "_KEPT", 4 * 25)
    few = build_index(_reader(data), (1, 2))
    assert few.groups[:, 3].tolist() == [25, 25, 1]
    assert few.groups[:, 2].tolist() == whole.groups[:, 2].tolist()
    assert all(places <= _places(whole)[group] for group, places in _places(few).items())
    monkeypatch.setattr(
        "raysegment.training.windows.windows", functools.partial(walk.windows, pixels=16 * 16)
    )
    targets = WindowReader.targets
    for backwards in (False, True):
        monkeypatch.setattr(
            WindowReader, "targets", lambda r, s, b=backwards: list(targets(r, s))[:: -1 if b else 1]
        )
        again = build_index(_reader(data), (1, 2))
        assert np.array_equal(again.places, few.places)
        assert np.array_equal(again.groups, few.groups)


def test_what_is_kept_is_spread_over_the_scene() -> None:
    kept = balance._Places(0, 2000)
    kept.add(Window(y=0, x=0, height=500, width=500), np.ones((500, 500), bool))
    places = kept.sorted()
    assert places.shape == (2000, 2)
    quarters = np.bincount(places[:, 0] // 250 * 2 + places[:, 1] // 250, minlength=4)
    assert quarters.min() > 400  # 500 expected, σ = 19


def test_pixels_where_the_image_has_no_data_are_not_in_the_index(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    rgba = np.full((8, 8, 4), 255, np.uint8)
    rgba[:, :4, 3] = 0
    mask = np.zeros((8, 8), np.uint8)
    mask[2, 1] = mask[2, 6] = 1
    Image.fromarray(rgba).save(tmp_path / "images" / "a.png")
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    index = build_index(WindowReader(find_scenes(tmp_path), (0, 1, 2), _FOUR), (1,))
    assert _places(index) == {(1, 0): {(2, 6)}}


def test_a_mask_page_says_where_an_image_has_data(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="writes the mask page")
    root = _masks(tmp_path / "data", {"a": np.ones((32, 32), np.uint8)})
    profile = {"driver": "GTiff", "height": 32, "width": 32, "count": 1, "dtype": "uint8"}
    at = rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000)
    seen = np.zeros((32, 32), bool)
    seen[4:6, 7:9] = True
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(root / "images" / "a.tif", "w", **profile, crs="EPSG:32643", transform=at) as file,
    ):
        file.write(np.ones((1, 32, 32), np.uint8))
        file.write_mask(seen)
    assert _places(build_index(_reader(root), (1,)))[1, 0] == {(4, 7), (4, 8), (5, 7), (5, 8)}
    halved, _ = at_pixel_size(find_scenes(root), 1.0)
    index = build_index(WindowReader(halved, (0,), _FOUR), (1,))
    assert _places(index)[1, 0] == {(2, 3), (2, 4)}


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([1, 16, 64]), st.integers(1, 9), st.data())
def test_a_third_of_every_batch_shows_its_rarer_pixel(
    height: int, width: int, tile: int, batch: int, data: st.DataObject
) -> None:
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    index = ClassIndex(np.array([[1, 1, 1, 1]]), np.array([[y, x]], np.int32))
    uniform = WindowSampler([Size(9, 9), Size(height, width)], tile, seed=3)
    sampler = BalancedSampler(uniform, index, batch)
    start = batch * data.draw(st.integers(0, 10**6))
    draws = [sampler.draw(i) for i in range(start, start + batch)]
    pixel = Window(y=y, x=x, height=1, width=1)
    around = [d for d in draws if d != uniform.draw(d.index)]
    assert all(d.scene == 1 and d.window.holds(pixel) for d in around)
    shown = sum(d.scene == 1 and d.window.holds(pixel) for d in draws)
    assert shown * 3 >= batch or batch == 1
    for d in draws:
        overlap = d.window.intersect(Window(y=0, x=0, height=height, width=width))
        assert d.scene == 0 or overlap.height >= min(height, tile) - tile // 8


def test_rarer_classes_are_equally_likely_and_their_pixels_too() -> None:
    groups = np.array([[1, 0, 900, 2], [1, 2, 100, 1], [2, 1, 1, 1]])
    places = np.array([[10, 10], [90, 90], [50, 50], [7, 7]], np.int32)
    uniform = WindowSampler([Size(100, 100)] * 3, 8, seed=0)
    sampler = BalancedSampler(uniform, ClassIndex(groups, places), 3)
    draws = [sampler.draw(i) for i in range(0, 9000, 3)]
    scenes = np.bincount([d.scene for d in draws], minlength=3) / len(draws)
    assert scenes == pytest.approx([0.45, 0.5, 0.05], abs=0.04)
    near = [d.window.holds(Window(y=10, x=10, height=1, width=1)) for d in draws if d.scene == 0]
    assert np.mean(near) == pytest.approx(0.5, abs=0.05)
    assert len({d.window for d in draws if d.scene == 1}) > 20


def test_a_batch_of_one_is_balanced_every_third_time() -> None:
    uniform = WindowSampler([Size(100, 100), Size(100, 100)], 8, seed=0)
    rare = ClassIndex(np.array([[1, 1, 1, 1]]), np.array([[50, 50]], np.int32))
    sampler = BalancedSampler(uniform, rare, 1)
    balanced = [i for i in range(30) if sampler.draw(i) != uniform.draw(i)]
    assert balanced == list(range(0, 30, 3))


def test_without_a_rarer_class_every_draw_is_uniform() -> None:
    none = ClassIndex(np.empty((0, 4), np.int64), np.empty((0, 2), np.int32))
    uniform = WindowSampler([Size(100, 100)], 8, seed=0)
    sampler = BalancedSampler(uniform, none, 4)
    assert [sampler.draw(i) for i in range(8)] == [uniform.draw(i) for i in range(8)]


def test_rarer_is_less_than_an_equal_share() -> None:
    assert rarer((0.9, 0.06, 0.04)) == (1, 2)
    assert rarer((0.1, 0.5, 0.4)) == (0,)
    assert rarer((0.5, 0.5)) == ()


def test_a_class_index_is_made_once_for_the_same_masks_and_coding(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, built = tmp_path / "index.safetensors", []

    def build(reader: WindowReader, classes: tuple[int, ...]) -> ClassIndex:
        built.append(classes)
        return build_index(reader, classes)

    monkeypatch.setattr(class_index, "build_index", build)
    first = class_index.class_index(path, _reader(data), (1, 2), "x")
    again = class_index.class_index(path, _reader(data), (1, 2), "x")
    assert len(built) == 1
    assert np.array_equal(first.groups, again.groups)
    assert np.array_equal(first.places, again.places)
    swapped = ClassMap(_FOUR.classes, {0: 0, 1: 2, 2: 1, 3: 3, 9: NO_CLASS}, source="a test")
    class_index.class_index(path, _reader(data), (1, 2), "other masks")
    class_index.class_index(path, WindowReader(find_scenes(data), (0,), swapped), (1, 2), "other masks")
    assert len(built) == 3
    path.write_bytes(path.read_bytes()[:100])
    class_index.class_index(path, _reader(data), (1, 2), "x")
    assert len(built) == 4
    with pytest.raises(WorkError, match="cannot write"):
        class_index.class_index(path / "in a file", _reader(data), (1, 2), "x")


def test_a_draw_of_many_scenes_costs_as_one_of_few() -> None:
    rng = np.random.default_rng(0)
    took = {}
    for count in (10, 10_000):
        sizes = [Size(int(h), int(w)) for h, w in rng.integers(100, 5000, (count, 2))]
        groups = np.array([(c, s, 5, 1) for c, s in itertools.product((1, 2), range(count))])
        places = rng.integers(0, 100, (len(groups), 2)).astype(np.int32)
        uniform = WindowSampler(sizes, 64, seed=0)
        for name, sampler in (
            ("uniform", uniform),
            ("balanced", BalancedSampler(uniform, ClassIndex(groups, places), 2)),
        ):
            rounds = []
            for _ in range(5):
                start = time.process_time()
                for i in range(200):
                    sampler.draw(i)
                rounds.append(time.process_time() - start)
            took[name, count] = min(rounds)
    for name in ("uniform", "balanced"):
        assert took[name, 10_000] < 3 * took[name, 10]  # a linear search would be hundreds of times as slow
