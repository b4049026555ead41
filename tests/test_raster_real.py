"""Real files of every flavour, window by window, against rasterio, tifffile and zarr."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
import zarr
from made import make_plan, probabilities, summed
from networks import identity
from PIL import Image

from raysegment.errors import InputError, UsageError
from raysegment.geometry import Window
from raysegment.model.model import Model
from raysegment.raster import Raster, open_raster

_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
_FOLDERS = ("geotiff_flavours", "whole_slide", "sen1floods11_sample", "solaris_spacenet")


def _tiffs() -> list[Path]:
    kinds = (".tif", ".tiff", ".svs")
    return sorted(p for name in _FOLDERS for p in (_DATA / name).rglob("*") if p.suffix.lower() in kinds)


#: What rasterio gives in other numbers than the file stores, and why.
_OTHERWISE = {
    "cmyk-3c-8b.tiff": "GDAL turns CMYK into RGBA",
    "seq-4c-8b-cmyk-352ac1da.tiff": "GDAL turns CMYK into RGBA",
    "tiled-cmyk-i8.tif": "GDAL turns CMYK into RGBA",
    "random-fp16-pred3.tiff": "GDAL widens float16",
    "white-fp16-pred3.tiff": "GDAL widens float16",
    "hpredict-1c-12b.tiff": "libtiff ignores a predictor without compression",
    "viv_multi-channel.ome.tif": "GDAL takes pages for data sets of their own",
}
_REFUSED = {
    "slc.tif": (InputError, "complex64"),
    "seq-1c-8b-multipage-adeefdcc.tiff": (UsageError, "page=3"),
}
#: Validity differs by intent: NaN is no data, whatever else the file says of nodata.
_NAN_COUNTS = ("image_float.tif", "cog_nodata_nan.tif")


@pytest.fixture(autouse=True)
def _skip_without_data(shared_data: Path) -> None:
    """Ask for the fixture that skips visibly."""


@pytest.fixture
def _plain_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        warnings.simplefilter("ignore", rasterio.errors.NodataShadowWarning)
        yield


def _windows(raster: Raster, level: int = 0) -> list[Window]:
    """The corners, and some anywhere."""
    height, width = raster.levels[level]
    rng = np.random.default_rng(height * width)
    windows = [Window(y=0, x=0, height=min(height, 70), width=min(width, 90))]
    windows.append(Window.between(max(0, height - 33), max(0, width - 41), height, width))
    for _ in range(4):
        y, x = int(rng.integers(height)), int(rng.integers(width))
        bottom, right = min(height, y + int(rng.integers(1, 300))), min(width, x + int(rng.integers(1, 300)))
        windows.append(Window.between(y, x, bottom, right))
    return windows


@pytest.mark.usefixtures("_plain_warnings")
@pytest.mark.parametrize("path", _tiffs(), ids=lambda p: p.name)
def test_tiff_equals_rasterio(path: Path) -> None:
    if path.name in _REFUSED:
        error, what = _REFUSED[path.name]
        with pytest.raises(error, match=what):
            open_raster(path)
        return
    raster = open_raster(path)
    if path.name in _OTHERWISE:
        pytest.skip(f"rasterio is no oracle here: {_OTHERWISE[path.name]}")
    with rasterio.open(path) as dataset:
        assert raster.shape == (dataset.height, dataset.width, dataset.count)
        assert raster.dtype == dataset.dtypes[0]
        _compare_georeference(raster, dataset)
        mask = dataset.dataset_mask() != 0
        is_lossy = dataset.compression is not None and dataset.compression.value.startswith("JPEG")
        for window in _windows(raster):
            pixels = raster.read(window)
            area = rasterio.windows.Window(window.x, window.y, window.width, window.height)
            expected = np.moveaxis(dataset.read(window=area), 0, -1)
            if is_lossy:  # libjpegs differ in how they smooth colour
                off = np.abs(pixels.astype(float) - expected)
                assert off.mean() < 2.5
            else:
                np.testing.assert_array_equal(pixels, expected)
            valid = raster.valid(window, pixels)
            known = np.ones(window.size, bool) if valid is None else valid
            if path.name in _NAN_COUNTS:
                assert not np.isnan(pixels[known]).any()
                assert (known | np.isnan(pixels).all(axis=2) | ~mask[window.slices()]).all()
            else:
                np.testing.assert_array_equal(known, mask[window.slices()])
    raster.close()


def _compare_georeference(raster: Raster, dataset: rasterio.DatasetReader) -> None:
    if dataset.gcps[0]:
        assert raster.transform is None
        return
    has_place = raster.transform is not None
    assert has_place == (not dataset.transform.is_identity)
    if raster.transform is not None:
        np.testing.assert_allclose(raster.transform, tuple(dataset.transform)[:6], rtol=1e-12)
    assert (raster.crs is None) == (dataset.crs is None)
    if raster.crs is not None:
        assert rasterio.CRS.from_user_input(raster.crs) == dataset.crs
        assert raster.pixel_size is not None
        assert raster.pixel_size[2] == ("degree" if dataset.crs.is_geographic else "m")


@pytest.mark.usefixtures("_plain_warnings")
@pytest.mark.parametrize("path", _tiffs(), ids=lambda p: p.name)
def test_overviews_equal_rasterios(path: Path) -> None:
    if path.name in _REFUSED or path.name in _OTHERWISE or path.suffix == ".svs":
        pytest.skip("no overviews to compare")
    raster = open_raster(path)
    with rasterio.open(path) as dataset:
        factors = dataset.overviews(1)
        jpeg = dataset.compression is not None and dataset.compression.value.startswith("JPEG")
    smaller = sorted(n for n in factors if n > 1)
    assert len(raster.levels) == 1 + len(smaller)
    for level, factor in enumerate(smaller, start=1):
        with rasterio.open(path, overview_level=factors.index(factor)) as dataset:
            assert raster.levels[level] == (dataset.height, dataset.width)
            mask = dataset.dataset_mask() != 0
            for window in _windows(raster, level)[:3]:
                pixels = raster.read(window, level)
                area = rasterio.windows.Window(window.x, window.y, window.width, window.height)
                expected = np.moveaxis(dataset.read(window=area), 0, -1)
                if jpeg:
                    assert np.abs(pixels.astype(float) - expected).mean() < 2.5
                else:
                    np.testing.assert_array_equal(pixels, expected)
                if path.name not in _NAN_COUNTS:
                    valid = raster.valid(window, pixels, level)
                    known = np.ones(window.size, bool) if valid is None else valid
                    np.testing.assert_array_equal(known, mask[window.slices()])


@pytest.mark.parametrize(
    "name", [*_OTHERWISE, "cmu-1-small-region.svs", "kidney-48-5.tif", "cogeo.tif", "quad-tile.jpg.tiff"]
)
def test_tiff_equals_tifffiles_whole_read(name: str) -> None:
    """Where rasterio is no oracle, and where JPEG makes it a vague one."""
    path = next(p for p in _tiffs() if p.name == name)
    with tifffile.TiffFile(path) as tif:
        expected = tif.series[0].asarray()
        axes = tif.series[0].axes.replace("I", "")
    if axes.startswith(("C", "S")):
        expected = np.moveaxis(expected, 0, -1)
    raster = open_raster(path)
    expected = expected.reshape(raster.shape)
    for window in _windows(raster):
        np.testing.assert_array_equal(raster.read(window), expected[window.slices()])


def test_an_aperio_slide_knows_its_pixel_size() -> None:
    raster = open_raster(_DATA / "whole_slide" / "cmu-1-small-region.svs")
    assert raster.format == "SVS slide"
    assert raster.pixel_size == (0.499, 0.499, "um")
    assert len(raster.levels) == 1  # thumbnail, label and macro are no levels


@pytest.mark.usefixtures("_plain_warnings")
def test_a_network_sees_uint64() -> None:
    path = _DATA / "geotiff_flavours" / "image-tiff" / "gradient-1c-64b.tiff"
    if not path.exists():
        pytest.skip(f"no {path}")
    raster = open_raster(path)
    pixels = raster.read(Window(y=0, x=0, height=raster.shape[0], width=raster.shape[1]))
    with rasterio.open(path) as dataset:
        expected = dataset.read(1) / 2**32
    plain = identity()
    model = Model(plain.module, plain.spec.model_copy(update={"scale": 2.0**-32}))
    seen = probabilities(summed(model, make_plan(model, pixels), pixels))
    np.testing.assert_allclose(seen[1], expected, atol=1e-5)


# ---- Zarr


@pytest.mark.parametrize("codec", ["blosc", "gzip", "raw", "zlib"])
def test_zarr_codecs_equal_the_reference_picture(codec: str) -> None:
    store = _DATA / "zarr_stores"
    expected = np.asarray(Image.open(store / "reference_image.png"))
    raster = open_raster(store / "zarr_implementations.zarr" / codec)
    assert raster.shape == (512, 512, 3)
    for window in _windows(raster):
        np.testing.assert_array_equal(raster.read(window), expected[window.slices()])


def test_a_group_of_many_arrays_lists_them() -> None:
    with pytest.raises(InputError, match="blosc, gzip, raw, zlib"):
        open_raster(_DATA / "zarr_stores" / "zarr_implementations.zarr")


@pytest.mark.parametrize("axes", ["c1yx", "cyx", "czyx", "tcyx", "tczyx", "tyx", "tzyx", "yx", "zyx"])
def test_ome_zarr_planes(axes: str) -> None:
    path = _DATA / "zarr_stores" / "ngio" / f"test_image_{axes}.zarr"
    held = [a for a in axes if a in "tz"]
    if held:
        with pytest.raises(UsageError, match="--select " + ",".join(f"{a}=0" for a in held)):
            open_raster(path)
    raster = open_raster(path, select=dict.fromkeys(held, 1))
    assert raster.format == "OME-Zarr 0.4"
    assert raster.pixel_size == (0.5, 0.5, "um")
    assert raster.levels == ((64, 64), (32, 32))
    assert raster.shape == (64, 64, 2 if "c" in axes else 1)
    stored = np.asarray(zarr.open_array(path / "0", mode="r"))
    plane = stored[tuple(1 if a in "tz" else 0 if a == "1" else slice(None) for a in axes)]
    expected = plane.transpose(1, 2, 0) if "c" in axes else plane[:, :, None]
    whole = Window(y=0, x=0, height=64, width=64)
    np.testing.assert_array_equal(raster.read(whole), expected)
    # A level opened by itself has the axes of the image it belongs to; the one label is found in its group.
    assert open_raster(path / "0", select=dict.fromkeys(held, 1)).shape == raster.shape
    assert open_raster(path / "labels", select=dict.fromkeys(held, 1)).shape == (64, 64, 1)


@pytest.mark.parametrize(("folder", "version"), [("v1", "0.1"), ("v2", "0.2")])
def test_early_ome_zarr_has_five_axes(folder: str, version: str) -> None:
    path = _DATA / "zarr_stores" / "ome-zarr-py" / folder
    raster = open_raster(path)
    assert raster.format == f"OME-Zarr {version}"
    assert raster.shape == (16, 16, 2)
    stored = np.asarray(zarr.open_array(path / "0", mode="r"))
    whole = Window(y=0, x=0, height=16, width=16)
    np.testing.assert_array_equal(raster.read(whole), stored[0, :, 0].transpose(1, 2, 0))


# ---- pictures


@pytest.mark.parametrize("folder", ["isbi2012", "dsb2018", "epfl_roads", "s2_india_landcover"])
def test_pictures_equal_pillow(folder: str) -> None:
    paths = sorted((_DATA / folder).rglob("*.png"))[::40]
    assert paths
    for path in paths:
        raster = open_raster(path)
        image = Image.open(path)
        expected = np.asarray(image)
        whole = Window(y=0, x=0, height=image.height, width=image.width)
        np.testing.assert_array_equal(raster.read(whole), expected.reshape(raster.shape))
        assert (raster.palette is not None) == (image.mode == "P")
        assert (raster.alpha is not None) == (image.mode in ("RGBA", "LA"))
