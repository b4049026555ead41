"""The axes of a Zarr array, by whoever names them: the array itself, xarray, or the OME-Zarr image it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from raysegment.raster.axes import guess_names, short_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import zarr

#: Axes of OME-Zarr 0.1 and 0.2, which did not name them.
_OLD_AXES = ("t", "c", "z", "y", "x")


def planes(path: str) -> dict[str, int]:
    """Axis → length of every axis that `select` has to fix: longer than 1 and neither y, x nor channel.

    `path`: an array, or an OME-Zarr image. Raises InputError when its axes cannot be told, and whatever zarr raises
    of what is none.
    """
    import zarr

    node = zarr.open(path, mode="r")
    if isinstance(node, zarr.Array):
        named = dimension_names(node) or names_by_parent(Path(path)) or guess_names(node.shape, path)
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


def names_by_parent(path: Path) -> tuple[str, ...] | None:
    """Names of a level's axes by the OME-Zarr image that it belongs to; None when it belongs to none."""
    import zarr

    if not any((path.parent / name).is_file() for name in ("zarr.json", ".zgroup")):
        return None
    attributes: dict[str, Any] = dict(zarr.open_group(path.parent, mode="r").attrs)
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
