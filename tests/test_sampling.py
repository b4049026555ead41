"""Images read at another resolution: what their pixels are, whatever window asks."""

from __future__ import annotations

import pickle
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import ArrayRaster
from pydantic import ValidationError
from rasterio.transform import array_bounds

from raysegment.errors import ReadError
from raysegment.geometry import Size, Window
from raysegment.raster import Raster, open_raster
from raysegment.raster.salvage import read_what_can_be
from raysegment.raster.sampling import SampledRaster, Sampling, sampled
from raysegment.raster.stored import Stored


class Made(ArrayRaster):
    """An array behind the Raster protocol: any chunk, nodata, palette, further levels; counts what is read."""

    def __init__(
        self, pixels: np.ndarray, valid: np.ndarray | None = None, *, coarser: tuple = (), **described: Any
    ) -> None:
        super().__init__(pixels, valid)
        self.select: dict[str, int] = {}
        self._coarser = coarser
        self.levels = (self.levels[0], *(Size(*a.shape[:2]) for a in coarser))
        for name, value in described.items():
            setattr(self, name, value)
        self.chunks = (self.chunk,) * len(self.levels)
        self.reads: list[Window] = []

    def read(self, window: Window, level: int = 0) -> np.ndarray:
        self.reads.append(window)
        size = self.levels[level]
        assert Window(y=0, x=0, height=size.height, width=size.width).holds(window)
        return (self.pixels, *self._coarser)[level][window.slices()]

    def valid(self, window: Window, pixels: np.ndarray, level: int = 0) -> np.ndarray | None:
        assert pixels.shape[:2] == window.size
        return super().valid(window, pixels, level)


def whole(raster: Raster, level: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
    window = Window(y=0, x=0, height=raster.levels[level].height, width=raster.levels[level].width)
    pixels = raster.read(window, level)
    return pixels, raster.valid(window, pixels, level)


def resized(
    pixels: np.ndarray, size: tuple[int, int], valid: np.ndarray | None = None, **described: Any
) -> Any:
    return sampled(Made(pixels, valid, **described), Sampling(level=0, size=size))


def box_mean(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Area means the dense way, in float64: every pixel cut into as many parts as the target has, and averaged."""
    fine = pixels.astype(np.float64).repeat(size[0], axis=0).repeat(size[1], axis=1)
    h, w, c = pixels.shape
    return fine.reshape(size[0], h, size[1], w, c).mean(axis=(1, 3))


edges = st.integers(1, 23)
dtypes = st.sampled_from(["uint8", "uint16", "int16", "int64", "float32", "float64"])


@st.composite
def images(draw: st.DrawFn, holes: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
    """Random pixels and, maybe, validity; float ones with NaN in some values."""
    height, width, channels = draw(edges), draw(edges), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    dtype = np.dtype(draw(dtypes))
    pixels = rng.integers(0, 255, (height, width, channels)).astype(dtype)
    valid = None
    if holes and draw(st.booleans()):
        valid = rng.random((height, width)) > draw(st.sampled_from([0.2, 0.5, 0.9]))
        if dtype.kind == "f":
            pixels[rng.random(pixels.shape) < 0.2] = np.nan
    return pixels, valid


@st.composite
def windows(draw: st.DrawFn, size: Size) -> Window:
    y, x = draw(st.integers(0, size.height - 1)), draw(st.integers(0, size.width - 1))
    return Window.between(y, x, draw(st.integers(y + 1, size.height)), draw(st.integers(x + 1, size.width)))


def in_bands_of(pixels: int) -> Any:
    """A context in which about so many pixels are read and summed at once."""
    stack = ExitStack()
    stack.enter_context(patch("raysegment.raster.sampling._LEAST_HELD_PIXELS", pixels))
    stack.enter_context(patch("raysegment.raster.resample._BAND_VALUES", pixels))
    return stack


def everywhere(valid: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
    return np.ones(size, bool) if valid is None else valid


@given(image=images(), height=edges, width=edges, data=st.data())
def test_any_window_equals_the_crop_of_the_whole(
    image: tuple[np.ndarray, np.ndarray | None], height: int, width: int, data: st.DataObject
) -> None:
    pixels, valid = image
    described: dict[str, Any] = {"chunk": Size(data.draw(edges), data.draw(edges))}
    if data.draw(st.booleans()):
        described["alpha"] = pixels.shape[2] - 1
    if data.draw(st.booleans()):
        described["nodata"] = 7.0
    raster = resized(pixels, (height, width), valid, **described)
    expected, there = whole(raster)
    window = data.draw(windows(raster.levels[0]))
    with in_bands_of(data.draw(st.sampled_from([1, 40, 1 << 22]))):
        read = raster.read(window)
        assert np.array_equal(
            everywhere(raster.valid(window, read), window.size),
            everywhere(there, raster.levels[0])[window.slices()],
        )
    assert read.dtype == pixels.dtype
    assert read.tobytes() == expected[window.slices()].tobytes()


@given(image=images(holes=False), height=edges, width=edges, chunk=edges, held=st.sampled_from([1, 40, 400]))
def test_no_pixel_is_read_twice_and_few_are_held(
    image: tuple[np.ndarray, None], height: int, width: int, chunk: int, held: int
) -> None:
    pixels, _ = image
    raster = resized(pixels, (height, width), chunk=Size(chunk, pixels.shape[1]))
    window = Window(y=height // 3, x=width // 4, height=height - height // 3, width=width - width // 4)
    with in_bands_of(held):
        raster.read(window)
    if not isinstance(raster, SampledRaster):  # its own size: nothing in between
        return
    reads, held = raster.raster.reads, max(held, window.area)
    assert all(one.bottom == two.y for one, two in pairwise(reads))
    assert all(r.bottom % chunk == 0 for r in reads[:-1] if r.width * chunk <= 4 * held)
    assert all(r.area <= max(4 * held, r.width) for r in reads)


@given(value=st.integers(0, 255), dtype=dtypes, h=edges, w=edges, height=edges, width=edges)
def test_constant_in_constant_out(value: int, dtype: str, h: int, w: int, height: int, width: int) -> None:
    pixels = np.full((h, w, 2), value + (0.1 if "float" in dtype else 0), dtype)
    read, valid = whole(resized(pixels, (height, width)))
    assert valid is None
    if dtype == "float64":
        np.testing.assert_allclose(read, pixels[0, 0, 0], rtol=1e-15)
    else:
        assert (read == pixels[0, 0, 0]).all()


@given(image=images(holes=False), height=edges, width=edges)
def test_shrinking_gives_area_means(image: tuple[np.ndarray, None], height: int, width: int) -> None:
    pixels, _ = image
    size = min(height, pixels.shape[0]), min(width, pixels.shape[1])
    read, _ = whole(resized(pixels, size))
    expected = box_mean(pixels, size)
    # rounded to nearest, and float32 where the pixels are
    slack = 0.5 + 1e-4 if pixels.dtype.kind in "iu" else 1e-4
    assert np.abs(read - expected).max() <= slack


@given(fy=st.integers(1, 5), fx=st.integers(1, 5), h=st.integers(1, 6), w=st.integers(1, 6), dtype=dtypes)
def test_by_a_whole_factor_it_is_the_block_mean_to_the_bit(
    fy: int, fx: int, h: int, w: int, dtype: str
) -> None:
    pixels = np.random.default_rng(h).integers(0, 250, (h * fy, w * fx, 3)).astype(dtype)
    read, _ = whole(resized(pixels, (h, w)))
    means = pixels.astype(np.int64).reshape(h, fy, w, fx, 3).sum(axis=(1, 3)) / (fy * fx)
    expected = np.rint(means) if pixels.dtype.kind in "iu" else means
    assert np.array_equal(read, expected.astype(dtype))


@given(image=images(holes=False), more_y=st.integers(0, 30), more_x=st.integers(0, 30))
def test_enlarging_is_bilinear_between_pixel_centres(
    image: tuple[np.ndarray, None], more_y: int, more_x: int
) -> None:
    pixels, _ = image
    size = pixels.shape[0] + more_y, pixels.shape[1] + more_x
    read, _ = whole(resized(pixels, size))
    planes = torch.from_numpy(pixels.astype(np.float64)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(planes, size, mode="bilinear", align_corners=False)
    slack = 0.5 + 1e-4 if pixels.dtype.kind in "iu" else 1e-4
    assert np.abs(read - expected[0].permute(1, 2, 0).numpy()).max() <= slack


@given(stored=st.integers(1, 60), length=st.integers(1, 120))
def test_a_ramp_stays_a_ramp(stored: int, length: int) -> None:
    ramp = (np.arange(stored) + 0.5).repeat(2).reshape(stored, 2, 1)
    read, _ = whole(resized(ramp, (length, 2)))
    ratio = stored / length
    expected = ((np.arange(length) + 0.5) * ratio).clip(0.5, stored - 0.5)
    # a box that ends inside a pixel takes that pixel's one value: at most 1/8 of a step, spread over the box
    slack = 0.0 if length >= stored or stored % length == 0 else 0.125 / ratio
    assert np.abs(read[:, 0, 0] - expected).max() <= slack + 1e-9


@given(image=images(), height=edges, width=edges, nodata=st.sampled_from([None, 7.0]))
def test_pixels_without_data_have_no_weight(
    image: tuple[np.ndarray, np.ndarray | None], height: int, width: int, nodata: float | None
) -> None:
    pixels, valid = image
    size = min(height, pixels.shape[0]), min(width, pixels.shape[1])
    read, seen = whole(resized(pixels, size, valid, nodata=nodata))
    has = np.broadcast_to(everywhere(valid, pixels.shape[:2])[:, :, None], pixels.shape)
    share = box_mean(has, size)[:, :, 0]
    if size != pixels.shape[:2]:  # the level itself is not touched
        assert np.array_equal(everywhere(seen, size), share >= 0.5 - 1e-12)
    has = has & ~np.isnan(pixels)
    own = box_mean(has, size)
    with np.errstate(invalid="ignore"):
        expected = box_mean(np.where(has, pixels, 0), size) / own
    told = everywhere(seen, size)[:, :, None] & (own >= 0.5 - 1e-12)
    slack = 0.5 + 1e-3 if pixels.dtype.kind in "iu" else 1e-4
    if told.any():
        assert np.abs(read.astype(np.float64) - expected)[told].max() <= slack
    if size == pixels.shape[:2]:
        return
    fill = nodata if nodata is not None else np.nan if pixels.dtype.kind == "f" else 0
    gone = read[~everywhere(seen, size)]
    assert np.array_equal(gone, np.full_like(gone, fill), equal_nan=pixels.dtype.kind == "f")
    if pixels.dtype.kind == "f":  # NaN in one band alone
        assert np.isnan(read[everywhere(seen, size)[:, :, None] & (own < 0.5 - 1e-12)]).all()


def test_half_of_the_weight_is_enough() -> None:
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    valid = np.array([[0, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
    read, seen = whole(resized(pixels, (2, 2), valid, nodata=99.0))
    assert seen is not None
    assert seen.tolist() == [[True, True], [False, False]]
    assert read[:, :, 0].tolist() == [[3, round((2 + 3 + 6) / 3)], [99, 99]]


def test_a_mean_that_hits_the_nodata_value_is_data() -> None:
    pixels = np.array([[-1, 1], [1, -1]], np.int16)[:, :, None]
    raster = resized(pixels, (1, 1), np.ones((2, 2), bool), nodata=0.0)
    read, seen = whole(raster)
    assert read.item() == 0
    assert seen is None


def test_validity_is_known_without_the_last_read() -> None:
    pixels = np.arange(400, dtype=np.uint8).reshape(20, 20, 1)
    valid = np.random.default_rng(1).random((20, 20)) > 0.5
    raster = resized(pixels, (9, 9), valid)
    _, seen = whole(raster)
    assert seen is not None
    rows = [Window(y=y, x=0, height=1, width=9) for y in range(9)]
    read = [raster.read(row) for row in rows]
    for y, (row, pixels) in enumerate(zip(rows, read, strict=True)):
        assert np.array_equal(everywhere(raster.valid(row, pixels), row.size), seen[y : y + 1])


def test_opacity_is_averaged_and_colours_are_those_of_opaque_pixels() -> None:
    pixels = np.array([[[10, 255], [200, 0]], [[20, 255], [30, 100]]], np.uint8)
    read, seen = whole(resized(pixels, (1, 1), pixels[:, :, 1] > 0, alpha=1))
    assert seen is None
    assert read.tolist() == [[[20, 152]]]  # 60 / 3 and 610 / 4
    read, seen = whole(resized(pixels, (1, 1), np.zeros((2, 2), bool), alpha=1, nodata=5.0))
    assert seen is not None
    assert not seen.any()
    assert read.tolist() == [[[5, 0]]]


def test_inf_stays_where_it_is_and_is_not_lost() -> None:
    pixels = np.zeros((9, 9, 1), np.float32)
    pixels[4, 4] = np.inf
    for size in ((6, 6), (7, 4), (13, 13), (18, 18)):
        read, _ = whole(resized(pixels, size))
        touched, _ = whole(resized((pixels > 0).astype(np.float64), size))
        assert np.array_equal(np.isinf(read), touched > 0)
        assert not np.isnan(read).any()


def test_the_largest_floats_do_not_overflow() -> None:
    pixels = np.full((7, 5, 1), -np.finfo(np.float64).max)
    read, _ = whole(resized(pixels, (3, 4)))
    assert np.isfinite(read).all()


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_the_ends_of_wide_integers_stay(dtype: str) -> None:
    for end in (np.iinfo(dtype).max, np.iinfo(dtype).min):
        read, _ = whole(resized(np.full((7, 5, 1), end, dtype), (3, 4)))
        assert np.abs(read.astype(float) - float(end)).max() <= 2048


@given(h=edges, w=edges, height=edges, width=edges)
def test_a_palette_image_keeps_its_indices(h: int, w: int, height: int, width: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (h, w, 1), np.uint8)
    valid = pixels[:, :, 0] != 3
    read, seen = whole(resized(pixels, (height, width), valid, palette=((0, 0, 0),) * 256))
    ys = ((np.arange(height) + 0.5) * h / height + 1e-9).astype(int)
    xs = ((np.arange(width) + 0.5) * w / width + 1e-9).astype(int)
    assert np.array_equal(read, pixels[ys][:, xs])
    assert np.array_equal(everywhere(seen, (height, width)), valid[ys][:, xs])


def corner(transform: tuple[float, ...] | None, row: int, col: int) -> tuple[float, float]:
    assert transform is not None
    a, b, c, d, e, f = transform
    return a * col + b * row + c, d * col + e * row + f


@given(h=edges, w=edges, height=edges, width=edges)
def test_the_image_covers_the_same_ground(h: int, w: int, height: int, width: int) -> None:
    pixels = np.zeros((h, w, 1), np.uint8)
    straight, turned = (3.0, 0.0, 500.0, 0.0, -4.0, 900.0), (3.0, 1.0, 500.0, 0.5, -4.0, 900.0)
    raster = resized(pixels, (height, width), transform=straight, pixel_size=(4.0, 3.0, "m"))
    assert raster.pixel_size == (pytest.approx(4 * h / height), pytest.approx(3 * w / width), "m")
    assert array_bounds(height, width, rasterio.Affine(*raster.transform)) == pytest.approx(
        array_bounds(h, w, rasterio.Affine(*straight))
    )
    moved = resized(pixels, (height, width), offset=(5.5, 2.0)).offset
    assert [(o - 0.5) / n for o, n in zip(moved, (height, width), strict=True)] == pytest.approx(
        [5 / h, 1.5 / w]
    )
    raster = resized(pixels, (height, width), transform=turned)
    for row, col in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert corner(raster.transform, row * height, col * width) == pytest.approx(
            corner(turned, row * h, col * w)
        )


def test_levels_chunks_and_identity_follow() -> None:
    coarser = tuple(np.full((n, n, 2), n, np.uint8) for n in (32, 16, 8))
    beneath = Made(np.zeros((64, 64, 2), np.uint8), coarser=coarser, chunk=Size(16, 64))
    raster = sampled(beneath, Sampling(level=1, size=(20, 24)))
    assert isinstance(raster, Raster)
    assert raster.shape == (20, 24, 2)
    assert raster.levels == ((20, 24), (16, 16), (8, 8))
    assert raster.chunks == ((10, 24), (16, 64), (16, 64))
    assert raster.chunk == (10, 24)
    assert raster.identity() == beneath.identity()
    for level, value in enumerate((32, 16, 8)):
        pixels, valid = whole(raster, level)
        assert (pixels == value).all()
        assert valid is None


def test_a_grid_of_the_levels_own_size_is_that_level() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 1), np.uint8)
    beneath = Made(np.zeros((16, 16, 1), np.uint8), coarser=(pixels,))
    assert sampled(beneath, None) is beneath
    assert sampled(beneath, Sampling(level=0, size=(16, 16))) is beneath
    assert np.array_equal(whole(sampled(beneath, Sampling(level=1, size=(8, 8))))[0], pixels)
    with pytest.raises(ValueError, match="none numbered 2"):
        sampled(beneath, Sampling(level=2, size=(4, 4)))


@given(h=edges, w=edges, height=edges, width=edges, data=st.data())
def test_chunks_that_are_not_stored_are_known(
    h: int, w: int, height: int, width: int, data: st.DataObject
) -> None:
    chunk = Size(data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6)))
    rng = np.random.default_rng(0)
    grid = rng.random((-(-h // chunk.height), -(-w // chunk.width))) > 0.5
    there = grid.repeat(chunk.height, axis=0).repeat(chunk.width, axis=1)[:h, :w]
    raster = resized(there[:, :, None].astype(np.float64), (height, width))
    if (height, width) == (h, w):
        return
    raster.raster.stored = lambda level=0: Stored.unless_whole(chunk, grid.copy())
    found = raster.stored()
    written = whole(raster)[0][:, :, 0] > 0
    if found is None:
        return
    for y, x in np.argwhere(written):
        assert found.grid[y // found.chunk.height, x // found.chunk.width]
    assert found.grid.any() == grid.any()


def test_a_sampling_travels_as_json() -> None:
    sampling = Sampling(level=2, size=(30, 40))
    assert Sampling.model_validate_json(sampling.model_dump_json()) == sampling
    assert isinstance(Sampling.model_validate_json('{"level": 0, "size": [3, 4]}').size, Size)
    for wrong in (
        {"level": -1, "size": (3, 4)},
        {"level": 0, "size": (0, 4)},
        {"level": 0, "size": (3, 4), "x": 1},
    ):
        with pytest.raises(ValidationError):
            Sampling.model_validate(wrong)


def test_a_window_outside_is_the_callers_mistake() -> None:
    raster = resized(np.zeros((8, 8, 1), np.uint8), (4, 4))
    with pytest.raises(ValueError, match="4 × 4 px"):
        raster.read(Window(y=0, x=2, height=4, width=3))


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    path = tmp_path / "cut.tif"
    profile = {
        "driver": "GTiff",
        "width": 64,
        "height": 64,
        "count": 1,
        "dtype": "uint8",
        "crs": "EPSG:32643",
    }
    with rasterio.open(path, "w", **profile, transform=rasterio.Affine(1, 0, 0, 0, -1, 64)) as f:
        f.write(np.ones((1, 64, 64), np.uint8))
    path.write_bytes(path.read_bytes()[:-100])
    raster = sampled(open_raster(path), Sampling(level=0, size=(32, 32)))
    with pytest.raises(ReadError, match=r"cut\.tif"):
        raster.read(Window(y=0, x=0, height=32, width=32))
    raster.close()


class Broken(Made):
    """Some chunks cannot be read; those are told by a grid of chunks."""

    broken: np.ndarray

    def read(self, window: Window, level: int = 0) -> np.ndarray:
        hit = self.broken[
            window.y // self.chunk.height : -(-window.bottom // self.chunk.height),
            window.x // self.chunk.width : -(-window.right // self.chunk.width),
        ]
        if hit.any():
            raise ReadError(f"broken in {window}")
        return super().read(window, level)


@given(image=images(), height=edges, width=edges, data=st.data())
def test_what_is_left_of_a_damaged_image_depends_on_the_place_alone(
    image: tuple[np.ndarray, np.ndarray | None], height: int, width: int, data: st.DataObject
) -> None:
    pixels, valid = image
    (h, w), chunk = pixels.shape[:2], Size(data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6)))
    broken = np.random.default_rng(0).random((-(-h // chunk.height), -(-w // chunk.width))) > 0.7
    there = ~broken.repeat(chunk.height, axis=0).repeat(chunk.width, axis=1)[:h, :w]
    damaged = sampled(
        Broken(pixels, valid, chunk=chunk, broken=broken), Sampling(level=0, size=(height, width))
    )
    # the same image with the broken chunks declared empty
    expected, has = whole(resized(pixels, (height, width), there & everywhere(valid, (h, w)), chunk=chunk))
    window = data.draw(windows(damaged.levels[0]))
    with in_bands_of(data.draw(st.sampled_from([1, 40]))):
        read, seen, failures = read_what_can_be(damaged, window)
    told = everywhere(has, damaged.levels[0])[window.slices()]
    assert np.array_equal(everywhere(seen, window.size), told)
    assert np.array_equal(read[told], expected[window.slices()][told], equal_nan=pixels.dtype.kind == "f")
    lost = resized(there[:, :, None].astype(np.float64), (height, width))
    for y, x in np.argwhere(whole(lost)[0][window.slices()][:, :, 0] < 0.5 - 1e-9):
        assert any(
            f.window.holds(Window(y=window.y + y, x=window.x + x, height=1, width=1)) for f in failures
        )


# --- real files


PYRAMIDS = (
    "whole_slide/openslide_boxes.tiff",
    "geotiff_flavours/large_image/yb10kx5k.zstd.tiff",
    "geotiff_flavours/rasterio/cogeo.tif",
    "geotiff_flavours/rio-tiler/cog_name.tif",
    "geotiff_flavours/rio-tiler/cog_nodata_nan.tif",
    "geotiff_flavours/rio-tiler/cog_fullearth.tif",
    "geotiff_flavours/rio-tiler/cog_uint8_rgba.tif",
    "geotiff_flavours/rio-tiler/cog_uint8_rgb_mask.tif",
    "geotiff_flavours/rio-tiler/cog_cmap.tif",
)
SINGLE = ("whole_slide/cmu-1-small-region.svs", "whole_slide/viv_multi-channel.ome.tif")


def some_windows(size: Size) -> list[Window]:
    """Three windows of at most 300 px, the last at the far corner."""
    height, width = min(300, size.height), min(300, size.width)
    last_y, last_x = size.height - height, size.width - width
    return [Window(y=last_y * k // 2, x=last_x * k // 2, height=height, width=width) for k in range(3)]


@pytest.mark.parametrize("name", PYRAMIDS)
def test_each_level_of_a_real_pyramid(name: str, shared_data: Path) -> None:
    raster = open_raster(shared_data / name)
    for level, size in enumerate(raster.levels):
        view = sampled(raster, Sampling(level=level, size=size))
        assert view.levels == raster.levels[level:]
        for window in some_windows(size):
            pixels, expected = view.read(window), raster.read(window, level)
            assert np.array_equal(pixels, expected, equal_nan=pixels.dtype.kind == "f")
            assert np.array_equal(
                everywhere(view.valid(window, pixels), window.size),
                everywhere(raster.valid(window, expected, level), window.size),
            )
    raster.close()


@pytest.mark.parametrize("factor", [1.37, 3.0])
@pytest.mark.parametrize("name", PYRAMIDS + SINGLE)
def test_between_the_levels_of_a_real_file(name: str, factor: float, shared_data: Path) -> None:
    raster = open_raster(shared_data / name)
    level = max(n for n, s in enumerate(raster.levels) if min(s) >= min(200, *raster.levels[0]))
    stored = raster.levels[level]
    size = Size(round(stored.height / factor), round(stored.width / factor))
    view = sampled(raster, Sampling(level=level, size=size))
    full, seen = whole(view)
    again = pickle.loads(pickle.dumps(view))
    assert isinstance(again, SampledRaster)
    for window in some_windows(size):
        pixels = again.read(window)
        assert pixels.tobytes() == full[window.slices()].tobytes()
        valid = everywhere(again.valid(window, pixels), window.size)
        assert np.array_equal(valid, everywhere(seen, size)[window.slices()])
    if raster.transform is not None and view.transform is not None:
        assert array_bounds(*size, rasterio.Affine(*view.transform)) == pytest.approx(
            array_bounds(*raster.levels[0], rasterio.Affine(*raster.transform))
        )
    again.close()
    view.close()


@pytest.mark.parametrize("factor", [2.0, 2.6])
@pytest.mark.parametrize(
    "name", ["whole_slide/cmu-1-small-region.svs", "geotiff_flavours/rio-tiler/cog_name.tif"]
)
def test_gdal_averages_alike(name: str, factor: float, shared_data: Path) -> None:
    raster = open_raster(shared_data / name)
    pixels = raster.read(Window(y=0, x=0, height=1300, width=1040))
    raster.close()
    size = Size(round(1300 / factor), round(1040 / factor))
    read, _ = whole(resized(pixels, size))
    profile = {
        "driver": "GTiff",
        "height": 1300,
        "width": 1040,
        "dtype": pixels.dtype,
        "count": pixels.shape[2],
    }
    with (
        rasterio.MemoryFile() as memory,
        memory.open(**profile, transform=rasterio.Affine(2, 0, 0, 0, -2, 0)) as f,
    ):
        f.write(pixels.transpose(2, 0, 1))
        theirs = f.read(out_shape=(pixels.shape[2], *size), resampling=rasterio.enums.Resampling.average)
    difference = np.abs(read.astype(int) - theirs.transpose(1, 2, 0).astype(int))
    assert difference.max() <= 1  # ties round up there
    assert (difference == 0).mean() > 0.8
