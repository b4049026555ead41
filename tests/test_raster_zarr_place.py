"""Where Zarr arrays lie and what is nodata in them, as xarray, rioxarray and GDAL's Zarr driver write it."""

from __future__ import annotations

import base64
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import zarr

from raysegment.errors import InputError
from raysegment.geometry import Window
from raysegment.raster import open_raster

HEIGHT, WIDTH = 6, 8
TRANSFORM = (10.0, 0.0, 500_000.0, 0.0, -20.0, 4_000_000.0)
X = 500_005.0 + 10 * np.arange(WIDTH)
Y = 3_999_990.0 - 20 * np.arange(HEIGHT)
GEO_TRANSFORM = "500000.0 10.0 0.0 4000000.0 0.0 -20.0"


def add(group: zarr.Group, name: str, values: Any, dimensions: tuple[str, ...], **attributes: Any) -> None:
    """An array as xarray writes it to a group of either version."""
    values = np.asarray(values)
    version = group.metadata.zarr_format
    own: dict[str, Any] = {} if version == 2 else {"dimension_names": dimensions}
    if version == 2:
        attributes["_ARRAY_DIMENSIONS"] = list(dimensions)
    array = group.create_array(
        name, shape=values.shape, dtype=values.dtype, attributes=attributes, fill_value=None if version == 2 else 0,
        **own,
    )  # fmt: skip
    array[...] = values


def scene(
    path: Path,
    version: int,
    *,
    x: Any = X,
    y: Any = Y,
    units: str = "metre",
    told: str | None = GEO_TRANSFORM,
    **attributes: Any,
) -> Path:
    """Three bands with coordinates and a grid mapping; a coordinate that is None is left out."""
    group = zarr.create_group(path, zarr_format=version)  # type: ignore[arg-type]
    pixels = np.arange(3 * HEIGHT * WIDTH, dtype=np.uint16).reshape(3, HEIGHT, WIDTH)
    add(group, "reflectance", pixels, ("band", "y", "x"), **attributes)
    add(group, "band", np.arange(3), ("band",))
    for name, values in (("y", y), ("x", x)):
        if values is not None:
            add(group, name, values, (name,), units=units)
    mapping = {} if told is None else {"GeoTransform": told}
    add(group, "spatial_ref", 0, (), crs_wkt=rasterio.CRS.from_epsg(32632).to_wkt(), **mapping)
    return path


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    "attributes", [{}, {"grid_mapping": "spatial_ref"}, {"grid_mapping": "spatial_ref: x y"}]
)
def test_a_store_of_xarray_knows_its_place(tmp_path: Path, version: int, attributes: dict[str, str]) -> None:
    path = scene(tmp_path / "a.zarr", version, **attributes)
    for raster in (open_raster(path), open_raster(path / "reflectance")):
        assert raster.shape == (HEIGHT, WIDTH, 3)
        assert (raster.crs, raster.transform) == ("EPSG:32632", TRANSFORM)
        assert raster.pixel_size == (20.0, 10.0, "m")


def test_coordinates_win_over_a_geotransform_that_a_slice_left_behind(tmp_path: Path) -> None:
    sliced = scene(tmp_path / "a.zarr", 3, x=X + 70)
    assert open_raster(sliced).transform == (10.0, 0.0, 500_070.0, 0.0, -20.0, 4_000_000.0)
    rounded = scene(tmp_path / "b.zarr", 3, x=X + 0.001, y=Y - 0.001)
    assert open_raster(rounded).transform == TRANSFORM
    rotated = "500000.0 10.0 1.0 4000000.0 2.0 -20.0"
    alone = scene(tmp_path / "c.zarr", 3, x=None, y=None, told=rotated)
    assert open_raster(alone).transform == (10.0, 1.0, 500_000.0, 2.0, -20.0, 4_000_000.0)


@pytest.mark.parametrize(
    "options",
    [
        {"x": None}, {"x": np.arange(WIDTH) ** 2}, {"x": np.full(WIDTH, 7.0)}, {"x": np.array([*X[:-1], np.nan])},
        {"units": "km"}, {"units": "rad"}, {"units": "micrometer"},
    ],
)  # fmt: skip
def test_what_is_no_grid_on_the_map_has_no_place(tmp_path: Path, options: dict[str, Any]) -> None:
    raster = open_raster(scene(tmp_path / "a.zarr", 3, told=None, **options))
    assert (raster.crs, raster.transform, raster.pixel_size) == (None, None, None)


def test_the_place_of_an_array_counts_in_its_identity(tmp_path: Path) -> None:
    here, there = (scene(tmp_path / name, 3, x=X + shift) for name, shift in (("a", 0), ("b", 10)))
    for path in ("", "reflectance"):
        assert open_raster(here / path).identity() != open_raster(there / path).identity()


def test_geozarrs_place_of_a_group_holds_for_its_arrays(tmp_path: Path) -> None:
    place = {"proj:code": "EPSG:32632", "spatial:transform": list(TRANSFORM)}
    pyramid = {"layout": [{"asset": "r10m"}, {"asset": "r20m", "derived_from": "r10m"}]}
    root = zarr.create_group(tmp_path / "a.zarr", attributes={"multiscales": pyramid})
    for name in ("r10m", "r20m"):
        add(root.create_group(name, attributes=place), "b02", np.zeros((HEIGHT, WIDTH), "u2"), ("y", "x"))
    for path in (tmp_path / "a.zarr" / "r10m", tmp_path / "a.zarr" / "r10m" / "b02"):
        raster = open_raster(path)
        assert (raster.crs, raster.transform, raster.pixel_size) == (
            "EPSG:32632",
            TRANSFORM,
            (20.0, 10.0, "m"),
        )
    with pytest.raises(InputError, match="holds r10m, r20m: give the path of one image"):
        open_raster(tmp_path / "a.zarr")


def test_the_place_of_an_ome_zarr_is_not_that_of_a_level(tmp_path: Path) -> None:
    around = {"ome": {"multiscales": []}, "spatial:transform": list(TRANSFORM)}
    add(zarr.create_group(tmp_path / "a.zarr", attributes=around), "1", np.zeros((3, 4)), ("y", "x"))
    assert open_raster(tmp_path / "a.zarr" / "1").transform is None


def test_an_array_in_a_damaged_group_is_read(tmp_path: Path) -> None:
    path = scene(tmp_path / "a.zarr", 3) / "reflectance"
    for damage in ("{", "[]", '{"zarr_format": 3, "node_type": "x"}'):
        (tmp_path / "a.zarr" / "zarr.json").write_text(damage)
        assert open_raster(path).transform is None


def test_a_store_of_gdal_knows_its_place_and_nodata(tmp_path: Path) -> None:
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=HEIGHT, width=WIDTH, count=1, dtype="uint16", nodata=7,
        crs="EPSG:32632", transform=rasterio.Affine(*TRANSFORM),
    ) as dataset:  # fmt: skip
        dataset.write(np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(1, HEIGHT, WIDTH))
    rasterio.shutil.copy(tmp_path / "a.tif", tmp_path / "a.zarr", driver="Zarr", FORMAT="ZARR_V2")
    raster = open_raster(tmp_path / "a.zarr")
    assert (raster.crs, raster.transform, raster.nodata) == ("EPSG:32632", TRANSFORM, 7)
    assert [int(n) for n in raster.read(Window(y=0, x=5, height=1, width=3)).ravel()] == [5, 6, 7]


def test_a_float_as_xarray_writes_it_to_v3_is_nodata(tmp_path: Path) -> None:
    as_float = base64.standard_b64encode(struct.pack("<d", -9999.0)).decode()
    array = zarr.create_array(
        tmp_path / "f.zarr", shape=(4, 5), dtype="f4", attributes={"_FillValue": as_float}
    )
    array[...] = 1
    assert open_raster(tmp_path / "f.zarr").nodata == -9999


@pytest.mark.parametrize(
    ("fill", "attributes", "nodata"),
    [
        (None, {"_ARRAY_DIMENSIONS": ["y", "x"]}, None),
        (9, {"_ARRAY_DIMENSIONS": ["y", "x"]}, 9),
        (0, {"_ARRAY_DIMENSIONS": ["y", "x"], "grid_mapping": "spatial_ref"}, 0),
        (0, {"_ARRAY_DIMENSIONS": ["y", "x"]}, None),
        (9, {}, None),
    ],
)
def test_a_fill_value_of_xarray_in_v2_is_its_nodata(
    tmp_path: Path, fill: int | None, attributes: dict[str, Any], nodata: int | None
) -> None:
    zarr.create_array(
        tmp_path / "a.zarr", shape=(4, 5), dtype="i2", zarr_format=2, fill_value=fill, attributes=attributes
    )
    assert open_raster(tmp_path / "a.zarr").nodata == nodata
