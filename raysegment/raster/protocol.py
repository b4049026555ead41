"""What every image is to the rest of the house: one lazy (y, x, channel) plane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np

    from raysegment.geometry import Size, Window
    from raysegment.raster.stored import Stored

#: (y, x, unit); unit is "um", "m", "degree" or None
PixelSize = tuple[float, float, str | None]
#: a, b, c, d, e, f in rasterio's order: x = a·col + b·row + c, y = d·col + e·row + f
Transform = tuple[float, float, float, float, float, float]


@runtime_checkable
class Raster(Protocol):
    """An image of any size, opened but not read.

    One object belongs to one thread at a time or guards itself: workers open their own by `path`.
    """

    path: str
    """Where it was opened from: opening this again, with `select`, gives the same plane."""
    select: dict[str, int]
    """The index at which an axis other than y, x and channel is held: {"z": 0}. Empty where there is none."""
    format: str
    """The family, as a person would say it: "GeoTIFF", "OME-Zarr 0.4", "PNG" …"""
    shape: tuple[int, int, int]
    """(height, width, channels) of level 0, every stored channel counted."""
    dtype: np.dtype
    """As stored."""
    levels: tuple[Size, ...]
    """Sizes of the resolution levels, full resolution first."""
    chunk: Size
    """What is decoded at once at level 0 (tile, strip or Zarr chunk): reading less costs as much."""
    chunks: tuple[Size, ...]
    """The same of every level. A chunk, on the grid that starts at pixel 0, is readable as a whole or not."""
    pixel_size: PixelSize | None
    crs: str | None
    """An authority code such as "EPSG:32643" or, where there is none, WKT."""
    transform: Transform | None
    nodata: float | None
    """The stored value that means "no data here"; NaN always does in a float raster."""
    alpha: int | None
    """Index of the channel that is opacity rather than a measurement."""
    palette: tuple[tuple[int, int, int], ...] | None
    """RGB (0–255) of each stored value, of a palette image."""
    offset: tuple[float, float]
    """(y, x) of the centre of the first pixel in the image's own space, in pixels: OME-Zarr's translation."""
    other_images: tuple[tuple[str, Size], ...]
    """Name and size of each further image of the file, which is not read: labels, thumbnails, other areas."""

    def read(self, window: Window, level: int = 0) -> np.ndarray:
        """Pixels of `window`, as stored: (height, width, channels), C order, the file's dtype in
        native byte order. `window` must lie inside the level. Raises ReadError naming the window."""
        ...

    def valid(self, window: Window, pixels: np.ndarray, level: int = 0) -> np.ndarray | None:
        """Where the source has data: bool (height, width), True = data; None = everywhere.

        `pixels` is what :meth:`read` gave for this window, so that nothing is decoded twice.
        False where every colour channel holds nodata or NaN, where alpha is 0, or where the mask is 0, in the
        file or beside it.
        """
        ...

    def stored(self, level: int = 0) -> Stored | None:
        """Which chunks are in the file at all; None = every one. From metadata, looked up once and kept.

        A chunk that is not there is read as nodata where the image declares it, otherwise as 0 (TIFF) or the
        fill value (Zarr): writers leave out chunks that hold nothing else.
        """
        ...

    def identity(self) -> str:
        """A digest that changes when the content does; the same for a copy of the file where affordable."""
        ...

    def close(self) -> None:
        """Let go of file handles. Safe to call twice."""
        ...
