"""Small pictures of big images, and the picture of a mask over its image."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from masks import write_tiff_mask, write_zarr_mask
from PIL import Image
from typer.testing import CliRunner

from raysegment.cli.app import app
from raysegment.errors import InputError, OutputExistsError, UsageError
from raysegment.geometry import Size, Window
from raysegment.mask.coding import read_coding
from raysegment.mask.drawing import OPACITY, outlines
from raysegment.mask.overview import NOTHING, Area, mode_picture
from raysegment.mask.preview import Placement, picture_size, preview
from raysegment.raster import open_raster, overview
from raysegment.raster.overview import mean_picture

CLASSES = [("land", 0), ("water", 1), ("roof", 2)]
COLOURS = np.array([[40 * i, 10, 200] for i in range(3)], float)
"""What `write_zarr_mask` gives the classes."""


def tif(path: Path, pixels: np.ndarray, **kwargs: Any) -> Path:
    tifffile.imwrite(path, pixels, metadata=None, **kwargs)
    return path


def cuts(length: int, count: int) -> list[slice]:
    """The source pixels of each picture pixel, as the definition says."""
    starts = [i * length // count for i in range(count)] + [length]
    return [slice(a, max(b, a + 1)) for a, b in pairwise(starts)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 999),
    full=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    budget=st.integers(1, 500),
    strips=st.booleans(),
)
def test_a_picture_is_made_of_the_pixels_it_stands_for_however_it_is_cut(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    full: tuple[int, int],
    size: tuple[int, int],
    budget: int,
    strips: bool,
) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 6, full).astype(np.uint16)
    path = tif(tmp_path / "i.tif", pixels, extratags=[(42113, "s", 0, "5", True)], rowsperstrip=3)
    if not strips:
        path = tif(tmp_path / "t.tif", pixels, extratags=[(42113, "s", 0, "5", True)], tile=(16, 16))
    monkeypatch.setattr(overview, "PART_PIXELS", budget)
    raster = open_raster(path)
    area = Window(y=0, x=0, height=full[0], width=full[1])
    mean, share = mean_picture(raster, area, Size(*size), [0])
    mode = mode_picture(raster, Area(0, 0, *full), Size(*size))
    raster.close()
    for i, rows in enumerate(cuts(full[0], size[0])):
        for j, cols in enumerate(cuts(full[1], size[1])):
            cell = pixels[rows, cols]
            data = cell[cell != 5]
            assert mean[i, j, 0] == pytest.approx(data.mean() if data.size else 0)
            assert share[i, j] == pytest.approx(data.size / cell.size)
    stands_for = [pixels_under(Fraction(n, m), Fraction(0), m, n) for n, m in zip(full, size, strict=True)]
    assert_commonest(mode, pixels, *stands_for, nodata=5)


def pixels_under(step: Fraction, start: Fraction, count: int, length: int) -> list[list[int]]:
    """Of `count` picture pixels of `step` mask pixels each: those of `length` whose centres they hold or, where
    the picture is finer, the one under their own."""
    if step < 1:
        centres = [floor(start + (i + Fraction(1, 2)) * step) for i in range(count)]
        return [[c] if 0 <= c < length else [] for c in centres]
    place = [floor((k + Fraction(1, 2) - start) / step) for k in range(length)]
    return [[k for k in range(length) if place[k] == i] for i in range(count)]


def assert_commonest(
    mode: np.ndarray, labels: np.ndarray, rows: list[list[int]], cols: list[list[int]], nodata: int
) -> None:
    for i, ys in enumerate(rows):
        for j, xs in enumerate(cols):
            counted = Counter(labels[np.ix_(ys, xs)].ravel().tolist() if ys and xs else [nodata])
            best = max(counted.values())
            assert mode[i, j] in {NOTHING if k == nodata else k for k, n in counted.items() if n == best}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), budget=st.integers(1, 300), zoom=st.integers(1, 4))
def test_a_mask_of_any_scale_and_origin_lies_under_the_picture_where_it_lies_on_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject, budget: int, zoom: int
) -> None:
    monkeypatch.setattr(overview, "PART_PIXELS", budget)
    full = [data.draw(st.integers(1, 40)) for _ in range(2)]
    grid = [data.draw(st.integers(1, 2 * length)) for length in full]
    scale = [Fraction(f, g) for f, g in zip(full, grid, strict=True)]
    at = [data.draw(st.integers(0, length - 1)) for length in grid]
    shape = [data.draw(st.integers(1, length - start)) for length, start in zip(grid, at, strict=True)]
    labels = np.random.default_rng(budget).integers(0, 4, shape).astype(np.uint8)
    labels[labels == 3] = 255
    shutil.rmtree(tmp_path / "m.zarr", ignore_errors=True)
    origin = [float(a * s) for a, s in zip(at, scale, strict=True)]
    path = write_zarr_mask(
        tmp_path / "m.zarr", labels, CLASSES, origin=origin, scale=[float(s) for s in scale], chunk=7
    )
    image, mask = open_raster(tif(tmp_path / "i.tif", np.zeros(full, np.uint8))), open_raster(path)
    place = Placement.of(image, mask, read_coding(path))
    image.close()
    touched = [(floor(a * s), ceil((a + n) * s)) for a, n, s in zip(at, shape, scale, strict=True)]
    if tuple(shape) != tuple(full) or any(at):
        assert place.covers == Window.between(*(t[0] for t in touched), *(t[1] for t in touched))

    start = [data.draw(st.integers(0, length - 1)) for length in full]
    length = [data.draw(st.integers(1, f - a)) for f, a in zip(full, start, strict=True)]
    size = [zoom * n if zoom > 1 else data.draw(st.integers(1, n)) for n in length]
    shown = Window(y=start[0], x=start[1], height=length[0], width=length[1])
    stands_for = [
        pixels_under(Fraction(n, count) / s, first / s - a, count, own)
        for n, count, s, first, a, own in zip(length, size, scale, start, at, shape, strict=True)
    ]
    assert_commonest(place.codes(mask, shown, Size(*size)), labels, *stands_for, nodata=255)


def test_the_nearest_level_is_read_and_never_the_whole_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = write_zarr_mask(tmp_path / "m.zarr", np.zeros((640, 640), np.uint8), CLASSES, chunk=64, levels=4)
    raster = open_raster(mask)
    read: list[tuple[int, int]] = []
    original = type(raster).read

    def spy(self: Any, window: Window, level: int = 0) -> np.ndarray:
        read.append((level, window.area))
        return original(self, window, level)

    monkeypatch.setattr(type(raster), "read", spy)
    monkeypatch.setattr(overview, "PART_PIXELS", 64 * 64)
    mode_picture(raster, Area(0, 0, 640, 640), Size(100, 100))
    assert {level for level, _ in read} == {2}
    assert sum(area for _, area in read) == 160 * 160
    assert max(area for _, area in read) <= 2 * 64 * 64
    read.clear()
    mean_picture(raster, Window(y=320, x=320, height=320, width=320), Size(50, 50), [0])
    assert {level for level, _ in read} == {2}


@pytest.mark.parametrize(
    ("shown", "most", "size", "scale"),
    [
        ((3000, 2000), 1000, (1000, 667), 3.0),
        ((100, 50), 1024, (800, 400), 1 / 8),
        ((400, 300), 1024, (800, 600), 0.5),
        ((1024, 8), 1024, (1024, 8), 1.0),
        ((20000, 1), 1000, (1000, 1), 20.0),
    ],
)
def test_the_longer_edge_fits_and_small_regions_are_magnified_by_whole_numbers(
    shown: tuple[int, int], most: int, size: tuple[int, int], scale: float
) -> None:
    window = Window(y=0, x=0, height=shown[0], width=shown[1])
    assert picture_size(window, most) == (Size(*size), pytest.approx(scale))


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Path, Path]:
    """A flat 64 × 96 image and its mask: land, a square of water, a corner without data in both."""
    image = np.full((64, 96, 3), (200, 100, 50), np.uint8)
    labels = np.zeros((64, 96), np.uint8)
    labels[20:40, 30:60] = 1
    labels[:8, :8] = 255
    image[:8, :8] = 0
    path = tif(tmp_path / "i.tif", image, photometric="rgb", extratags=[(42113, "s", 0, "0", True)])
    return path, write_zarr_mask(tmp_path / "m.zarr", labels, CLASSES)


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.mode == "RGBA"
        return np.asarray(picture)


def blended(kind: int) -> np.ndarray:
    return np.round((1 - OPACITY) * np.array([200, 100, 50]) + OPACITY * COLOURS[kind])


def test_colours_outlines_and_nodata(tmp_path: Path, scene: tuple[Path, Path]) -> None:
    result = preview(*scene, out=tmp_path / "p.png", max_size=96)
    picture = pixels_of(tmp_path / "p.png")
    assert (result.scale, result.shape) == (1.0, picture.shape[:2])
    assert picture.shape[1] >= 96
    np.testing.assert_allclose(picture[30, 45, :3], blended(1), atol=1)
    np.testing.assert_allclose(picture[50, 80, :3], blended(0), atol=1)
    assert picture[30, 45, 3] == 255
    assert picture[20, 45, :3].tolist() == COLOURS[1].tolist()  # outline, inside
    assert picture[19, 45, :3].tolist() == COLOURS[0].tolist()  # outline, outside
    assert picture[:7, :7, 3].max() < 255
    assert picture[1, 1, 3] == 0
    assert result.classes["water"] == pytest.approx(20 * 30 / (64 * 96 - 64))
    assert list(result.classes) == ["land", "water", "roof"]


def test_the_legend_shows_every_class_in_its_colour(tmp_path: Path, scene: tuple[Path, Path]) -> None:
    preview(*scene, out=tmp_path / "p.png", max_size=800)
    legend = pixels_of(tmp_path / "p.png")[64 * 8 :]
    for colour in COLOURS:
        assert (legend[:, :, :3] == colour).all(axis=2).sum() >= 100
    assert (legend[:, :, 3] == 255).all()


def test_a_region_is_that_part_of_the_whole(tmp_path: Path, scene: tuple[Path, Path]) -> None:
    preview(*scene, out=tmp_path / "whole.png", max_size=96)
    region = Window(y=10, x=20, height=40, width=50)
    result = preview(*scene, out=tmp_path / "part.png", region=region, max_size=50)
    assert result.region == region
    whole, part = pixels_of(tmp_path / "whole.png"), pixels_of(tmp_path / "part.png")
    inner = (slice(1, 39), slice(1, 49))  # the picture's edge has no outline
    np.testing.assert_array_equal(part[:40, :50][inner], whole[10:50, 20:70][inner])


def test_a_mask_of_a_region_lies_where_it_belongs(tmp_path: Path, scene: tuple[Path, Path]) -> None:
    labels = np.ones((16, 24), np.uint8)
    mask = write_zarr_mask(tmp_path / "part.zarr", labels, CLASSES, origin=(24, 32))
    own = preview(scene[0], mask, out=tmp_path / "own.png")
    assert own.region == Window(y=24, x=32, height=16, width=24)
    assert own.classes["water"] == 1
    whole = Window(y=0, x=0, height=64, width=96)
    preview(scene[0], mask, out=tmp_path / "all.png", region=whole, max_size=96)
    picture = pixels_of(tmp_path / "all.png")
    np.testing.assert_allclose(picture[32, 44, :3], blended(1), atol=1)
    outside = picture[50:64, 60:96, :3]
    assert (outside == [200, 100, 50]).all(axis=2).mean() > 0.8  # as it is, but for the hatch


def test_a_mask_of_half_the_size_covers_the_image(tmp_path: Path) -> None:
    image = tif(tmp_path / "i.tif", np.full((65, 97), 90, np.uint8))
    labels = np.zeros((33, 49), np.uint8)
    labels[16:] = 1
    result = preview(image, tif(tmp_path / "m.tif", labels), out=tmp_path / "p.png", max_size=97)
    picture = pixels_of(tmp_path / "p.png")
    assert result.region == Window(y=0, x=0, height=65, width=97)
    assert result.classes["class 1"] == pytest.approx(17 / 33, abs=0.02)
    assert not np.array_equal(picture[10, 10], picture[60, 10])


def test_rounding_moves_no_pixel_whose_centre_lies_on_a_border(tmp_path: Path) -> None:
    labels = np.array([[0] * 12 + [1] * 12 + [1] + [2] * 24], np.uint8)  # the 25th is the second half's
    mask = write_zarr_mask(tmp_path / "m.zarr", labels, CLASSES, scale=(1, 2 / 49))
    image = tif(tmp_path / "i.tif", np.zeros((1, 2), np.uint8))
    found = preview(image, mask, out=tmp_path / "p.png", max_size=16)
    assert found.region == Window(y=0, x=0, height=1, width=2)
    raster = open_raster(mask)
    place = Placement((0, 0), (1, 2 / 49), Size(1, 49))
    assert place.codes(raster, found.region, Size(1, 2)).tolist() == [[0, 2]]


@pytest.mark.parametrize(("scale", "origin"), [(4, (24, 32)), (0.5, (24, 32)), (0.25, (0, 0)), (8, (0, 0))])
def test_a_mask_of_another_scale_lies_where_it_belongs(
    tmp_path: Path, scene: tuple[Path, Path], scale: float, origin: tuple[int, int]
) -> None:
    """A square of water at the image's y 32–48, x 48–64."""
    top, left = (int((a - o) / scale) for a, o in zip((32, 48), origin, strict=True))
    labels = np.zeros([int((n - o) / scale) for n, o in zip((64, 96), origin, strict=True)], np.uint8)
    labels[top : top + int(16 / scale), left : left + int(16 / scale)] = 1
    mask = write_zarr_mask(tmp_path / "s.zarr", labels, CLASSES, origin=origin, scale=(scale, scale))
    own = preview(scene[0], mask, out=tmp_path / "own.png")
    assert own.region == Window.between(*origin, 64, 96)
    whole = Window(y=0, x=0, height=64, width=96)
    preview(scene[0], mask, out=tmp_path / "all.png", region=whole, max_size=192, layout="side")
    drawn = pixels_of(tmp_path / "all.png")[: 2 * 64, 2 * 96 + 8 :, :3]
    water = np.zeros((128, 192), bool)
    water[64:96, 96:128] = True
    np.testing.assert_array_equal((drawn == COLOURS[1]).all(axis=2), water)
    part = preview(
        scene[0], mask, out=tmp_path / "p.png", region=Window(y=47, x=63, height=2, width=2), max_size=16
    )
    assert part.classes["water"] == pytest.approx(1 / 4)


def test_a_mask_lies_right_on_a_smaller_copy_of_its_image(tmp_path: Path) -> None:
    labels = np.ones((16, 16), np.uint8)
    mask = write_zarr_mask(
        tmp_path / "m.zarr",
        labels,
        CLASSES,
        origin=(32, 48),
        scale=(2, 2),
        **{"proj:code": "EPSG:32643", "spatial:transform": [2.0, 0, 0, 0, -2.0, 0]},
    )
    where = {"proj:code": "EPSG:32643", "spatial:transform": [4.0, 0, 0, 0, -4.0, 0]}
    copy = write_zarr_mask(tmp_path / "i.zarr", np.zeros((32, 32), np.uint8), CLASSES, **where)
    assert preview(copy, mask, out=tmp_path / "p.png").region == Window(y=8, x=12, height=8, width=8)


def test_side_by_side(tmp_path: Path, scene: tuple[Path, Path]) -> None:
    preview(*scene, out=tmp_path / "p.png", max_size=96, layout="side")
    picture = pixels_of(tmp_path / "p.png")
    assert picture.shape[1] == 2 * 96 + 8
    assert picture[30, 45, :3].tolist() == [200, 100, 50]
    assert picture[30, 96 + 8 + 45, :3].tolist() == COLOURS[1].tolist()


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_images_of_other_types_are_stretched(tmp_path: Path, dtype: type) -> None:
    ramp = np.linspace(400, 900, 64 * 64).reshape(64, 64).astype(dtype)
    if np.dtype(dtype).kind == "f":
        ramp[0, :5] = [np.nan, np.inf, -np.inf, np.nan, 0]
    mask = tif(tmp_path / "m.tif", np.zeros((64, 64), np.uint8))
    preview(tif(tmp_path / "i.tif", ramp), mask, out=tmp_path / "p.png", max_size=64, layout="side")
    grey = pixels_of(tmp_path / "p.png")[:64, :64]
    assert grey[0, 10, 0] == 0
    assert grey[63, 60, 0] == 255
    assert 100 < grey[32, 0, 0] < 155
    assert (grey[:, :, 0] == grey[:, :, 2]).all()


def test_many_bands_palette_and_alpha(tmp_path: Path) -> None:
    mask = tif(tmp_path / "m.tif", np.zeros((32, 32), np.uint8))
    bands = np.zeros((32, 32, 5), np.uint8)
    bands[:] = (200, 100, 50, 9, 9)
    image = tif(tmp_path / "b.tif", bands, photometric="minisblack", planarconfig="contig")
    preview(image, mask, out=tmp_path / "b.png", layout="side", max_size=32)
    assert pixels_of(tmp_path / "b.png")[5, 5].tolist() == [200, 100, 50, 255]
    indexed = Image.frombytes("P", (32, 32), bytes([1]) * 1024)
    indexed.putpalette([0, 0, 0, 10, 220, 30])
    indexed.save(tmp_path / "pal.png")
    preview(tmp_path / "pal.png", mask, out=tmp_path / "c.png", layout="side", max_size=32)
    assert pixels_of(tmp_path / "c.png")[5, 5].tolist() == [10, 220, 30, 255]
    Image.new("RGBA", (32, 32), (220, 1, 2, 0)).save(tmp_path / "a.png")
    preview(tmp_path / "a.png", mask, out=tmp_path / "d.png", max_size=32)
    assert pixels_of(tmp_path / "d.png")[:32, :32, 3].max() < 255


def test_masks_without_a_coding(tmp_path: Path) -> None:
    image = tif(tmp_path / "i.tif", np.full((8, 8), 90, np.uint8))
    binary = np.repeat([[0, 255]], 8, axis=0).repeat(4, axis=1).astype(np.uint8)
    assert preview(image, tif(tmp_path / "b.tif", binary), out=tmp_path / "p.png").classes == {
        "class 0": 0.5,
        "class 1": 0.5,
    }
    Image.fromarray(np.dstack([binary, binary * 0, binary * 0])).save(tmp_path / "rgb.png")
    rgb = preview(image, tmp_path / "rgb.png", out=tmp_path / "q.png")
    assert rgb.classes == {"#000000": 0.5, "#ff0000": 0.5}
    numbered = write_tiff_mask(tmp_path / "n.tif", binary // 128, [("sea", 0), ("ice", 1)])
    assert list(preview(image, numbered, out=tmp_path / "r.png").classes) == ["sea", "ice"]


def test_what_cannot_be_drawn_is_said(
    tmp_path: Path, scene: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, mask = scene
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_: False)
        with pytest.raises(UsageError, match=r"p\.png: no right to write into"):
            preview(image, mask, out=tmp_path / "p.png")
    with pytest.raises(UsageError, match=r"p\.jpg.*\.png"):
        preview(image, mask, out=tmp_path / "p.jpg")
    with pytest.raises(UsageError, match="no folder"):
        preview(image, mask, out=tmp_path / "no" / "p.png")
    with pytest.raises(UsageError, match="outside"):
        preview(image, mask, out=tmp_path / "p.png", region=Window(y=64, x=0, height=9, width=9))
    with pytest.raises(UsageError, match="too small"):
        preview(image, mask, out=tmp_path / "p.png", max_size=3)
    other = tif(tmp_path / "o.tif", np.zeros((70, 20), np.uint8))
    with pytest.raises(InputError, match=r"70 × 20 px.*64 × 96 px"):
        preview(image, other, out=tmp_path / "p.png")
    assert not list(tmp_path.glob("*.png"))
    (tmp_path / "p.png").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"p\.png .*--overwrite"):
        preview(image, mask, out=tmp_path / "p.png")
    assert (tmp_path / "p.png").read_text() == "mine"
    preview(image, mask, out=tmp_path / "p.png", overwrite=True)
    assert pixels_of(tmp_path / "p.png").ndim == 3


def test_outlines_are_where_codes_change() -> None:
    codes = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    assert outlines(codes).tolist() == [[False, True, False], [True, True, True], [False, True, False]]


def test_the_command(tmp_path: Path, scene: tuple[Path, Path]) -> None:
    words = [
        "preview",
        *map(str, scene),
        "--out",
        str(tmp_path / "p.png"),
        "--region",
        "20",
        "10",
        "50",
        "40",
    ]
    answer = CliRunner().invoke(app, [*words, "--layout", "side", "--max-size", "100", "--json"])
    assert answer.exit_code == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found["region"] == [20, 10, 50, 40]
    assert found["shape"] == list(pixels_of(tmp_path / "p.png").shape[:2])
    assert CliRunner().invoke(app, ["preview", *map(str, scene)]).exit_code == 2


def test_one_plane_of_a_stack_is_drawn(tmp_path: Path, scene: tuple[Path, Path]) -> None:
    """Of the image alone, whose mask is of that plane; and of both."""
    for name, path in zip(("image", "mask"), scene, strict=True):
        plane = open_raster(path).read(Window(y=0, x=0, height=64, width=96))
        stack = zarr.create_array(
            tmp_path / f"{name}.zarr",
            shape=(3, *plane.shape),
            dtype="u1",
            dimension_names=("z", "y", "x", "c"),
            attributes={"nodata": {"image": 0, "mask": 255}[name]},
        )
        stack[1] = plane
    preview(*scene, out=tmp_path / "flat.png")
    with pytest.raises(UsageError, match="--select z=0"):
        preview(tmp_path / "image.zarr", scene[1], out=tmp_path / "a.png")
    words = ["preview", f"{tmp_path}/image.zarr", str(scene[1]), "--out", f"{tmp_path}/a.png"]
    assert CliRunner().invoke(app, [*words, "--select", "z=1"]).exit_code == 0
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.png"), pixels_of(tmp_path / "flat.png"))
    with pytest.raises(UsageError, match="--select z=0"):
        preview(tmp_path / "image.zarr", tmp_path / "mask.zarr", out=tmp_path / "b.png")
    both = preview(tmp_path / "image.zarr", tmp_path / "mask.zarr", out=tmp_path / "b.png", select={"z": 1})
    assert list(both.classes.values()) == pytest.approx([5480 / 6080, 600 / 6080])
