"""Visit an image of any size window by window, in bounded memory and without decoding a chunk twice."""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt

from raysegment.geometry import Size, Window

#: Pixels of a window unless the image's own chunks are larger.
WINDOW_PIXELS = 1 << 22


def windows(area: Window, chunk: Size, pixels: int = WINDOW_PIXELS) -> Iterator[Window]:
    """Windows that tile `area` row by row, each of about `pixels` pixels.

    Their edges lie on the grid of `chunk` (anchored at pixel 0), except at the edge of `area`. A chunk larger
    than four windows' worth of pixels is visited in parts: memory comes before speed.
    """
    chunk_width = min(chunk.width, area.right)
    if chunk_width >= area.width or area.width * chunk.height <= pixels:
        width = area.right  # strips, and narrow images: whole rows
    else:
        width = _multiple(isqrt(pixels), chunk_width, area.right)
    height = _multiple(max(1, pixels // min(width, area.width)), min(chunk.height, area.bottom), area.bottom)
    height = min(height, max(1, 4 * pixels // min(width, area.width)))
    for y in range(area.y - area.y % height, area.bottom, height):
        for x in range(area.x - area.x % width, area.right, width):
            window = Window(y=y, x=x, height=height, width=width).intersect(area)
            if window.area:
                yield window


def _multiple(target: int, unit: int, most: int) -> int:
    """The multiple of `unit` (at least one) that is nearest below `target`, at most `most`."""
    return min(max(unit, target // unit * unit), most)
