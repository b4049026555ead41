"""Zarr of both versions, made here; zarr itself is the oracle."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from raysegment.errors import InputError, ReadError, UsageError
from raysegment.geometry import Size, Window
from raysegment.raster import open_raster
from raysegment.raster.zarr import ZarrRaster

HEIGHT, WIDTH = 70, 90
_KINDS = ("time", "channel", "space", "space", "space")


def stored(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    array = zarr.create_array(path, shape=pixels.shape, dtype=pixels.dtype, **options)
    array[...] = pixels
    return path


def random(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, shape).astype(dtype)


@pytest.fixture(scope="module", params=["v2", "v3", "sharded", "big-endian"])
def flavour(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, np.ndarray]:
    pixels = random(HEIGHT, WIDTH, 3, dtype=">u2" if request.param == "big-endian" else "uint8")
    options: dict[str, Any] = {
        "v2": {"zarr_format": 2, "chunks": (16, 32, 3)},
        "v3": {"chunks": (16, 32, 1)},
        "sharded": {"chunks": (16, 16, 3), "shards": (32, 32, 3)},
        "big-endian": {"zarr_format": 2, "chunks": (20, 90, 3)},
    }[request.param]
    return stored(tmp_path_factory.mktemp("zarr") / "a.zarr", pixels, **options), pixels


@given(st.data())
def test_a_window_is_a_crop_of_the_whole(flavour: tuple[Path, np.ndarray], data: st.DataObject) -> None:
    path, pixels = flavour
    raster = open_raster(path)
    y, x = data.draw(st.integers(0, HEIGHT - 1)), data.draw(st.integers(0, WIDTH - 1))
    height, width = data.draw(st.integers(1, HEIGHT - y)), data.draw(st.integers(1, WIDTH - x))
    window = Window(y=y, x=x, height=height, width=width)
    read = raster.read(window)
    assert raster.shape == (HEIGHT, WIDTH, 3)
    assert read.dtype == raster.dtype
    assert read.dtype.isnative
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, pixels[window.slices()])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((40, 50), (40, 50, 1)),
        ((40, 50, 3), (40, 50, 3)),
        ((3, 40, 50), (40, 50, 3)),
        ((16, 40, 50), (40, 50, 16)),
    ],
)
def test_unnamed_axes_are_told_by_size(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, int, int]
) -> None:
    pixels = random(*shape)
    raster = open_raster(stored(tmp_path / "a.zarr", pixels))
    assert raster.shape == expected
    whole = raster.read(Window(y=0, x=0, height=40, width=50))
    turned = pixels.transpose(1, 2, 0) if shape[0] < 40 else pixels.reshape(expected)
    np.testing.assert_array_equal(whole, turned)


@pytest.mark.parametrize("shape", [(40, 50, 60), (17, 40, 50), (5,), (2, 3, 4, 5), (8, 8, 8)])
def test_axes_that_cannot_be_told_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="which is which cannot be told"):
        open_raster(stored(tmp_path / "a.zarr", random(*shape)))


@pytest.mark.parametrize("shape", [(12, 40, 50), (17, 40, 50), (40, 50, 60)])
def test_a_selection_says_that_an_unnamed_array_is_a_stack(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = random(*shape)
    path = stored(tmp_path / "a.zarr", pixels)
    raster = open_raster(path, select={"z": 11})
    assert raster.shape == (*shape[1:], 1)
    window = Window(y=3, x=4, height=20, width=30)
    np.testing.assert_array_equal(raster.read(window)[:, :, 0], pixels[11][window.slices()])
    again = pickle.loads(pickle.dumps(raster))
    np.testing.assert_array_equal(again.read(window), raster.read(window))
    with pytest.raises(UsageError, match="select z=60 is outside"):
        open_raster(path, select={"z": 60})
    if shape[0] > 16:
        with pytest.raises(InputError, match="to read one plane of the first axis, --select z=0"):
            open_raster(path)


def test_a_selection_turns_no_pixels_into_a_stack(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.zarr", random(40, 50, 3))
    with pytest.raises(UsageError, match=r"select z=0 does not fit .*\(y=40, x=50, c=3\)"):
        open_raster(path, select={"z": 0})
    assert open_raster(path, select={"c": 2}).shape == (40, 50, 1)


def test_named_axes_are_honoured(tmp_path: Path) -> None:
    pixels = random(4, 30, 2, 20)
    named = stored(tmp_path / "v3.zarr", pixels, dimension_names=("time", "lon", "band", "lat"))
    attributed = stored(tmp_path / "v2.zarr", pixels, zarr_format=2)
    zarr.open_array(attributed).attrs["_ARRAY_DIMENSIONS"] = ["time", "lon", "band", "lat"]
    for path in (named, attributed):
        with pytest.raises(UsageError, match=r"t=4, x=30, c=2, y=20.*--select t=0"):
            open_raster(path)
        raster = open_raster(path, select={"time": 3})
        assert raster.shape == (20, 30, 2)
        read = raster.read(Window(y=2, x=3, height=10, width=20))
        np.testing.assert_array_equal(read, pixels[3].transpose(2, 0, 1)[2:12, 3:23])
        one = open_raster(path, select={"t": 3, "c": 1})
        np.testing.assert_array_equal(
            one.read(Window(y=0, x=0, height=20, width=30))[:, :, 0], pixels[3, :, 1].T
        )
        again = pickle.loads(pickle.dumps(raster))
        np.testing.assert_array_equal(again.read(Window(y=2, x=3, height=10, width=20)), read)


def test_bool_becomes_uint8(tmp_path: Path) -> None:
    pixels = random(20, 20) > 100
    raster = open_raster(stored(tmp_path / "a.zarr", pixels))
    assert raster.dtype == np.uint8
    np.testing.assert_array_equal(raster.read(Window(y=0, x=0, height=20, width=20))[:, :, 0], pixels)


def test_nodata_by_attribute_and_nan(tmp_path: Path) -> None:
    pixels = random(20, 20).astype(np.float32)
    pixels[3, 4], pixels[5, 6] = -9999, np.nan
    path = stored(tmp_path / "a.zarr", pixels)
    zarr.open_array(path).attrs["_FillValue"] = -9999
    raster = open_raster(path)
    window = Window(y=0, x=0, height=20, width=20)
    valid = raster.valid(window, raster.read(window))
    assert raster.nodata == -9999
    assert valid is not None
    assert list(zip(*np.nonzero(~valid), strict=True)) == [(3, 4), (5, 6)]


def test_chunks_that_were_never_written_are_the_fill_value(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(32, 32), chunks=(16, 16), dtype="u1", fill_value=9)
    array[:16, :16] = 1
    read = open_raster(tmp_path / "a.zarr").read(Window(y=8, x=8, height=16, width=16))
    assert (read[:8, :8] == 1).all()
    assert (read[8:] == 9).all()


def ome_zarr(
    path: Path, attributes: dict[str, Any] | None = None, unit: str | None = "nanometer"
) -> np.ndarray:
    """A sharded OME-Zarr 0.5 of two levels, c 2 × y 64 × x 48."""
    pixels = random(2, 64, 48)
    stored(path / "0", pixels, chunks=(1, 16, 16), shards=(2, 32, 32))
    stored(path / "1", pixels[:, ::2, ::2].copy(), chunks=(1, 16, 16))
    space = [{"name": n, "type": "space"} | ({"unit": unit} if unit else {}) for n in "yx"]
    scale = [{"type": "scale", "scale": [1, 500, 250]}]
    ome = {
        "version": "0.5",
        "multiscales": [
            {
                "axes": [{"name": "c", "type": "channel"}, *space],
                "datasets": [{"path": str(k), "coordinateTransformations": scale} for k in (0, 1)],
            }
        ],
    }
    zarr.create_group(path, attributes={"ome": ome, **(attributes or {})})
    return pixels


def test_ome_zarr_levels_and_pixel_size(tmp_path: Path) -> None:
    pixels = ome_zarr(tmp_path / "a.zarr")
    raster = open_raster(tmp_path / "a.zarr")
    assert raster.format == "OME-Zarr 0.5"
    assert raster.levels == (Size(64, 48), Size(32, 24))
    assert raster.chunk == Size(16, 16)
    assert raster.pixel_size == (0.5, 0.25, "um")
    for level, step in ((0, 1), (1, 2)):
        height, width = raster.levels[level]
        read = raster.read(Window(y=0, x=0, height=height, width=width), level)
        np.testing.assert_array_equal(read, pixels[:, ::step, ::step].transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("micrometer", (500, 250, "um")), ("meter", (500, 250, "m")), (None, (500, 250, None))],
)
def test_ome_zarr_units(tmp_path: Path, unit: str | None, expected: tuple[float, float, str | None]) -> None:
    ome_zarr(tmp_path / "a.zarr", unit=unit)
    assert open_raster(tmp_path / "a.zarr").pixel_size == expected


def test_translations_are_told_in_pixels(tmp_path: Path) -> None:
    """The data set's own scale and translation come before the pyramid's."""
    ome_zarr(tmp_path / "a.zarr")
    file = tmp_path / "a.zarr" / "zarr.json"
    metadata = json.loads(file.read_text())
    scales = metadata["attributes"]["ome"]["multiscales"][0]
    scales["datasets"][0]["coordinateTransformations"].append(
        {"type": "translation", "translation": [0, 1000, -250]}
    )
    scales["coordinateTransformations"] = [
        {"type": "scale", "scale": [1, 2, 4]},
        {"type": "translation", "translation": [0, 500, 0]},
    ]
    file.write_text(json.dumps(metadata))
    raster = open_raster(tmp_path / "a.zarr")
    assert isinstance(raster, ZarrRaster)
    assert raster.pixel_size == (1.0, 1.0, "um")
    assert raster.offset == (2.5, -1.0)  # (1000 · 2 + 500) nm in pixels of 1000 nm


def test_a_place_on_the_map_is_read_back(tmp_path: Path) -> None:
    transform = [0.5, 0.0, 300_000.0, 0.0, -0.25, 5_000_000.0]
    ome_zarr(tmp_path / "a.zarr", {"proj:code": "EPSG:32632", "spatial:transform": transform})
    raster = open_raster(tmp_path / "a.zarr")
    assert raster.crs == "EPSG:32632"
    assert raster.transform == tuple(transform)
    assert raster.pixel_size == (0.25, 0.5, "m")
    ome_zarr(tmp_path / "b.zarr", {"proj:wkt2": 'GEOGCRS["somewhere"]', "spatial:transform": transform})
    assert open_raster(tmp_path / "b.zarr").pixel_size == (0.25, 0.5, "degree")


def test_masks_written_here_are_read_with_nodata(tmp_path: Path) -> None:
    ome_zarr(tmp_path / "a.zarr", {"raysegment": {"classes": [], "nodata": 255}})
    assert open_raster(tmp_path / "a.zarr").nodata == 255


# ---- what is broken


def test_a_folder_without_metadata_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without Zarr metadata"):
        open_raster(tmp_path)


def test_groups_say_what_they_hold(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "g.zarr")
    with pytest.raises(InputError, match="holds nothing"):
        open_raster(tmp_path / "g.zarr")
    group.create_array("image", shape=(8, 9), dtype="u1")
    assert open_raster(tmp_path / "g.zarr").shape == (8, 9, 1)
    group.create_array("mask", shape=(8, 9), dtype="u1")
    with pytest.raises(InputError, match="image, mask"):
        open_raster(tmp_path / "g.zarr")
    assert open_raster(tmp_path / "g.zarr" / "mask").shape == (8, 9, 1)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_one_image_of_bioformats2raw_is_opened(tmp_path: Path, version: str) -> None:
    path = tmp_path / "b.zarr"
    layout: dict[str, Any] = {"bioformats2raw.layout": 3}
    if version == "0.5":
        zarr.create_group(path, attributes={"ome": {"version": "0.5", **layout}})
        zarr.create_group(path / "OME", attributes={"ome": {"version": "0.5", "series": ["0"]}})
    else:
        zarr.create_group(path, attributes=layout, zarr_format=2)
        zarr.create_group(path / "OME", attributes={"series": ["0"]}, zarr_format=2)
    (path / "OME" / "METADATA.ome.xml").write_text("<OME/>")
    with pytest.raises(InputError, match="holds nothing"):
        open_raster(path)
    image = _bioformats_image if version == "0.4" else ome_zarr
    pixels = image(path / "0")
    raster = open_raster(path)
    assert raster.format == f"OME-Zarr {version}"
    np.testing.assert_array_equal(
        raster.read(Window(y=0, x=0, height=64, width=48)), pixels.transpose(1, 2, 0)
    )
    image(path / "1")
    with pytest.raises(InputError, match="holds 0, 1: give the path of one image"):
        open_raster(path)


def _bioformats_image(path: Path) -> np.ndarray:
    """A 0.4 image as bioformats2raw writes it: five axes."""
    pixels = random(2, 64, 48)
    stored(path / "0", pixels[None, :, None], zarr_format=2, chunks=(1, 1, 1, 16, 16))
    axes = [{"name": n, "type": t} for n, t in zip("tczyx", _KINDS, strict=True)]
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0, 0.5, 0.5]}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    scales = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    zarr.create_group(path, attributes={"multiscales": scales}, zarr_format=2)
    return pixels


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"zarr_format": 3}', '{"zarr_format": 9, "node_type": "array"}']
)
def test_damaged_metadata_is_refused(tmp_path: Path, text: str) -> None:
    stored(tmp_path / "a.zarr", random(8, 8))
    (tmp_path / "a.zarr" / "zarr.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.zarr is not a readable Zarr"):
        open_raster(tmp_path / "a.zarr")


def test_levels_that_are_missing_are_refused(tmp_path: Path) -> None:
    ome_zarr(tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "1" / "zarr.json").unlink()
    with pytest.raises(InputError, match=r"a\.zarr"):
        open_raster(tmp_path / "a.zarr")


def test_axes_and_shape_must_agree(tmp_path: Path) -> None:
    ome_zarr(tmp_path / "a.zarr")
    metadata = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    metadata["attributes"]["ome"]["multiscales"][0]["axes"].pop(0)
    (tmp_path / "a.zarr" / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(InputError, match="names 2 axes"):
        open_raster(tmp_path / "a.zarr")


@pytest.mark.parametrize("sharded", [False, True])
def test_a_damaged_chunk_is_named(tmp_path: Path, sharded: bool) -> None:
    options: dict[str, Any] = {"shards": (32, 32)} if sharded else {}
    path = stored(
        tmp_path / "a.zarr", random(64, 64), chunks=(32, 32) if not sharded else (16, 16), **options
    )
    chunk = path / "c" / "1" / "1"
    chunk.write_bytes(chunk.read_bytes()[:100])
    raster = open_raster(path)
    raster.read(Window(y=0, x=0, height=32, width=64))
    with pytest.raises(ReadError, match=r"a\.zarr: cannot read y 30–50, x 10–50"):
        raster.read(Window(y=30, x=10, height=20, width=40))
