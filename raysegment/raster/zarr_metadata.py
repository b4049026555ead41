"""What the attributes of a Zarr say of its axes, its place and its nodata."""

from __future__ import annotations

import base64
import re
import struct
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from raysegment.raster.axes import Axes, guess_names, short_name
from raysegment.raster.georeference import micrometres
from raysegment.raster.validity import parsed_nodata
from raysegment.storage import location
from raysegment.storage.objects import zarr_store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import zarr

    from raysegment.raster.protocol import PixelSize, Transform
    from raysegment.storage import Location

#: Axes of OME-Zarr 0.1 and 0.2, which did not name them.
_OLD_AXES = ("t", "c", "z", "y", "x")


def planes(path: str) -> dict[str, int]:
    """Axis → length of every axis that `select` has to fix: longer than 1 and neither y, x nor channel.

    `path`: an array, or an OME-Zarr image. Raises InputError when its axes cannot be told, and whatever zarr raises
    of what is none.
    """
    import zarr

    place = location(path)
    node = zarr.open(zarr_store(place, read_only=True), mode="r")
    if isinstance(node, zarr.Array):
        named = dimension_names(node) or names_by_parent(place) or guess_names(node.shape, path)
        shape = node.shape
    else:
        attributes: dict[str, Any] = dict(node.attrs)
        scales = attributes.get("ome", attributes)["multiscales"][0]
        named, _ = ome_axes(scales)
        shape = cast("zarr.Array[Any]", node[scales["datasets"][0]["path"]]).shape
    sizes = dict(zip(map(short_name, named), shape, strict=True))
    return {axis: size for axis, size in sizes.items() if size > 1 and axis not in ("y", "x", "c")}


def dimension_names(array: zarr.Array) -> tuple[str, ...] | None:
    """Names by Zarr v3's own field or xarray's attribute; None when there are none or some are missing."""
    attributes: dict[str, Any] = dict(array.attrs)
    names = getattr(array.metadata, "dimension_names", None) or attributes.get("_ARRAY_DIMENSIONS")
    if not names or any(n is None for n in names):
        return None
    return tuple(str(n) for n in names)


def names_by_parent(path: Location) -> tuple[str, ...] | None:
    """Names of a level's axes by the OME-Zarr image that it belongs to; None when it belongs to none."""
    import zarr

    if not any((path.parent / name).is_file() for name in ("zarr.json", ".zgroup")):
        return None
    attributes: dict[str, Any] = dict(
        zarr.open_group(zarr_store(path.parent, read_only=True), mode="r").attrs
    )
    scales = attributes.get("ome", attributes).get("multiscales") or [{}]
    if path.name not in [d["path"] for d in scales[0].get("datasets", ())]:
        return None
    return ome_axes(scales[0])[0]


def ome_axes(scales: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, str | None]]:
    """Axis names and units: 0.4 and later describe them, 0.3 names them, before they were five and fixed."""
    axes: Sequence[Any] = scales.get("axes") or _OLD_AXES
    if all(isinstance(a, str) for a in axes):
        return tuple(axes), {}
    return tuple(a["name"] for a in axes), {a["name"]: a.get("unit") for a in axes}


def ome_pixel_size(
    scales: Mapping[str, Any], axes: Axes, units: Mapping[str, str | None]
) -> PixelSize | None:
    """Scale of level 0: the data set's times the pyramid's. None where neither scale nor unit is said."""
    found = [t["scale"] for t in _transformations(scales) if t.get("type") == "scale"]
    if not found:
        return None
    y, x = (float(np.prod([scale[axis] for scale in found])) for axis in (axes.y, axes.x))
    unit_y, unit_x = (units.get(n) for n in list(units)[axes.y : axes.x + 1 : max(1, axes.x - axes.y)])
    if unit_y == unit_x == "degree":
        return (y, x, "degree")
    um_y, um_x = micrometres(unit_y), micrometres(unit_x)
    if um_y is not None and um_x is not None:
        if unit_y == unit_x == "meter":
            return (y, x, "m")
        return (y * um_y, x * um_x, "um")
    return None if y == x == 1.0 else (y, x, None)


def ome_offset(scales: Mapping[str, Any], axes: Axes) -> tuple[float, float]:
    """(y, x) of the centre of level 0's first pixel, in its pixels: the translations, by the scales around them."""
    y, x = (_offset(_transformations(scales), axis) for axis in (axes.y, axes.x))
    return y, x


def _offset(transformations: Sequence[Mapping[str, Any]], axis: int) -> float:
    place, pixel = 0.0, 1.0
    for t in transformations:
        if t.get("type") == "scale":
            place, pixel = place * float(t["scale"][axis]), pixel * float(t["scale"][axis])
        elif t.get("type") == "translation":
            place += float(t["translation"][axis])
    return place / pixel if pixel else 0.0


def _transformations(scales: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of level 0: the data set's own, then the pyramid's, which are applied in this order."""
    lists = [scales["datasets"][0].get("coordinateTransformations"), scales.get("coordinateTransformations")]
    return [t for transformations in lists for t in transformations or ()]


def spatial_transform(attributes: Mapping[str, Any]) -> Transform | None:
    values = attributes.get("spatial:transform")
    if values is None:
        return None
    a, b, c, d, e, f = (float(v) for v in values[:6])
    return (a, b, c, d, e, f)


def nodata(attributes: Mapping[str, Any], metadata: Any = None) -> float | None:
    """By CF's and GDAL's attribute names. Zarr's fill value says what is not stored, not what is unknown, but in v2 of
    xarray and GDAL, whose axes have names: they keep ``_FillValue`` there.

    `metadata`: zarr's, of the array. A fill value of 0, which is there too when nobody chose one, counts only beside a
    `grid_mapping`.
    """
    own = attributes.get("raysegment")  # a mask of ours
    values = [attributes.get(name) for name in ("_FillValue", "nodata", "missing_value")]
    if getattr(metadata, "zarr_format", 3) == 2 and "_ARRAY_DIMENSIONS" in attributes:
        fill = metadata.fill_value
        is_chosen = fill is not None and (bool(fill) or "grid_mapping" in attributes)
        values.append(np.asarray(fill).item() if is_chosen else None)
    for value in [*values, own.get("nodata") if isinstance(own, dict) else None]:
        if isinstance(value, str):
            value = _encoded(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return value
    return None


def _encoded(value: str) -> float | None:
    """A number as text, or as xarray writes a float to v3: the bytes of a little-endian double, in base 64."""
    number = parsed_nodata(value)
    if number is None and re.fullmatch(r"[A-Za-z0-9+/]{11}=", value):
        (number,) = struct.unpack("<d", base64.standard_b64decode(value))
    return number
