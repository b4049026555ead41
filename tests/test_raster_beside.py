"""Files beside an image: world files, .prj and .aux.xml against rasterio; GDAL's external masks."""

from __future__ import annotations

import pickle
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image
from rasterio.transform import Affine

from raysegment import console
from raysegment.errors import InputError, ReadError
from raysegment.geometry import Window
from raysegment.raster import open_raster

HEIGHT, WIDTH = 6, 8
#: Rotated, so that no number can stand for another.
TRANSFORM = Affine(0.5, 0.125, 300_000, -0.0625, -0.25, 5_000_000)


def picture(path: Path) -> Path:
    Image.fromarray(np.ones((HEIGHT, WIDTH), np.uint8)).save(
        path, format="TIFF" if path.suffix[1] in "tT" else None
    )
    return path


def world_file(path: Path, transform: Affine = TRANSFORM) -> None:
    x, y = transform @ (0.5, 0.5)
    numbers = (transform.a, transform.d, transform.b, transform.e, x, y)
    path.write_text("".join(f"{n!r}\n" for n in numbers))


def seen_by_rasterio(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            return tuple(dataset.transform)[:6], dataset.crs


@pytest.mark.parametrize(
    ("image", "world"),
    [
        ("a.tif", "a.tfw"), ("a.tif", "a.tifw"), ("a.tif", "a.wld"), ("a.tif", "a.TFW"), ("a.tiff", "a.tfw"),
        ("a.jpg", "a.jgw"), ("a.jpg", "a.jpgw"), ("a.jpeg", "a.jgw"), ("a.png", "a.pgw"), ("a.png", "a.wld"),
    ],
)  # fmt: skip
def test_a_world_file_places_an_image_that_does_not_say_it(tmp_path: Path, image: str, world: str) -> None:
    path = picture(tmp_path / image)
    before = open_raster(path)
    assert (before.transform, before.pixel_size) == (None, None)
    world_file(tmp_path / world)
    raster = open_raster(path)
    assert raster.transform == pytest.approx(tuple(TRANSFORM)[:6], rel=1e-12)
    assert raster.transform == pytest.approx(seen_by_rasterio(path)[0], rel=1e-12)
    assert raster.pixel_size == pytest.approx((np.hypot(0.125, 0.25), np.hypot(0.5, 0.0625), None))
    assert raster.crs is None
    assert raster.format == before.format
    assert raster.identity() != before.identity()
    assert pickle.loads(pickle.dumps(raster)).transform == raster.transform


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
@pytest.mark.parametrize("version", ["WKT1_GDAL", "WKT1_ESRI", "WKT2_2019"])
def test_a_prj_says_the_coordinate_system_of_a_world_file(tmp_path: Path, name: str, version: str) -> None:
    path = picture(tmp_path / name)
    (tmp_path / "a.prj").write_text(rasterio.CRS.from_epsg(2263).to_wkt(version=version))
    assert open_raster(path).crs is None  # which places nothing by itself
    world_file(tmp_path / f"a.{name[2]}{name[-1]}w", Affine(3, 0, 0, 0, -6, 0))
    raster = open_raster(path)
    assert raster.crs == "EPSG:2263"
    assert raster.pixel_size == pytest.approx((6 * 1200 / 3937, 3 * 1200 / 3937, "m"))


@pytest.mark.parametrize(("name", "driver"), [("a.png", "PNG"), ("a.jpg", "JPEG")])
def test_what_gdal_writes_beside_a_picture_is_read(tmp_path: Path, name: str, driver: str) -> None:
    path = tmp_path / name
    with rasterio.open(
        path, "w", driver=driver, height=HEIGHT, width=WIDTH, count=1, dtype="uint8", crs="EPSG:32632",
        transform=TRANSFORM,
    ) as dataset:  # fmt: skip
        dataset.write(np.ones((1, HEIGHT, WIDTH), np.uint8))
    assert (tmp_path / f"{name}.aux.xml").is_file()
    raster = open_raster(path)
    assert raster.crs == "EPSG:32632"
    assert raster.transform == pytest.approx(seen_by_rasterio(path)[0], rel=1e-12)
    assert raster.pixel_size is not None
    assert raster.pixel_size[2] == "m"
    identity = raster.identity()
    aux = tmp_path / f"{name}.aux.xml"
    aux.write_text(aux.read_text().replace("</PAMDataset>", "<Metadata/></PAMDataset>"))
    assert open_raster(path).identity() == identity  # as GDAL does when somebody looks at statistics


def test_what_the_file_says_itself_wins(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for crs in (None, "EPSG:32632"):
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=HEIGHT,
            width=WIDTH,
            count=1,
            dtype="uint8",
            transform=TRANSFORM,
            crs=crs,
        ) as dataset:
            dataset.write(np.ones((1, HEIGHT, WIDTH), np.uint8))
        own = open_raster(path)
        world_file(tmp_path / "a.tfw", Affine(7, 0, 0, 0, -7, 0))
        (tmp_path / "a.prj").write_text(rasterio.CRS.from_epsg(32643).to_wkt())
        raster = open_raster(path)
        assert raster.transform == own.transform
        assert raster.crs == (crs or "EPSG:32643")
        assert raster.format == "GeoTIFF"
        assert (raster.identity() == own.identity()) == (crs is not None)
        (tmp_path / "a.prj").unlink()


def geotiff(path: Path, **profile: Any) -> Path:
    """Bands that count through 0 to 9, by GDAL."""
    pixels = np.arange(2 * HEIGHT * WIDTH).reshape(2, HEIGHT, WIDTH) % 10
    with rasterio.open(
        path, "w", driver="GTiff", height=HEIGHT, width=WIDTH, count=2, dtype="int16", transform=TRANSFORM,
        crs="EPSG:32632", **profile,
    ) as dataset:  # fmt: skip
        dataset.write(pixels.astype(np.int16))
    return path


def aux(path: Path, text: str) -> None:
    path.with_name(f"{path.name}.aux.xml").write_text(f"<PAMDataset>{text}</PAMDataset>")


def nodata_of_bands(*values: object) -> str:
    return "".join(
        f'<PAMRasterBand band="{i}"><NoDataValue>{v}</NoDataValue></PAMRasterBand>'
        for i, v in enumerate(values, 1)
    )


def test_nodata_is_read_from_an_aux_file(tmp_path: Path) -> None:
    path = geotiff(tmp_path / "a.tif")
    own = open_raster(path)
    aux(path, nodata_of_bands("3.00000000000000E+00", 3))
    raster = open_raster(path)
    with rasterio.open(path) as dataset:
        assert (own.nodata, raster.nodata, dataset.nodata) == (None, 3, 3)
        np.testing.assert_array_equal(known(path), dataset.dataset_mask() != 0)
    assert (raster.crs, raster.transform) == (own.crs, own.transform)
    assert raster.identity() != own.identity()
    aux(path, nodata_of_bands(4, 4))
    assert open_raster(path).identity() not in (own.identity(), raster.identity())
    assert pickle.loads(pickle.dumps(raster)).nodata == 4


def test_a_files_own_nodata_wins(tmp_path: Path) -> None:
    path = geotiff(tmp_path / "a.tif", nodata=5)
    identity = open_raster(path).identity()
    aux(path, nodata_of_bands(3, 3) + "<GeoTransform>1,2,0,3,0,-2</GeoTransform>")
    raster = open_raster(path)
    assert (raster.nodata, raster.identity()) == (5, identity)
    assert raster.transform == tuple(TRANSFORM)[:6]


def test_nodata_beside_a_picture_and_a_tiff_without_place(tmp_path: Path) -> None:
    for path in (picture(tmp_path / "a.jpg"), picture(tmp_path / "a.tif")):
        before = open_raster(path)
        aux(path, nodata_of_bands(1))
        raster = open_raster(path)
        assert (raster.nodata, raster.transform) == (1, None)
        assert not known(path).any()
        assert raster.identity() != before.identity()


def test_nodata_that_differs_from_band_to_band_is_said_and_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(console, "warn", told.append)
    path = geotiff(tmp_path / "a.tif")
    aux(path, nodata_of_bands("nan", "nan"))
    assert open_raster(path).nodata is None  # as no integer is
    assert told == []
    aux(path, nodata_of_bands(3, 4))
    assert open_raster(path).nodata is None
    assert len(told) == 1
    assert "a.tif.aux.xml gives the bands different values of nodata, 3, 4: ignored" in told[0]


@pytest.mark.parametrize(
    "text", ["", "1\n0\n0\n-1\n5", "1\n0\n0\n-1\n5\nnorth\n", "0\n0\n0\n0\n5\n5\n", "1\n0\n0\ninf\n5\n5\n"]
)
def test_a_world_file_that_is_none_is_said_and_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    told: list[str] = []
    monkeypatch.setattr(console, "warn", told.append)
    path = picture(tmp_path / "a.tif")
    (tmp_path / "a.tfw").write_text(text)
    assert open_raster(path).transform is None
    assert len(told) == 1
    assert "a.tfw is no world file" in told[0]


def test_a_prj_that_is_none_is_said_and_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(console, "warn", told.append)
    path = picture(tmp_path / "a.tif")
    world_file(tmp_path / "a.tfw")
    (tmp_path / "a.prj").write_bytes(b"\xff\x00what")
    raster = open_raster(path)
    assert (raster.transform is not None, raster.crs) == (True, None)
    assert len(told) == 1
    assert "a.prj holds no coordinate system that can be read" in told[0]


# ---- external masks


def masked(
    path: Path, *, bands: int = 1, tiled: bool = False, inside: bool = False, **profile: Any
) -> np.ndarray:
    """An image with a mask beside it, or inside it, by GDAL; True = data."""
    valid = np.random.default_rng(len(path.name)).integers(0, 3, (70, 90)) > 0
    layout = {"tiled": True, "blockxsize": 16, "blockysize": 16} if tiled else {}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside),
        rasterio.open(
            path, "w", driver="GTiff", height=70, width=90, count=bands, dtype="uint8", transform=TRANSFORM,
            **layout, **profile,
        ) as dataset,
    ):  # fmt: skip
        dataset.write(np.random.default_rng(0).integers(1, 255, (bands, 70, 90), dtype=np.uint8))
        dataset.write_mask(valid)
    return valid


def known(path: Path, level: int = 0) -> np.ndarray:
    """Where an image has data."""
    with closing(open_raster(path)) as raster:
        height, width = raster.levels[level]
        window = Window(y=0, x=0, height=height, width=width)
        valid = raster.valid(window, raster.read(window, level), level)
        return np.ones((height, width), bool) if valid is None else valid


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("tiled", [False, True])
def test_an_external_mask_counts_as_rasterios(tmp_path: Path, bands: int, tiled: bool) -> None:
    path = tmp_path / "a.tif"
    valid = masked(path, bands=bands, tiled=tiled)
    assert (tmp_path / "a.tif.msk").is_file()
    np.testing.assert_array_equal(known(path), valid)
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.dataset_mask() != 0, valid)
    raster = open_raster(path)
    window = Window(y=13, x=20, height=40, width=33)
    again = pickle.loads(pickle.dumps(raster))
    np.testing.assert_array_equal(again.valid(window, again.read(window)), valid[window.slices()])
    before = raster.identity()
    (tmp_path / "a.tif.msk").unlink()
    assert open_raster(path).identity() != before
    assert known(path).all()


def test_an_external_mask_goes_with_nodata_and_overviews(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    valid = masked(path, nodata=7)
    with rasterio.open(path, "r+") as dataset:
        pixels = dataset.read(1)
        dataset.build_overviews([2], rasterio.enums.Resampling.nearest)
    assert (pixels == 7).any()
    np.testing.assert_array_equal(known(path), valid & (pixels != 7))
    assert open_raster(path).levels[1] == (35, 45)
    assert not known(path, 1).all()


def test_a_mask_of_each_band_denies_what_all_of_them_do(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.tif")
    bands = np.zeros((HEIGHT, WIDTH, 2), np.uint8)
    bands[:2, :, 0], bands[4:, :, 1] = 255, 255
    tifffile.imwrite(
        tmp_path / "a.tif.msk", bands, planarconfig="contig", photometric="minisblack", metadata=None
    )
    np.testing.assert_array_equal(known(path)[:, 0], [True, True, False, False, True, True])


def test_a_mask_in_the_file_wins(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    valid = masked(path, inside=True)
    tifffile.imwrite(tmp_path / "a.tif.msk", np.zeros((70, 90), np.uint8), metadata=None)
    np.testing.assert_array_equal(known(path), valid)


def test_an_external_mask_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.tif")
    mask = tmp_path / "a.tif.msk"
    tifffile.imwrite(mask, np.ones((HEIGHT, WIDTH + 1), np.uint8), metadata=None)
    with pytest.raises(
        InputError, match=r"a\.tif\.msk is 6 × 9 px, the image that it is the mask of 6 × 8 px"
    ):
        open_raster(path)
    for content in (b"", b"hello", b"II*\0", mask.read_bytes()[:60]):
        mask.write_bytes(content)
        with pytest.raises(
            InputError, match=r"a\.tif\.msk, the mask of an image, is no readable TIFF"
        ) as caught:
            open_raster(path)
        assert "\n" not in str(caught.value)


def test_a_broken_tile_of_an_external_mask_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    masked(path, tiled=True)
    mask = tmp_path / "a.tif.msk"
    with tifffile.TiffFile(mask) as tif:
        offset = tif.pages.first.dataoffsets[0]
    raw = bytearray(mask.read_bytes())
    raw[offset : offset + 8] = b"\xff" * 8
    mask.write_bytes(raw)
    raster = open_raster(path)
    window = Window(y=0, x=0, height=70, width=90)
    pixels = raster.read(window)
    with pytest.raises(ReadError, match=r"a\.tif\.msk: cannot read .* is broken"):
        raster.valid(window, pixels)
