"""Windows: against padding of the whole scene; samples: a function of seed and index alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raysegment.classes import ClassMap
from raysegment.errors import InputError
from raysegment.geometry import Size, Window
from raysegment.model.spec import default_classes
from raysegment.raster.picture import PictureRaster
from raysegment.training import windows
from raysegment.training.balance import BalancedSampler, build_index
from raysegment.training.batches import load_batch, read_ahead
from raysegment.training.dataset import find_scenes
from raysegment.training.windows import IGNORE, WindowReader, WindowSampler

_TWO = ClassMap(default_classes(2), {0: 0, 255: 1}, source="a test")


def _scene(root: Path, image: np.ndarray, mask: np.ndarray, name: str = "a", **tags: object) -> None:
    for folder, pixels in (("images", image), ("masks", mask)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        extra = tags if folder == "images" else {}
        tifffile.imwrite(root / folder / f"{name}.tif", pixels, **extra)


@pytest.fixture
def reader(tmp_path: Path) -> tuple[WindowReader, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 1000, (23, 31, 2), dtype=np.uint16)
    mask = rng.choice(np.array([0, 255], np.uint8), (23, 31))
    _scene(tmp_path, image, mask, planarconfig="contig", photometric="minisblack")
    return WindowReader(find_scenes(tmp_path), (0, 1), _TWO), image, mask


@pytest.mark.parametrize("whole_px", [0, 1 << 20])
def test_a_window_is_the_mirrored_scene_cropped(
    reader: tuple[WindowReader, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch, whole_px: int
) -> None:
    monkeypatch.setattr(windows, "_WHOLE_PX", whole_px)
    read, image, mask = reader
    pad = 60
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    padded_mask = np.pad(mask, pad, mode="reflect")
    for y, x, height, width in [
        (0, 0, 23, 31),
        (3, 4, 5, 6),
        (-7, -60, 40, 80),
        (20, 28, 50, 50),
        (-60, 5, 10, 3),
    ]:
        sample = read.read(0, Window(y=y, x=x, height=height, width=width))
        where = slice(y + pad, y + pad + height), slice(x + pad, x + pad + width)
        assert np.array_equal(sample.pixels, padded[where])
        assert np.array_equal(sample.target, (padded_mask[where] == 255).astype(np.uint8))
        assert sample.valid.all()


@pytest.mark.parametrize("value", [np.inf, 1e300])
def test_what_float32_cannot_hold_is_refused_but_for_nodata(tmp_path: Path, value: float) -> None:
    image, lowest = np.ones((6, 6)), float(np.finfo(np.float64).min)
    image[0, 0] = lowest
    tag = (42113, 2, 0, f"{lowest!r}", True)
    _scene(tmp_path, image, np.zeros((6, 6), np.uint8), extratags=[tag])
    window = Window(y=0, x=0, height=6, width=6)
    sample = WindowReader(find_scenes(tmp_path), (0,), _TWO).read(0, window)
    assert not sample.valid[0, 0]
    assert (sample.pixels[sample.valid] == 1).all()
    image[2, 2] = value
    _scene(tmp_path, image, np.zeros((6, 6), np.uint8), extratags=[tag])
    with pytest.raises(InputError, match=r"a\.tif holds (inf|1e\+300, which is beyond float32,): mend"):
        WindowReader(find_scenes(tmp_path), (0,), _TWO).read(0, window)


def test_pixels_without_data_are_ignored(tmp_path: Path) -> None:
    rgba = np.full((6, 6, 4), 255, np.uint8)
    rgba[0, :, 3] = 0
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Image.fromarray(rgba).save(tmp_path / "images" / "a.png")
    Image.fromarray(np.zeros((6, 6), np.uint8)).save(tmp_path / "masks" / "a.png")
    sample = WindowReader(find_scenes(tmp_path), (0, 1, 2), _TWO).read(
        0, Window(y=-1, x=0, height=4, width=2)
    )
    assert sample.pixels.shape == (4, 2, 3)
    assert sample.target[:, 0].tolist() == [0, IGNORE, 0, 0]
    assert sample.valid[:, 0].tolist() == [True, False, True, True]


def test_a_value_of_no_class_is_named_with_its_place(tmp_path: Path) -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[5, 5] = 7
    _scene(tmp_path, np.zeros((8, 8), np.uint8), mask)
    with pytest.raises(InputError, match=r"a\.tif, .*value 7 belongs to no class"):
        WindowReader(find_scenes(tmp_path), (0,), _TWO).read(0, Window(y=0, x=0, height=8, width=8))


def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcd":
        _scene(tmp_path, np.zeros((16, 16), np.uint8), np.zeros((16, 16), np.uint8), name)
    monkeypatch.setattr(windows, "_CACHE_BYTES", 2 * 3 * 256)
    read = WindowReader(find_scenes(tmp_path), (0,), _TWO)
    for scene in (0, 1, 2, 3, 0):
        read.read(scene, Window(y=0, x=0, height=4, width=4))
    assert list(read._cache) == [3, 0]
    assert not read._open


def test_pictures_that_are_open_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of scenes too large to be kept whole: a picture keeps all of its pixels while it is open, a tiled file a tile."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for name in "abcd":
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "images" / f"{name}.png")
        tifffile.imwrite(
            tmp_path / "masks" / f"{name}.tif",
            np.zeros((64, 64), np.uint8),
            tile=(16, 16),
            compression="zlib",
        )
    monkeypatch.setattr(windows, "_WHOLE_PX", 0)
    for most, pictures in ((3 * 64 * 64 * 3, "cda"), (0, "a")):
        monkeypatch.setattr(windows, "_CACHE_BYTES", most + 4 * 16 * 16)
        read = WindowReader(find_scenes(tmp_path), (0, 1, 2), _TWO)
        for scene in (0, 1, 2, 3, 0):
            read.read(scene, Window(y=0, x=0, height=4, width=4))
        held = [r.path for r in read._open.values() if isinstance(r, PictureRaster)]
        assert held == [str(tmp_path / "images" / f"{name}.png") for name in pictures]


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([16, 64]), st.integers(0, 10**9))
def test_a_draw_shows_mostly_the_scene(height: int, width: int, tile: int, index: int) -> None:
    draw = WindowSampler([Size(height, width)], tile, seed=3).draw(index)
    overlap = draw.window.intersect(Window(y=0, x=0, height=height, width=width))
    assert overlap.height >= min(height, tile) - tile // 8
    assert overlap.width >= min(width, tile) - tile // 8


def test_draws_are_spread_by_area_and_over_every_pixel() -> None:
    sizes = [Size(100, 100), Size(100, 300)]
    draws = [WindowSampler(sizes, 64, seed=0).draw(i) for i in range(2000)]
    assert 0.2 < np.mean([d.scene == 0 for d in draws]) < 0.3
    seen = np.zeros((100, 300), int)
    for d in draws:
        if d.scene == 1:
            seen[d.window.intersect(Window(y=0, x=0, height=100, width=300)).slices()] += 1
    assert seen.min() > 0


@pytest.mark.parametrize("sampling", ["uniform", "balanced"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_see_the_same_samples_in_the_same_order(
    reader: tuple[WindowReader, np.ndarray, np.ndarray], workers: int, sampling: str
) -> None:
    read, _, _ = reader
    uniform = WindowSampler([Size(23, 31)], 16, seed=5)
    sampler = uniform if sampling == "uniform" else BalancedSampler(uniform, build_index(read, (1,)), 7)
    whole = load_batch(read, sampler, 2, range(7))
    for rank in range(workers):
        part = load_batch(read, sampler, 2, range(rank, 7, workers))
        assert part.indices == tuple(range(rank, 7, workers))
        assert np.array_equal(part.pixels, whole.pixels[rank::workers])
        assert np.array_equal(part.target, whole.target[rank::workers])
    assert whole.pixels.shape == (7, 20, 20, 2)
    other = WindowSampler([Size(23, 31)], 16, seed=6)
    assert [uniform.draw(i) for i in range(9)] != [other.draw(i) for i in range(9)]


def test_reading_ahead_keeps_order_and_errors() -> None:
    assert list(read_ahead(lambda i: i * i, [1, 2, 3])) == [1, 4, 9]
    assert list(read_ahead(lambda i: i, [])) == []

    def fail(i: int) -> int:
        if i == 2:
            raise InputError("broken")
        return i

    ahead = read_ahead(fail, [0, 1, 2, 3])
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(InputError, match="broken"):
        next(ahead)
