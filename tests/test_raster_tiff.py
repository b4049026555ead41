"""TIFF of every layout, made here, read by windows; tifffile and rasterio are the oracles."""

from __future__ import annotations

import gc
import pickle
import struct
import threading
import tracemalloc
import warnings
from pathlib import Path

import imagecodecs
import numpy as np
import PIL.Image
import pytest
import rasterio
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import Affine

from raysegment import console
from raysegment.errors import InputError, ReadError, UsageError
from raysegment.geometry import Size, Window
from raysegment.raster import Raster, open_raster
from raysegment.raster.tiff import TiffRaster
from raysegment.storage.byte_file import ByteFile

HEIGHT, WIDTH = 150, 131


def whole(raster: Raster, level: int = 0) -> Window:
    return Window(y=0, x=0, height=raster.levels[level].height, width=raster.levels[level].width)


def pattern(dtype: str, channels: int = 3, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Smooth (JPEG must come near it), different in every channel and place."""
    y, x, c = np.ogrid[:height, :width, :channels]
    wave = np.sin(y / 23 + c) * np.cos(x / 31 - c)
    if np.dtype(dtype).kind == "f":
        return wave.astype(dtype)
    return ((wave + 1) / 2 * min(np.iinfo(dtype).max, 60_000)).astype(dtype)


@st.composite
def windows(draw: st.DrawFn, height: int = HEIGHT, width: int = WIDTH) -> Window:
    y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return Window(y=y, x=x, height=draw(st.integers(1, height - y)), width=draw(st.integers(1, width - x)))


LAYOUTS = {
    "tiled": {"tile": (48, 64)},
    "striped": {"rowsperstrip": 17},
    "one strip": {"rowsperstrip": HEIGHT},
    "planar tiled": {"tile": (48, 64), "planarconfig": "separate"},
    "planar striped": {"rowsperstrip": 17, "planarconfig": "separate"},
}
FLAVOURS = [
    (layout, codec, dtype)
    for layout in LAYOUTS
    for codec in (None, "deflate", "lzw", "jpeg")
    for dtype in ("uint8", "uint16", "float32")
    if codec != "jpeg" or dtype == "uint8"
]


@pytest.fixture(scope="module")
def flavours(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str | None, str], Path]:
    folder = tmp_path_factory.mktemp("flavours")
    paths = {}
    for number, (layout, codec, dtype) in enumerate(FLAVOURS):
        pixels = pattern(dtype)
        options = dict(LAYOUTS[layout])
        if options.get("planarconfig"):
            pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        path = folder / f"{number}.tif"
        order = ">" if number % 2 else "<"
        tifffile.imwrite(
            path, pixels, photometric="rgb", compression=codec, metadata=None, byteorder=order, **options
        )
        paths[layout, codec, dtype] = path
    return paths


@pytest.mark.parametrize(("layout", "codec", "dtype"), FLAVOURS)
def test_a_window_is_a_crop_of_the_whole(
    flavours: dict[tuple[str, str | None, str], Path], layout: str, codec: str | None, dtype: str
) -> None:
    path = flavours[layout, codec, dtype]
    expected = tifffile.imread(path)
    if layout.startswith("planar"):
        expected = expected.transpose(1, 2, 0)
    raster = open_raster(path)
    assert raster.shape == (HEIGHT, WIDTH, 3)
    assert raster.dtype == np.dtype(dtype)
    assert raster.dtype.isnative
    if codec != "jpeg":
        np.testing.assert_array_equal(expected, pattern(dtype))

    @given(windows())
    def crops(window: Window) -> None:
        pixels = raster.read(window)
        assert pixels.dtype == raster.dtype
        assert pixels.flags.c_contiguous
        np.testing.assert_array_equal(pixels, expected[window.slices()])

    crops()
    raster.close()


@pytest.mark.parametrize(
    "dtype", ["int8", "int16", "int32", "int64", "uint32", "uint64", "float16", "float64"]
)
def test_every_number_type_comes_as_stored(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 100, (40, 30, 2)).astype(dtype)
    for codec, predictor in ((None, None), ("zstd", None), ("deflate", 2 if "int" in dtype else None)):
        path = tmp_path / "x.tif"
        tifffile.imwrite(
            path, pixels, tile=(16, 16), photometric="minisblack", planarconfig="contig",
            compression=codec, predictor=predictor, metadata=None,
        )  # fmt: skip
        raster = open_raster(path)
        assert raster.dtype == dtype
        read = raster.read(whole(raster))
        np.testing.assert_array_equal(read, pixels)
        np.testing.assert_array_equal(torch.from_numpy(read).double().numpy(), pixels)


def test_one_bit_pixels_are_0_and_1(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (33, 45)).astype(bool)
    tifffile.imwrite(tmp_path / "bits.tif", bits, photometric="minisblack", metadata=None)
    raster = open_raster(tmp_path / "bits.tif")
    assert raster.dtype == np.uint8
    np.testing.assert_array_equal(raster.read(whole(raster))[:, :, 0], bits)


def test_a_palette_is_read_as_the_stored_index(tmp_path: Path) -> None:
    index = np.random.default_rng(0).integers(0, 256, (20, 20)).astype(np.uint8)
    colours = np.random.default_rng(1).integers(0, 256, (3, 256)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "p.tif", index, photometric="palette", colormap=colours * 257, metadata=None)
    raster = open_raster(tmp_path / "p.tif")
    np.testing.assert_array_equal(raster.read(whole(raster))[:, :, 0], index)
    assert raster.palette is not None
    assert raster.palette[7] == tuple(colours[:, 7])


def test_no_more_is_read_than_the_window_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (2048, 2048), dtype=np.uint8)
    for name, options in (("strip", {"rowsperstrip": 2048}), ("tiles", {"tile": (128, 128)})):
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, metadata=None, **options)
        raster = open_raster(tmp_path / f"{name}.tif")
        taken: list[int] = []
        read = ByteFile.read
        with monkeypatch.context() as patch:
            patch.setattr(ByteFile, "read", lambda s, o, n, r=read, t=taken: (t.append(n), r(s, o, n))[1])
            raster.read(Window(y=1000, x=1000, height=60, width=50))
        assert sum(taken) <= 4 * 60 * 50, f"{name}: {sum(taken)} bytes for a window of 3000"


def test_a_large_compressed_strip_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raysegment.raster import page

    monkeypatch.setattr(page, "LARGE_BYTES", 100_000)
    pixels = np.random.default_rng(0).integers(0, 255, (800, 600), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", pixels, rowsperstrip=400, compression="deflate", metadata=None)
    raster = open_raster(tmp_path / "x.tif")
    taken: list[int] = []
    read = ByteFile.read
    monkeypatch.setattr(ByteFile, "read", lambda s, o, n: (taken.append(o), read(s, o, n))[1])
    for y in range(0, 800, 100):
        window = Window(y=y, x=50, height=100, width=200)
        np.testing.assert_array_equal(raster.read(window)[:, :, 0], pixels[window.slices()])
    assert len(taken) == 2


# ---- pyramids


def test_levels_by_pages_and_by_subifds(tmp_path: Path) -> None:
    levels = [pattern("uint8", 3, 300 // k, 200 // k) for k in (1, 2, 4)]
    with tifffile.TiffWriter(tmp_path / "pages.tif") as tif:
        for k, level in enumerate(levels):
            tif.write(level, tile=(64, 64), subfiletype=1 if k else 0, photometric="rgb", metadata=None)
    with tifffile.TiffWriter(tmp_path / "sub.tif") as tif:
        tif.write(levels[0], tile=(64, 64), subifds=2, photometric="rgb", metadata=None)
        for level in levels[1:]:
            tif.write(level, tile=(64, 64), subfiletype=1, photometric="rgb", metadata=None)
    for name in ("pages", "sub"):
        raster = open_raster(tmp_path / f"{name}.tif")
        assert raster.levels == (Size(300, 200), Size(150, 100), Size(75, 50)), name
        for k, level in enumerate(levels):
            np.testing.assert_array_equal(raster.read(whole(raster, k), k), level)


# ---- axes


def test_channels_from_pages_and_planes_by_select(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 255, (2, 3, 4, 32, 40), dtype=np.uint8)  # t, z, c, y, x
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata={"axes": "TZCYX"}, photometric="minisblack")
    with pytest.raises(UsageError, match=r"t=2, z=3, c=4.*--select t=0,z=0"):
        open_raster(tmp_path / "a.ome.tif")
    raster = open_raster(tmp_path / "a.ome.tif", select={"t": 1, "z": 2})
    assert raster.shape == (32, 40, 4)
    np.testing.assert_array_equal(raster.read(whole(raster)), stack[1, 2].transpose(1, 2, 0))
    with pytest.raises(UsageError, match="outside"):
        open_raster(tmp_path / "a.ome.tif", select={"t": 1, "z": 3})
    with pytest.raises(UsageError, match="does not fit"):
        open_raster(tmp_path / "a.ome.tif", select={"phase": 0})
    again = pickle.loads(pickle.dumps(raster))
    np.testing.assert_array_equal(again.read(whole(again)), raster.read(whole(raster)))


_OME = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{own}"><Image ID="Image:0">
<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="50" SizeY="40" SizeC="2" SizeZ="1" SizeT="1">
<Channel ID="Channel:0:0" SamplesPerPixel="1"/><Channel ID="Channel:0:1" SamplesPerPixel="1"/>{planes}
</Pixels></Image></OME>"""
_PLANE = '<TiffData IFD="0" FirstC="{c}" PlaneCount="1"><UUID FileName="{c}.ome.tif">urn:uuid:{id}</UUID></TiffData>'


def test_ome_tiff_of_several_files(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (2, 40, 50), dtype=np.uint8)
    ids = [f"00000000-0000-0000-0000-00000000000{c}" for c in range(2)]
    planes = "".join(_PLANE.format(c=c, id=ids[c]) for c in range(2))
    for c in range(2):
        text = _OME.format(own=ids[c], planes=planes)
        tifffile.imwrite(tmp_path / f"{c}.ome.tif", pixels[c], description=text, metadata=None, tile=(16, 16))
    raster = open_raster(tmp_path / "0.ome.tif")
    np.testing.assert_array_equal(raster.read(whole(raster)), pixels.transpose(1, 2, 0))
    before = raster.identity()
    tifffile.imwrite(tmp_path / "1.ome.tif", pixels[0], description=text, metadata=None, tile=(16, 16))
    assert open_raster(tmp_path / "0.ome.tif").identity() != before
    (tmp_path / "1.ome.tif").unlink()
    with pytest.raises(InputError, match="lacks plane 1 of 2"):
        open_raster(tmp_path / "0.ome.tif")


def test_imagej_hyperstacks_have_one_header_for_all_planes(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 60_000, (3, 2, 30, 20), dtype=np.uint16)
    tifffile.imwrite(
        tmp_path / "ij.tif",
        stack,
        imagej=True,
        resolution=(2.5, 2.5),
        metadata={"axes": "ZCYX", "unit": "um"},
    )
    for z in range(3):
        raster = open_raster(tmp_path / "ij.tif", select={"z": z})
        np.testing.assert_array_equal(raster.read(whole(raster)), stack[z].transpose(1, 2, 0))
    assert raster.pixel_size is not None
    assert raster.pixel_size[:2] == pytest.approx((0.4, 0.4))
    assert raster.pixel_size[2] == "um"


def test_pages_of_one_size_are_a_stack(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 255, (5, 30, 20), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "s.tif") as tif:
        for page in stack:
            tif.write(page, metadata=None)
    with pytest.raises(UsageError, match=r"--select page=0; if they are channels, .* OME-TIFF"):
        open_raster(tmp_path / "s.tif")
    tifffile.imwrite(tmp_path / "q.tif", stack, photometric="minisblack")
    with pytest.raises(UsageError, match=r"--select q=0; if they are channels, .* OME-TIFF"):
        open_raster(tmp_path / "q.tif")
    raster = open_raster(tmp_path / "s.tif", select={"page": 3})
    np.testing.assert_array_equal(raster.read(whole(raster))[:, :, 0], stack[3])


# ---- georeference, nodata, masks: rasterio writes, rasterio judges


def written(path: Path, pixels: np.ndarray, **profile: object) -> None:
    """`pixels` (h, w, c) by rasterio."""
    with (
        warnings.catch_warnings(),
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
    ):
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        mask = profile.pop("mask", None)
        with rasterio.open(
            path, "w", driver="GTiff", height=pixels.shape[0], width=pixels.shape[1],
            count=pixels.shape[2], dtype=pixels.dtype, **profile,
        ) as dataset:  # fmt: skip
            dataset.write(np.moveaxis(pixels, 2, 0))
            if mask is not None:
                dataset.write_mask(mask)


def rasterio_mask(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            return np.asarray(dataset.dataset_mask() != 0)


def read_by_rasterio(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            return np.moveaxis(dataset.read(), 0, -1)


@pytest.mark.parametrize("tiled", [False, True])
def test_validity_equals_rasterios(tmp_path: Path, tiled: bool) -> None:
    rng = np.random.default_rng(0)
    layout = {"tiled": True, "blockxsize": 16, "blockysize": 16} if tiled else {}
    holes = rng.integers(0, 4, (70, 90)) == 0
    grey = rng.integers(1, 250, (70, 90, 3)).astype(np.uint8)
    some, all_ = grey.copy(), grey.copy()
    some[holes, 0] = 0
    all_[holes] = 0
    alpha = np.concatenate([grey, np.where(holes, 0, 200)[:, :, None].astype(np.uint8)], axis=2)
    real = rng.normal(size=(70, 90, 1)).astype(np.float32)
    nan, low = real.copy(), real.copy()
    nan[holes] = np.nan
    low[holes] = -3.4e38
    cases = {
        "nodata in one band": (some, {"nodata": 0}),
        "nodata in all": (all_, {"nodata": 0}),
        "alpha": (alpha, {"alpha": "YES", "photometric": "RGB"}),
        "mask": (grey, {"mask": ~holes}),
        "nan": (nan, {"nodata": float("nan")}),
        "float": (low, {"nodata": -3.4e38}),
    }
    for name, (pixels, options) in cases.items():
        path = tmp_path / "v.tif"
        written(path, pixels, **layout, **options)
        raster = open_raster(path)
        window = Window(y=5, x=7, height=60, width=71)
        read = raster.read(window)
        valid = raster.valid(window, read)
        assert valid is not None, name
        np.testing.assert_array_equal(valid, rasterio_mask(path)[window.slices()], err_msg=name)
        assert (valid == ~holes[window.slices()]).all() == (name != "nodata in one band"), name
        path.unlink()


@pytest.mark.parametrize("layout", [{"tiled": True, "blockxsize": 64, "blockysize": 48}, {"blockysize": 16}])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_jpeg_planes_of_gdal_equal_rasterios(tmp_path: Path, channels: int, layout: dict[str, int]) -> None:
    path = tmp_path / "x.tif"
    written(path, pattern("uint8", channels), compress="JPEG", interleave="BAND", **layout)
    raster = open_raster(path)
    pixels = raster.read(whole(raster))
    np.testing.assert_array_equal(pixels, read_by_rasterio(path))
    assert np.abs(pixels.astype(int) - pattern("uint8", channels)).max() < 20
    window = Window(y=41, x=59, height=70, width=72)  # across segments, to the edge
    np.testing.assert_array_equal(raster.read(window), pixels[window.slices()])


def test_three_jpeg_components_that_are_no_colours_equal_rasterios(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    written(path, pattern("uint8"), compress="JPEG", photometric="MINISBLACK", blockysize=16)
    raster = open_raster(path)
    np.testing.assert_array_equal(raster.read(whole(raster)), read_by_rasterio(path))


@pytest.mark.parametrize("interleave", ["PIXEL", "BAND"])
@pytest.mark.parametrize("layout", [{"tiled": True, "blockxsize": 64, "blockysize": 48}, {"blockysize": 16}])
@pytest.mark.parametrize(
    ("dtype", "channels", "codec"),
    [
        ("float32", 1, "LERC"),
        ("float32", 2, "LERC_ZSTD"),
        ("float64", 3, "LERC_DEFLATE"),
        ("uint8", 4, "LERC"),
    ],
)
def test_masks_of_lerc_are_read_as_gdal_reads_them(
    tmp_path: Path, dtype: str, channels: int, codec: str, layout: dict[str, int], interleave: str
) -> None:
    path = tmp_path / "x.tif"
    pixels = pattern(dtype, channels)
    if channels == 4:
        pixels[:, :, 3] = np.where(pixels[:, :, 0] > 60, 255, 0)
    else:
        pixels[40:90, 30:100] = np.nan
        pixels[80:110, 60:120, 0] = np.nan  # in one band alone: GDAL keeps the bands apart
    written(path, pixels, compress=codec, interleave=interleave, max_z_error=0, **layout)
    raster = open_raster(path)
    found = raster.read(whole(raster))
    np.testing.assert_array_equal(found, read_by_rasterio(path))
    valid = raster.valid(whole(raster), found)
    assert valid is not None
    holes = pixels[:, :, 3] == 0 if channels == 4 else np.isnan(pixels).all(axis=2)
    np.testing.assert_array_equal(valid, ~holes)
    window = Window(y=41, x=59, height=70, width=72)
    np.testing.assert_array_equal(raster.read(window), found[window.slices()])


@pytest.mark.parametrize("dtype", ["int16", "float64"])
def test_big_endian_lerc_of_gdal_equals_rasterios(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "x.tif"
    pixels = pattern(dtype, 1)
    if dtype == "float64":
        # GDAL loses numbers that are NaN with their bytes swapped: none of few digits is.
        pixels = np.round(pixels * 64) / 64
        pixels[40:90, 30:100] = np.nan
    written(
        path,
        pixels,
        compress="LERC",
        endianness="BIG",
        max_z_error=0,
        tiled=True,
        blockxsize=64,
        blockysize=48,
    )
    raster = open_raster(path)
    np.testing.assert_array_equal(raster.read(whole(raster)), pixels)
    np.testing.assert_array_equal(read_by_rasterio(path), pixels)


def test_without_nodata_everything_is_valid(tmp_path: Path) -> None:
    written(tmp_path / "x.tif", pattern("uint8"))
    raster = open_raster(tmp_path / "x.tif")
    assert raster.valid(whole(raster), raster.read(whole(raster))) is None


def test_nodata_that_no_pixel_can_hold_is_none(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "x.tif", pattern("uint8"), metadata=None, extratags=[(42113, 2, 0, "-9999", True)]
    )
    assert open_raster(tmp_path / "x.tif").nodata is None


@pytest.mark.parametrize(
    ("dtype", "value"), [("int64", 2**63 - 1), ("uint64", 2**64 - 1), ("int64", -(2**63))]
)
def test_nodata_that_no_float_holds_is_kept(tmp_path: Path, dtype: str, value: int) -> None:
    pixels = np.array([[value, value // 2]], dtype)
    tag = (42113, 2, 0, str(value), True)
    tifffile.imwrite(tmp_path / "x.tif", pixels, metadata=None, extratags=[tag])
    raster = open_raster(tmp_path / "x.tif")
    assert raster.nodata == value
    valid = raster.valid(whole(raster), raster.read(whole(raster)))
    assert valid is not None
    assert valid.tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        ("float32", "-3.40282e+038"), ("float32", "-3.402823e+38"), ("float32", "-3.40282346638529011e+38"),
        ("float64", "-3.40282306073710e+38"), ("float64", "-1.79769313486232e+308"), ("float32", "3.40282e+38"),
    ],
)  # fmt: skip
def test_the_lowest_float_is_nodata_with_any_number_of_digits(tmp_path: Path, dtype: str, text: str) -> None:
    lowest = float(np.finfo("float64" if "308" in text else "float32").max) * (-1 if text[0] == "-" else 1)
    pixels = np.array([[lowest, -lowest, lowest / 2, 0, np.inf, -np.inf, np.nan]], dtype)
    tifffile.imwrite(tmp_path / "x.tif", pixels, metadata=None, extratags=[(42113, 2, 0, text, True)])
    raster = open_raster(tmp_path / "x.tif")
    valid = raster.valid(whole(raster), raster.read(whole(raster)))
    assert valid is not None
    assert valid.tolist() == [[False, True, True, True, True, True, False]]


@pytest.mark.parametrize("point", [False, True], ids=["area", "point"])
@pytest.mark.parametrize(
    ("crs", "unit"),
    [
        *(
            ("EPSG:32643", "m"),
            ("EPSG:4326", "degree"),
            ("EPSG:2263", "foot"),
            ("ESRI:102039", "m"),
            (None, None),
        ),
        *(("EPSG:32632+5773", "m"), ("EPSG:27700+5701", "m"), ("EPSG:4326+5773", "degree")),  # with heights
    ],
)
def test_georeference_equals_rasterios(
    tmp_path: Path, crs: str | None, unit: str | None, point: bool
) -> None:
    for transform in (Affine(0.5, 0, 300_000, 0, -0.25, 5_000_000), Affine(0.3, 0.1, 10, -0.2, 0.4, 20)):
        path = tmp_path / "g.tif"
        path.unlink(missing_ok=True)
        with rasterio.open(
            path, "w", driver="GTiff", height=4, width=5, count=1, dtype="uint8", crs=crs, transform=transform
        ) as dataset:
            dataset.write(np.ones((1, 4, 5), np.uint8))
            if point:
                dataset.update_tags(AREA_OR_POINT="Point")
        raster = open_raster(path)
        with rasterio.open(path) as dataset:
            assert raster.transform == pytest.approx(tuple(dataset.transform)[:6], rel=1e-12)
            assert (raster.crs is None) == (crs is None)
            if crs:
                assert rasterio.CRS.from_user_input(raster.crs) == dataset.crs
        scale = 1200 / 3937 if unit == "foot" else 1.0
        a, b, _, d, e, _ = tuple(transform)[:6]
        assert raster.pixel_size is not None
        assert raster.pixel_size[:2] == pytest.approx((scale * np.hypot(b, e), scale * np.hypot(a, d)))
        assert raster.pixel_size[2] == ("m" if unit == "foot" else unit)


@pytest.mark.parametrize(
    ("scale_y", "code", "unit", "metres"),
    [(10.0, 26943, 9003, 1200 / 3937), (10.0, 2263, 9003, 1200 / 3937), (-10.0, 32643, 9001, 1.0)],
    ids=["a code of metres, counted in feet", "a code of feet", "a negative scale"],
)
def test_odd_tags_are_taken_as_gdal_takes_them(
    tmp_path: Path, scale_y: float, code: int, unit: int, metres: float
) -> None:
    path = tmp_path / "g.tif"
    keys = (1, 1, 0, 4, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, code, 3076, 0, 1, unit)
    tags = [
        (33550, "d", 3, (10.0, scale_y, 0.0), True),
        (33922, "d", 6, (0.0, 0.0, 0.0, 6e5, 3e6, 0.0), True),
        (34735, "H", len(keys), keys, True),
    ]
    tifffile.imwrite(path, pattern("uint8", 1)[:, :, 0], metadata=None, extratags=tags)
    raster = open_raster(path)
    with rasterio.open(path) as dataset:
        assert raster.transform == pytest.approx(tuple(dataset.transform)[:6])
        assert raster.crs is not None
        assert rasterio.CRS.from_user_input(raster.crs) == dataset.crs
    assert raster.pixel_size == pytest.approx((10 * metres, 10 * metres, "m"))


def test_heights_without_a_known_system_leave_the_horizontal_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, told = tmp_path / "g.tif", list[str]()
    monkeypatch.setattr(console, "warn", told.append)
    with rasterio.open(
        path, "w", driver="GTiff", height=4, width=5, count=1, dtype="uint8", crs="EPSG:32632+5773",
        transform=Affine(2, 0, 10, 0, -2, 20),
    ) as dataset:  # fmt: skip
        dataset.write(np.ones((1, 4, 5), np.uint8))
    assert open_raster(path).crs.startswith('COMPOUNDCRS["WGS 84 / UTM zone 32N + EGM96 height"')
    assert not told
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tag = tif.pages.first.tags[34735]
        tag.overwrite(tuple(5030 if value == 5773 else value for value in tag.value))
    raster = open_raster(path)
    assert (raster.crs, raster.pixel_size) == ("EPSG:32632", (2, 2, "m"))
    assert len(told) == 1
    assert "system 5030 is no known EPSG code: EPSG:32632 alone is kept" in told[0]


@pytest.mark.parametrize(
    ("resolution", "unit", "expected"),
    [
        ((20_000, 40_000), "CENTIMETER", (0.25, 0.5, "um")),
        ((300, 300), "INCH", None),
        ((72, 72), "NONE", None),
    ],
)
def test_resolution_tags_count_where_plausible(
    tmp_path: Path, resolution: tuple[int, int], unit: str, expected: tuple[float, float, str] | None
) -> None:
    tifffile.imwrite(
        tmp_path / "x.tif", pattern("uint8"), metadata=None, resolution=resolution, resolutionunit=unit
    )
    assert open_raster(tmp_path / "x.tif").pixel_size == expected


@pytest.mark.parametrize(("mpp", "expected"), [("0.4990", 0.499), ("0,2520", 0.252), ("1", 1.0), ("0", None)])
def test_aperio_pixel_sizes(tmp_path: Path, mpp: str, expected: float | None) -> None:
    about = f"Aperio Image Library v11.2.1\r\n50x40 Q=70|AppMag = 20|MPP = {mpp}|Left = 25,691574"
    tifffile.imwrite(tmp_path / "x.svs", pattern("uint8"), description=about, metadata=None, tile=(32, 32))
    raster = open_raster(tmp_path / "x.svs")
    assert raster.format == "SVS slide"
    assert raster.pixel_size == (None if expected is None else (expected, expected, "um"))


def test_ome_pixel_sizes_are_in_micrometres(tmp_path: Path) -> None:
    metadata = {"axes": "YX", "PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5}
    tifffile.imwrite(tmp_path / "x.ome.tif", pattern("uint8")[:, :, 0], metadata=metadata)
    assert open_raster(tmp_path / "x.ome.tif").pixel_size == (0.5, 0.25, "um")


@pytest.mark.parametrize("unit", ["µm", "&#181;m", "&#x3bc;m"])
def test_a_unit_of_ome_xml_may_be_escaped(tmp_path: Path, unit: str) -> None:
    size = f'PhysicalSizeX="0.25" PhysicalSizeXUnit="{unit}" PhysicalSizeY="0.25" PhysicalSizeYUnit="{unit}"'
    text = _OME.format(own="x", planes="<TiffData/>").replace('SizeC="2"', f'SizeC="1" {size}')
    pixels = np.zeros((40, 50), np.uint8)
    tifffile.imwrite(tmp_path / "x.ome.tif", pixels, description=text.encode(), metadata=None)
    assert open_raster(tmp_path / "x.ome.tif").pixel_size == (0.25, 0.25, "um")


@pytest.mark.parametrize("transformed", [True, False], ids=["of RGB", "of YCbCr"])
def test_aperio_ycbcr_becomes_rgb(tmp_path: Path, transformed: bool) -> None:
    """JPEG 2000 of the kind 33003 holds YCbCr, though its header says RGB; what some other writer made of RGB stays."""
    rgb = np.asarray(PIL.Image.fromarray(pattern("uint8")[..., :3]).resize((96, 80)))
    stored = rgb if transformed else np.asarray(PIL.Image.fromarray(rgb).convert("YCbCr"))
    pieces = [
        imagecodecs.jpeg2k_encode(
            np.pad(tile, ((0, 64 - tile.shape[0]), (0, 64 - tile.shape[1]), (0, 0))),
            level=0, reversible=True, codecformat="J2K", mct=transformed,
        )
        for tile in (stored[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64))
    ]  # fmt: skip
    tifffile.imwrite(
        tmp_path / "x.svs", iter(pieces), shape=rgb.shape, dtype="u1", compression=33003, photometric="rgb",
        tile=(64, 64), metadata=None, description="Aperio Image Library v10.0.50\r\n96x80 J2K/YUV16",
    )  # fmt: skip
    raster = open_raster(tmp_path / "x.svs")
    got = raster.read(whole(raster)).astype(int)
    assert np.abs(got - rgb).max() <= (0 if transformed else 3)  # YCbCr of 8 bits is not exact


def macro_and_slide() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (30, 90, 3), np.uint8), rng.integers(0, 255, (100, 80, 3), np.uint8)


def test_a_leica_slide_is_not_its_macro(tmp_path: Path) -> None:
    """They begin with a picture of the whole glass."""
    macro, slide = macro_and_slide()
    images = "".join(
        f'<image name="{name}"><pixels><dimension r="0" ifd="{ifd}"/></pixels></image>'
        for ifd, name in enumerate(("macro", "area"))
    )
    xmlns = "http://www.leica-microsystems.com/scn/2010/10/01"
    about = f'<scn xmlns="{xmlns}"><collection>{images}</collection></scn>'
    with tifffile.TiffWriter(tmp_path / "x.scn", bigtiff=True) as tif:
        tif.write(macro, metadata=None, description=about, resolution=(600, 600), resolutionunit=3)
        tif.write(slide, metadata=None, tile=(32, 32), resolution=(20_000, 20_000), resolutionunit=3)
    raster = open_raster(tmp_path / "x.scn")
    assert isinstance(raster, TiffRaster)
    assert raster.format == "SCN slide"
    np.testing.assert_array_equal(raster.read(whole(raster)), slide)
    assert raster.pixel_size == (0.5, 0.5, "um")
    assert raster.other_images == (("macro", Size(30, 90)),)


def test_the_largest_image_of_an_ome_tiff_is_read_at_its_own_pixel_size(tmp_path: Path) -> None:
    macro, slide = macro_and_slide()
    with tifffile.TiffWriter(tmp_path / "x.ome.tif", ome=True) as tif:
        tif.write(macro, metadata={"axes": "YXS", "Name": "macro", "PhysicalSizeX": 20, "PhysicalSizeY": 20})
        tif.write(slide, metadata={"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5})
    raster = open_raster(tmp_path / "x.ome.tif")
    assert isinstance(raster, TiffRaster)
    np.testing.assert_array_equal(raster.read(whole(raster)), slide)
    assert raster.pixel_size == (0.5, 0.25, "um")
    assert raster.other_images == (("macro", Size(30, 90)),)


def test_of_images_of_one_size_the_first_is_read(tmp_path: Path) -> None:
    _, slide = macro_and_slide()
    with tifffile.TiffWriter(tmp_path / "x.ome.tif", ome=True) as tif:
        tif.write(slide, metadata={"axes": "YXS", "Name": "first"})
        tif.write(255 - slide, metadata={"axes": "YXS", "Name": "second"})
    raster = open_raster(tmp_path / "x.ome.tif")
    assert isinstance(raster, TiffRaster)
    np.testing.assert_array_equal(raster.read(whole(raster)), slide)
    assert raster.other_images == (("second", Size(100, 80)),)


# ---- what is broken


def test_sparse_tiles_are_nodata(tmp_path: Path) -> None:
    with rasterio.open(
        tmp_path / "sparse.tif", "w", driver="GTiff", height=64, width=64, count=1, dtype="int16", nodata=-7,
        tiled=True, blockxsize=32, blockysize=32, sparse_ok=True, compress="deflate", crs="EPSG:32643",
        transform=Affine(2, 0, 0, 0, -2, 0),
    ) as dataset:  # fmt: skip
        dataset.write(np.ones((1, 32, 32), np.int16), window=rasterio.windows.Window(0, 0, 32, 32))
    raster = open_raster(tmp_path / "sparse.tif")
    pixels = raster.read(whole(raster))
    with rasterio.open(tmp_path / "sparse.tif") as dataset:
        np.testing.assert_array_equal(pixels[:, :, 0], dataset.read(1))
    assert (pixels == -7).sum() == 3 * 32 * 32
    valid = raster.valid(whole(raster), pixels)
    assert valid is not None
    assert valid.sum() == 32 * 32


@pytest.mark.parametrize("codec", [None, "deflate", "lzw"])
@pytest.mark.parametrize("layout", [{"tile": (64, 64)}, {"rowsperstrip": 32}], ids=["tiled", "striped"])
def test_a_truncated_file_opens_and_fails_where_it_is_broken(
    tmp_path: Path, codec: str | None, layout: dict[str, object]
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (256, 256), dtype=np.uint8)
    path = tmp_path / "cut.tif"
    # A COG has its header first, so that what is cut off are pixels.
    tifffile.imwrite(path, noise, compression=codec, metadata=None, **layout)
    size = path.stat().st_size
    with path.open("r+b") as f:
        f.truncate(size * 3 // 4)
    raster = open_raster(path)
    top = Window(y=0, x=0, height=64, width=200)
    np.testing.assert_array_equal(raster.read(top)[:, :, 0], noise[top.slices()])
    with pytest.raises(ReadError, match=r"cut\.tif: cannot read y 200–256, x 10–110.*beyond the file's end"):
        raster.read(Window(y=200, x=10, height=56, width=100))


def test_a_damaged_tile_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (128, 128), dtype=np.uint8)
    path = tmp_path / "bad.tif"
    tifffile.imwrite(path, noise, tile=(64, 64), compression="deflate", metadata=None)
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages.first.dataoffsets[3]
    with path.open("r+b") as f:
        f.seek(offset)
        f.write(b"\xff" * 200)
    raster = open_raster(path)
    raster.read(Window(y=0, x=0, height=128, width=64))
    with pytest.raises(ReadError, match=r"the segment at y 64–128, x 64–128 is broken"):
        raster.read(whole(raster))


def test_headers_that_lie_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lie.tif"
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8), tile=(16, 16), metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages.first.tags["ImageLength"].overwrite(1_000_000_000)
    with pytest.raises(InputError, match=r"lie\.tif.*1000000000 × 64 px.*but has 16"):
        open_raster(path)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages.first.tags["ImageLength"].overwrite(0)
    with pytest.raises(InputError, match=r"lie\.tif"):
        open_raster(path)


def test_one_huge_compressed_strip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.tif"
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8), rowsperstrip=64, compression="lzw", metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        for tag in ("ImageLength", "ImageWidth", "RowsPerStrip"):
            tif.pages.first.tags[tag].overwrite(60_000)
    with pytest.raises(InputError, match="rewrite it tiled"):
        open_raster(path)


def test_complex_pixels_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((8, 8), np.complex64), metadata=None)
    with pytest.raises(InputError, match="complex64"):
        open_raster(tmp_path / "c.tif")


@given(st.data())
def test_damaged_headers_never_escape_as_foreign_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "f.tif"
    tifffile.imwrite(path, pattern("uint8"), tile=(48, 64), compression="deflate", metadata=None)
    raw = bytearray(path.read_bytes())
    header = len(raw) if len(raw) < 600 else 600
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(4, header - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        raster = open_raster(path)
        if raster.shape[0] * raster.shape[1] * raster.shape[2] < 10_000_000:
            raster.read(whole(raster))
    except (InputError, ReadError, UsageError) as e:
        named = "f.tif" in str(e)
        assert named, str(e)  # noqa: PT017


# ---- use


def test_several_threads_read_one_raster(
    flavours: dict[tuple[str, str | None, str], Path],
) -> None:
    raster = open_raster(flavours["tiled", "deflate", "uint16"])
    expected = pattern("uint16")
    wrong: list[Window] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            y, x = rng.integers(0, HEIGHT - 20), rng.integers(0, WIDTH - 20)
            window = Window(y=int(y), x=int(x), height=20, width=20)
            if not np.array_equal(raster.read(window), expected[window.slices()]):
                wrong.append(window)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_window_outside_is_the_callers_mistake(
    flavours: dict[tuple[str, str | None, str], Path],
) -> None:
    raster = open_raster(flavours["tiled", None, "uint8"])
    for window in (
        Window(y=-1, x=0, height=2, width=2),
        Window(y=0, x=WIDTH - 1, height=1, width=2),
        Window(y=0, x=0, height=0, width=5),
    ):
        with pytest.raises(ValueError, match="is not inside"):
            raster.read(window)


def test_a_closed_raster_says_so(flavours: dict[tuple[str, str | None, str], Path]) -> None:
    raster = open_raster(flavours["tiled", None, "uint8"])
    raster.close()
    raster.close()
    with pytest.raises(ReadError, match="closed"):
        raster.read(whole(raster))


def write_many_tiles(path: Path, edge: int, tile: int = 256) -> int:
    """A BigTIFF of `edge`² zeros in deflated tiles that all lie at one place; their number."""
    count, data = (edge // tile) ** 2, imagecodecs.deflate_encode(bytes(tile * tile))
    offsets = 16 + len(data) + -len(data) % 8
    counts = offsets + 8 * count
    tags = [
        (256, 4, 1, edge), (257, 4, 1, edge), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1),
        (322, 3, 1, tile), (323, 3, 1, tile), (324, 16, count, offsets), (325, 16, count, counts),
    ]  # fmt: skip
    with path.open("wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, counts + 8 * count))
        file.write(data.ljust(offsets - 16, b"\0"))
        np.full(count, 16, "<u8").tofile(file)
        np.full(count, len(data), "<u8").tofile(file)
        file.write(struct.pack("<Q", len(tags)) + b"".join(struct.pack("<HHQQ", *tag) for tag in tags))
        file.write(bytes(8))
    return count


def test_a_tile_of_an_open_image_takes_few_bytes(tmp_path: Path) -> None:
    count = write_many_tiles(tmp_path / "large.tif", 1 << 16)
    open_raster(tmp_path / "large.tif").close()  # what is imported and cached is not the image's
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        raster = open_raster(tmp_path / "large.tif")
        assert not raster.read(Window(y=40_000, x=500, height=300, width=300)).any()
        gc.collect()
        assert (tracemalloc.get_traced_memory()[0] - before) / count < 24
    finally:
        tracemalloc.stop()
