"""Where a Zarr array lies by the group around it: by CF, as xarray and rioxarray write it, by GDAL, and by GeoZarr.

The transform is that of its coordinates: arrays of one axis, with the axis's name, of the centres of its pixels. Where
there are none it is the grid mapping's ``GeoTransform``; the coordinates come first, since a slice in xarray takes them
along and leaves ``GeoTransform`` as it was. The coordinate system is in GDAL's attribute ``_CRS``, or in the attributes
of the array that ``grid_mapping`` names, ``spatial_ref`` unless it is said (CF 1.11, 5.6; rioxarray).

GeoZarr's attributes ``proj:`` and ``spatial:`` of a group hold for the arrays in it.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from raysegment.errors import StorageError
from raysegment.raster.crs import of_text
from raysegment.raster.georeference import micrometres
from raysegment.raster.zarr_metadata import spatial_transform
from raysegment.storage.objects import zarr_store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import zarr

    from raysegment.raster.axes import Axes
    from raysegment.raster.protocol import Transform
    from raysegment.storage import Location

#: How far from its place on a regular grid a coordinate may lie, in pixels: degrees are often kept as float32.
_MOST_OFF = 0.1
#: Where coordinates and GeoTransform agree as well as this, in pixels, the latter has the better digits.
_SAME = 1e-3
#: Units of coordinates that are no coordinate system's; those of microscopes are not either.
_OTHER_UNITS = ("km", "kilometer", "kilometre", "kilometers", "kilometres", "rad", "radian", "radians")
_METRE_UM = 1e6


def parent_group(place: Location) -> zarr.Group | None:
    """The group that an array lies in; None where it lies in none, or where nobody may look."""
    import zarr

    # Of damaged metadata zarr makes nearly any of these, and the array is none the worse for it.
    with contextlib.suppress(StorageError, OSError, ValueError, KeyError, TypeError):
        if any((place.parent / name).is_file() for name in ("zarr.json", ".zgroup")):
            return zarr.open_group(zarr_store(place.parent, read_only=True), mode="r")
    return None


def place_by_group(
    array: zarr.Array, names: Sequence[str], axes: Axes, group: zarr.Group, path: str
) -> tuple[str | None, Transform | None]:
    """CRS and transform of pixel corners of an array in `group` whose axes have `names`; without the latter, neither.

    A coordinate system that cannot be read is said.
    """
    around: dict[str, Any] = dict(group.attrs)
    # An OME-Zarr's are those of its first level.
    is_ome = "ome" in around or isinstance(around.get("multiscales"), list)
    if "spatial:transform" in around and not is_ome:
        return around.get("proj:code") or around.get("proj:wkt2"), spatial_transform(around)
    attributes: dict[str, Any] = dict(array.attrs)
    mapping = _mapping(group, attributes)
    told = _geo_transform(mapping)
    rows, columns = (_centres(group, names[axis], array.shape[axis]) for axis in (axes.y, axes.x))
    transform = told
    if rows is not None and columns is not None:
        (f, e), (c, a) = rows, columns
        transform = (a, 0.0, c - a / 2, 0.0, e, f - e / 2)
        if told is not None and _agree(told, transform, *(array.shape[axis] for axis in (axes.y, axes.x))):
            transform = told
    return (None, None) if transform is None else (_crs(attributes, mapping, path), transform)


def _mapping(group: zarr.Group, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of the grid mapping; none where there is none."""
    words = re.findall(r"[^\s:]+", str(attributes.get("grid_mapping", "spatial_ref")))
    member = group.get(words[0]) if words else None
    return dict(member.attrs) if member is not None else {}


def _crs(attributes: Mapping[str, Any], mapping: Mapping[str, Any], path: str) -> str | None:
    gdal = attributes.get("_CRS")
    gdal = gdal if isinstance(gdal, dict) else {}
    code = re.search(r"\bEPSG/[^/]*/(\d+)$", str(gdal.get("url", "")))
    if code is not None:
        return f"EPSG:{code[1]}"
    wkt = gdal.get("wkt") or mapping.get("crs_wkt") or mapping.get("spatial_ref")
    return of_text(wkt, path) if isinstance(wkt, str) else None


def _geo_transform(mapping: Mapping[str, Any]) -> Transform | None:
    """GDAL's six numbers, in GDAL's order, as text."""
    try:
        c, a, b, f, d, e = (float(word) for word in str(mapping.get("GeoTransform", "")).split())
    except ValueError:
        return None
    return (a, b, c, d, e, f) if a * e - b * d and np.isfinite([a, b, c, d, e, f]).all() else None


def _centres(group: zarr.Group, name: str, length: int) -> tuple[float, float] | None:
    """The first coordinate of an axis and the step between two; None where they are no regular grid."""
    import zarr

    member = group.get(name)
    if not isinstance(member, zarr.Array) or member.shape != (length,) or length < 2:
        return None
    attributes: dict[str, Any] = dict(member.attrs)
    unit = str(attributes.get("units", "")).lower()
    if unit in _OTHER_UNITS or micrometres(unit) not in (None, _METRE_UM):
        return None
    if member.dtype.kind not in "iuf" or "scale_factor" in attributes or "add_offset" in attributes:
        return None
    values = np.asarray(member[:], np.float64)
    first, step = float(values[0]), float(values[-1] - values[0]) / (length - 1)
    off = np.abs(values - (first + step * np.arange(length)))
    return (first, step) if step and (off <= _MOST_OFF * abs(step)).all() else None


def _agree(one: Transform, other: Transform, height: int, width: int) -> bool:
    """Whether two transforms put the corners of an image in one place."""
    edge = min(np.hypot(one[0], one[3]), np.hypot(one[1], one[4]))
    corners = np.array([(x, y, 1) for x in (0, width) for y in (0, height)], np.float64)
    apart = corners @ (np.reshape(one, (2, 3)) - np.reshape(other, (2, 3))).T
    return bool((np.abs(apart) <= _SAME * edge).all())
