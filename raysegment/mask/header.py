"""What a mask, and what lies beside it, says of itself: the attributes of its root.

``ome`` (OME-Zarr 0.5, with the classes' names and colours), ``raysegment`` (class coding, nodata, origin, recipe) and,
for a georeferenced source, ``proj:code`` or ``proj:wkt2`` and ``spatial:transform``. None of them names a time, a host
or a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raysegment.geometry import Size
from raysegment.mask.coding import KEY
from raysegment.model.spec import Class
from raysegment.raster.protocol import PixelSize, Transform

_OME_UNITS = {"um": "micrometer", "m": "meter"}


@dataclass(frozen=True)
class MaskHeader:
    """What a mask says of itself."""

    name: str
    shape: Size
    classes: tuple[Class, ...]
    dtype: np.dtype
    origin: tuple[int, int]
    """(y, x) of the mask's top left corner, in pixels of the grid that was segmented."""
    recipe: dict[str, Any]
    """What decided the values: the same recipe gives the same mask."""
    tiles: int
    """Forward passes it stands for."""
    class_pixels: dict[str, int]
    tiles_skipped: int = 0
    failed_regions: list[dict[str, Any]] = field(default_factory=list)
    """What could not be read, in full-resolution source pixels."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Full-resolution source pixels per pixel of the mask, (y, x)."""
    source_offset: tuple[float, float] = (0.0, 0.0)
    """(y, x) of the centre of the source's first pixel in the source's own space, in full-resolution pixels."""
    pixel_size: PixelSize | None = None
    crs: str | None = None
    transform: Transform | None = None
    """Of the mask: already shifted to `origin`."""

    @property
    def nodata(self) -> int:
        return int(np.iinfo(self.dtype).max)


def mask_attributes(header: MaskHeader, levels: int) -> dict[str, Any]:
    """Attributes of the root of a finished mask of `levels` levels."""
    attributes: dict[str, Any] = {
        "ome": {
            "version": "0.5",
            "multiscales": [multiscale(header, levels)],
            "image-label": {
                "colors": [
                    {"label-value": i, "rgba": [*c.colour, 255]} for i, c in enumerate(header.classes)
                ],
                "properties": [{"label-value": i, "class": c.name} for i, c in enumerate(header.classes)],
            },
        },
        KEY: {
            "classes": [c.model_dump(mode="json") for c in header.classes],
            "nodata": header.nodata,
            "origin": [_whole(o * s) for o, s in zip(header.origin, header.scale, strict=True)],
            "scale": list(header.scale),
            "recipe": header.recipe,
            "tiles": header.tiles,
            "tiles_skipped": header.tiles_skipped,
            "class_pixels": header.class_pixels,
            "failed_regions": header.failed_regions,
        },
    }
    return {**attributes, **placement(header)}


def _whole(value: float) -> float:
    """An int where it is one."""
    return round(value) if abs(value - round(value)) < 1e-6 else value


def placement(header: MaskHeader) -> dict[str, Any]:
    """Where it lies on the ground, by the proj: and spatial: conventions; empty without georeference."""
    attributes: dict[str, Any] = {}
    if header.crs is not None:
        is_code = header.crs.upper().startswith("EPSG:")
        attributes["proj:code" if is_code else "proj:wkt2"] = header.crs
    if header.transform is not None:
        attributes["spatial:dimensions"] = ["y", "x"]
        attributes["spatial:transform"] = list(header.transform)
    return attributes


def multiscale(header: MaskHeader, levels: int, *, has_channels: bool = False) -> dict[str, Any]:
    """OME-Zarr 0.5 ``multiscales`` entry of `levels` levels (y, x), or (c, y, x)."""
    pixel_y, pixel_x, unit = header.pixel_size or (*header.scale, None)
    axes: list[dict[str, str]] = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    if unit in _OME_UNITS:
        axes = [{**axis, "unit": _OME_UNITS[unit]} for axis in axes]
    leading = [{"name": "c", "type": "channel"}] if has_channels else []
    return {
        "name": header.name,
        "axes": [*leading, *axes],
        "datasets": list(_datasets(levels, (pixel_y, pixel_x), _first_edge(header), len(leading))),
    }


def _first_edge(header: MaskHeader) -> tuple[float, float]:
    """(y, x) of the mask's top left edge in the source's own space, in pixels of the mask.

    A translation places the centre of a pixel, so the source's own edge lies half of one of its pixels before it.
    """
    y, x = (
        origin + (offset - 0.5) / scale
        for origin, offset, scale in zip(header.origin, header.source_offset, header.scale, strict=True)
    )
    return y, x


def _datasets(
    levels: int, pixel: tuple[float, float], edge: tuple[float, float], leading: int
) -> Iterator[dict[str, Any]]:
    """Scale and place of each level, whose first pixels all begin at `edge`; places are of pixels' centres."""
    for level in range(levels):
        factor = 2**level
        transformations: list[dict[str, Any]] = [
            {"type": "scale", "scale": [*[1.0] * leading, *(p * factor for p in pixel)]}
        ]
        place = [p * (e + factor / 2) for p, e in zip(pixel, edge, strict=True)]
        if any(place):
            transformations.append({"type": "translation", "translation": [*[0.0] * leading, *place]})
        yield {"path": str(level), "coordinateTransformations": transformations}
