"""Polygons as a mask: drawn, window by window, on the grid of the image they lie on.

A pixel belongs to the polygon that holds its centre, of several to the one that comes last in the file. Polygons
that the file gives no class, where it gives others one, are neither learned nor scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raysegment.classes import label_code
from raysegment.errors import InputError, UsageError
from raysegment.geometry import Size, Window
from raysegment.raster.identity import path_identity
from raysegment.raster.window import check_window
from raysegment.training.forms.scene import Source
from raysegment.training.forms.vector import Layer, read_layer

if TYPE_CHECKING:
    from raysegment.raster import PixelSize, Raster, Transform

_CHUNK = 1024
#: What stands where a polygon without a class lies.
_OPEN = -1


@dataclass(frozen=True, slots=True)
class Polygons:
    """A file of polygons, on the grid of an image."""

    path: str
    image: Source

    def open(self) -> Raster:
        image = self.image.open()
        try:
            return PolygonRaster(self.path, read_layer(self.path), image)
        finally:
            image.close()

    def __str__(self) -> str:
        return self.path


class PolygonRaster:
    """Polygons as one (y, x, channel) plane of int64: 0, or the code of a label (see `classes.label_code`).

    See :class:`raysegment.raster.protocol.Raster`. Coordinates are full-resolution pixels where QuPath wrote the file
    or the image has no place on earth, otherwise of the file's own coordinate system; a GeoJSON that names none is
    in longitude and latitude (RFC 7946), or in the image's where its numbers cannot be that.
    Raises InputError when none of the polygons lies anywhere near the image, UsageError without rasterio.
    """

    format = "polygons"
    nodata: float | None = None
    alpha: int | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    offset: tuple[float, float] = (0.0, 0.0)
    other_images: tuple[tuple[str, Size], ...] = ()

    def __init__(self, path: str, layer: Layer, image: Raster) -> None:
        self.path, self.select = path, dict[str, int]()
        height, width, _ = image.shape
        self.shape = (height, width, 1)
        self.dtype = np.dtype(np.int64)
        self.levels: tuple[Size, ...] = (Size(height, width),)
        self.chunk = Size(min(height, _CHUNK), min(width, _CHUNK))
        self.chunks: tuple[Size, ...] = (self.chunk,)
        self.pixel_size: PixelSize | None = image.pixel_size
        self.crs: str | None = image.crs
        self.transform: Transform | None = image.transform
        names = sorted({label for label in layer.labels if label is not None})
        self.labels: Mapping[int, str] = {label_code(name): name for name in names}
        """The text of each code that may occur."""
        self._codes = np.array([0, *(label_code(n) for n in names), _OPEN], np.int64)
        place = {name: i for i, name in enumerate(names, start=1)}
        try:
            drawn = _in_pixels(layer, image, path)
            boxes = np.array([_box(g) for g in drawn]).reshape(-1, 4)
        except (KeyError, IndexError, TypeError, ValueError) as e:
            raise InputError(f"{path} holds a polygon that is no list of rings of (x, y): {e!r}") from e
        near = _meets(boxes, Window(y=0, x=0, height=height, width=width))
        if len(drawn) and not _meets(_hull(boxes), Window(y=0, x=0, height=height, width=width)).any():
            left, top, right, bottom = _hull(boxes)[0]
            raise InputError(
                f"the polygons of {path} lie at x {left:.6g}–{right:.6g}, y {top:.6g}–{bottom:.6g} in pixels of "
                f"{image.path}, which is {height} × {width}: check their coordinate system"
            )
        self._boxes = boxes[near]
        self._shapes = [
            (g, place.get(label or "", len(names) + 1))
            for g, label, keep in zip(drawn, layer.labels, near, strict=True)
            if keep
        ]

    def read(self, window: Window, level: int = 0) -> np.ndarray:
        """Codes (height, width, 1) int64."""
        from rasterio.features import rasterize
        from rasterio.transform import Affine

        check_window(window, self.levels[level], self.path)
        here = np.flatnonzero(_meets(self._boxes, window))
        if not len(here):
            return np.zeros((*window.size, 1), np.int64)
        burnt = rasterize(
            [self._shapes[i] for i in here],
            out_shape=window.size,
            transform=Affine.translation(window.x, window.y),
            dtype=np.int32,
        )
        return self._codes[burnt][:, :, None]

    def valid(self, window: Window, pixels: np.ndarray, level: int = 0) -> np.ndarray | None:
        """Everywhere but where a polygon without a class lies."""
        return pixels[:, :, 0] != _OPEN

    def stored(self, level: int = 0) -> None:
        """All of it can be drawn."""

    def identity(self) -> str:
        """Digest of the file of polygons."""
        return path_identity(self.path)

    def close(self) -> None:
        """Nothing is held open."""


def check_drawable(path: object) -> None:
    """Raise UsageError unless polygons can be drawn here. Imports what draws them, once, before threads do at once."""
    try:
        import rasterio.features
        import rasterio.warp  # noqa: F401
    except ModuleNotFoundError as e:
        raise UsageError(f"{path}: polygons as masks need rasterio: pip install 'raysegment[vector]'") from e


def _in_pixels(layer: Layer, image: Raster, path: str) -> list[dict[str, Any]]:
    """The geometries with coordinates (x, y) in pixels of the image."""
    check_drawable(path)
    from rasterio.crs import CRS
    from rasterio.errors import CRSError
    from rasterio.transform import Affine
    from rasterio.warp import transform_geom

    shapes = [dict(g) for g in layer.geometries]
    if layer.in_pixels or image.transform is None:
        if layer.crs is not None and not layer.in_pixels:
            raise InputError(
                f"{path} is in {layer.crs}, but {image.path} has no georeference: give pixels, or a GeoTIFF"
            )
        return shapes
    crs = layer.crs or ("OGC:CRS84" if _may_be_degrees(shapes) else None)
    if crs is not None and image.crs is not None and shapes:
        try:
            theirs, ours = CRS.from_user_input(crs), CRS.from_user_input(image.crs)
        except CRSError as e:
            raise InputError(f"{path}: its coordinate system cannot be understood: {e}") from e
        if theirs != ours:
            shapes = [dict(g) for g in transform_geom(theirs, ours, shapes)]
    inverse = ~Affine(*image.transform)
    return [{**g, "coordinates": _mapped(g["coordinates"], inverse)} for g in shapes]


def _may_be_degrees(shapes: list[dict[str, Any]]) -> bool:
    boxes = np.array([_box(g) for g in shapes]).reshape(-1, 4)
    return bool((np.abs(boxes) <= (180, 90, 180, 90)).all())


def _mapped(coordinates: Any, by: Any) -> Any:
    """Nested rings of (x, y) or (x, y, z) through an affine transform."""
    if isinstance(coordinates[0], (int, float)):
        x, y = coordinates[:2]
        return (by.a * x + by.b * y + by.c, by.d * x + by.e * y + by.f)
    return [_mapped(part, by) for part in coordinates]


def _box(shape: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a Polygon or MultiPolygon."""
    rings = (
        shape["coordinates"] if shape["type"] == "Polygon" else [r for p in shape["coordinates"] for r in p]
    )
    points = np.array([point[:2] for ring in rings for point in ring], np.float64)
    return (*points.min(axis=0), *points.max(axis=0))


def _hull(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])[None]


def _meets(boxes: np.ndarray, window: Window) -> np.ndarray:
    """Which boxes (n, 4) touch the window: bool (n,)."""
    left, top, right, bottom = boxes.T
    return (left <= window.right) & (right >= window.x) & (top <= window.bottom) & (bottom >= window.y)
