"""What stands in training and in validation alike is found under any name, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
import tifffile
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from rasterio.transform import Affine

from raysegment.geometry import Size
from raysegment.training.dataset import Scene, identities
from raysegment.training.forms import File
from raysegment.training.forms.leaks import _area, _clipped, _in_crs, _Place, overlaps, same_pictures

_RNG = np.random.default_rng(0)


def _scene(path: Path, size: tuple[int, int] = (40, 50)) -> Scene:
    return Scene(path.name, File.at(path), File.at(path), Size(*size))


def _pictures(train: list[Scene], val: list[Scene]) -> list[tuple[str, str]]:
    contents = [image for image, _ in identities([*train, *val])]
    return [(leak.train, leak.val) for leak in same_pictures(train, val, contents)]


def test_a_copy_is_found_under_another_name_and_in_another_format(tmp_path: Path) -> None:
    pixels = _RNG.integers(0, 255, (40, 50, 3), dtype=np.uint8)
    one_off = pixels.copy()
    one_off[0, 0, 0] ^= 1  # far from the middle
    for name, picture in (("a", pixels), ("copy", pixels), ("other", one_off)):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    tifffile.imwrite(tmp_path / "same.tif", pixels, photometric="rgb", tile=(16, 16), compression="deflate")
    tifffile.imwrite(tmp_path / "deep.tif", pixels.astype(np.uint16), photometric="rgb")
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "alpha.png")
    train = [_scene(tmp_path / "a.png")]
    val = [_scene(tmp_path / name) for name in ("other.png", "copy.png", "same.tif", "deep.tif", "alpha.png")]
    assert _pictures(train, val) == [("a.png", n) for n in ("copy.png", "same.tif", "alpha.png")]


def test_tiles_without_data_are_no_leak(tmp_path: Path) -> None:
    for name in "ab":
        Image.fromarray(np.zeros((40, 50), np.uint8)).save(tmp_path / f"{name}.png")
    assert _pictures([_scene(tmp_path / "a.png")], [_scene(tmp_path / "b.png")]) == []


def test_real_slices_are_no_leak(shared_data: Path) -> None:
    files = sorted((shared_data / "isbi2012" / "images").iterdir())
    scenes = [_scene(path, (512, 512)) for path in files[:8]]
    assert _pictures(scenes[:4], scenes[4:]) == []
    assert _pictures(scenes[:4], [*scenes[3:5]]) == [("03.png", "03.png")]


def _placed(
    root: Path, name: str, transform: Affine, crs: str = "EPSG:32616", size: tuple[int, int] = (40, 50)
) -> Scene:
    height, width = size
    with rasterio.open(
        root / f"{name}.tif",
        "w",
        width=width,
        height=height,
        count=1,
        dtype="uint8",
        crs=crs,
        transform=transform,
    ) as out:
        out.write(_RNG.integers(0, 255, (1, height, width), dtype=np.uint8))
    return _scene(root / f"{name}.tif", size)


def _at(y: float, x: float, pixel: float = 10) -> Affine:
    return Affine(pixel, 0, 500000 + x * pixel, 0, -pixel, 4000000 - y * pixel)


@pytest.mark.parametrize(
    ("y", "x", "share"),
    [
        (0, 0, 1),
        (20, 0, 0.5),
        (20, 25, 0.25),
        (40, 0, 0),
        (0, 50, 0),
        (0, 49.7, 0),
        (0, 49, 1 / 50),
        (300, 0, 0),
    ],
)
def test_overlap_on_the_ground_has_its_share_and_neighbours_are_none(
    tmp_path: Path, y: float, x: float, share: float
) -> None:
    found = overlaps([_placed(tmp_path, "a", _at(0, 0))], [_placed(tmp_path, "b", _at(y, x))])
    assert [leak.share for leak in found] == ([] if share == 0 else [pytest.approx(share)])


def test_another_coordinate_system_and_another_pixel_size(tmp_path: Path) -> None:
    from rasterio.warp import transform

    train = [_placed(tmp_path, "a", _at(0, 0))]
    assert [leak.share for leak in overlaps(train, [_placed(tmp_path, "fine", _at(0, 0, 1))])] == [
        pytest.approx(1)
    ]
    (lon,), (lat,) = transform("EPSG:32616", "EPSG:4326", [500000], [4000000])
    inside = _placed(tmp_path, "degrees", Affine(1e-5, 0, lon + 1e-4, 0, -1e-5, lat - 1e-4), "EPSG:4326")
    assert [(leak.train, leak.val, leak.share) for leak in overlaps(train, [inside])] == [
        ("a.tif", "degrees.tif", pytest.approx(1))
    ]
    away = _placed(tmp_path, "away", Affine(1e-5, 0, lon + 1, 0, -1e-5, lat), "EPSG:4326")
    plain = tmp_path / "plain.png"
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(plain)
    assert overlaps(train, [away, _scene(plain)]) == []


def test_a_coordinate_system_that_nobody_knows_is_left_out() -> None:
    assert _in_crs(_Place(np.zeros((4, 2)), "EPSG:4326", Size(1, 1)), "nonsense") is None


_FOUR = st.tuples(
    st.floats(-10, 10), st.floats(-10, 10), st.floats(0.5, 8), st.floats(0.5, 8), st.floats(0, 360)
)


@given(_FOUR, _FOUR, st.booleans())
def test_the_shared_part_of_turned_rectangles_is_shapelys(
    a: tuple[float, ...], b: tuple[float, ...], turn: bool
) -> None:
    corners = []
    for x, y, width, height, angle in (a, b):
        cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        upright = np.array([(0, 0), (width, 0), (width, height), (0, height)])
        corners.append(upright @ np.array([[cos, sin], [-sin, cos]]) + (x, y))
    if turn:
        corners[1] = corners[1][::-1]
    expected = shapely.Polygon(corners[0]).intersection(shapely.Polygon(corners[1])).area
    assume(expected == 0 or expected > 1e-9)
    assert _area(_clipped(*corners)) == pytest.approx(expected, abs=1e-9, rel=1e-9)
