"""A small picture of a big image: every pixel of the picture from the pixels it stands for.

The coarsest level that is still finer than the picture is read, part by part: memory does not grow with the
image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, isqrt
from typing import TYPE_CHECKING

import numpy as np

from raysegment import console
from raysegment.geometry import Size, Window

if TYPE_CHECKING:
    from raysegment.raster.protocol import Raster

#: Source pixels that are read at once.
PART_PIXELS = 1 << 22


@dataclass(frozen=True)
class Part:
    """A rectangle of the picture and the source pixels that it stands for."""

    target: Window
    """In pixels of the picture."""
    source: Window
    """In pixels of the level that is read."""
    rows: np.ndarray
    """First source row of each row of `target`, relative to `source`; ascending from 0."""
    cols: np.ndarray
    """The same for columns."""


def mean_picture(
    raster: Raster, area: Window, size: Size, channels: Sequence[int], label: str = "image"
) -> tuple[np.ndarray, np.ndarray]:
    """Area means: float32 (height, width, channels), and the share of valid pixels, float32 (height, width).

    `area`: full-resolution pixels; `size`: of the picture; `channels`: the stored ones that are wanted, of a
    palette image its red, green and blue. Where the picture is finer than the image, pixels repeat. Nodata, NaN
    and inf are left out of the mean; 0 where all is. Shows progress under `label`.
    """
    palette = None if raster.palette is None else np.asarray(raster.palette, np.uint8)
    mean = np.zeros((*size, len(channels)), np.float32)
    share = np.zeros(size, np.float32)
    level, window = level_for(raster, area, size)
    rows = window.y + _edges(window.height, size.height)
    cols = window.x + _edges(window.width, size.width)
    for part in parts(rows, cols, raster.chunk, label):
        stored = raster.read(part.source, level)
        pixels = (stored if palette is None else palette[stored[:, :, 0]])[:, :, channels]
        has = _has_data(pixels, raster.valid(part.source, stored, level))
        areas = _areas(part)
        counts = areas
        if not has.all():
            pixels = np.where(has[:, :, None], pixels, 0)
            counts = _sums(has[:, :, None], part)[:, :, 0]
        mean[part.target.slices()] = _sums(pixels, part) / np.maximum(counts, 1)[:, :, None]
        share[part.target.slices()] = counts / areas
    return mean, share


def parts(rows: np.ndarray, cols: np.ndarray, chunk: Size, label: str) -> Iterator[Part]:
    """Cut a picture into rectangles that each stand for about PART_PIXELS source pixels.

    `rows`, `cols`: first source pixel of each row and column of the picture and, one more, the end of the last;
    int64, ascending; repeated where the picture is finer than the source. Shows progress under `label`.
    """
    height, width = int(rows[-1] - rows[0]), int(cols[-1] - cols[0])
    with console.progress(label, height * width / 1e6, "MP") as progress:
        for part in _cut(rows, cols, chunk):
            yield part
            progress.advance(part.source.area / 1e6)


def _cut(rows: np.ndarray, cols: np.ndarray, chunk: Size) -> Iterator[Part]:
    size = Size(len(rows) - 1, len(cols) - 1)
    source_width = int(cols[-1] - cols[0])
    y_scale, x_scale = (rows[-1] - rows[0]) / size.height, source_width / size.width
    budget = max(1.0, PART_PIXELS / (max(1.0, y_scale) * max(1.0, x_scale)))
    # where a chunk is as wide as the image, reading half a row decodes it whole
    in_strips = chunk.width >= source_width
    width = size.width if in_strips else min(size.width, max(1, isqrt(int(budget))))
    height = min(size.height, max(1, int(budget / width)))
    for y in range(0, size.height, height):
        for x in range(0, size.width, width):
            target = Window.between(y, x, min(y + height, size.height), min(x + width, size.width))
            own_rows, own_cols = rows[y : target.bottom], cols[x : target.right]
            source = Window.between(
                int(own_rows[0]),
                int(own_cols[0]),
                max(int(rows[target.bottom]), int(own_rows[-1]) + 1),
                max(int(cols[target.right]), int(own_cols[-1]) + 1),
            )
            yield Part(target, source, own_rows - own_rows[0], own_cols - own_cols[0])


def level_for(raster: Raster, area: Window, size: Size) -> tuple[int, Window]:
    """The coarsest level in which `area` is at least as large as the picture, and `area` there."""
    best = 0, area
    full = raster.levels[0]
    for number, level in enumerate(raster.levels[1:], start=1):
        fy, fx = full.height / level.height, full.width / level.width
        there = Window.between(
            int(area.y / fy),
            int(area.x / fx),
            min(ceil(area.bottom / fy), level.height),
            min(ceil(area.right / fx), level.width),
        )
        if there.height >= size.height and there.width >= size.width:
            best = number, there
    return best


def _edges(length: int, count: int) -> np.ndarray:
    """The first pixel of each of `count` equal shares of `length`, and `length`; repeated if there are fewer."""
    return np.arange(count + 1, dtype=np.int64) * length // count


def _has_data(pixels: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """bool (h, w): where pixels are valid and finite."""
    has = np.ones(pixels.shape[:2], bool) if valid is None else valid
    return has & np.isfinite(pixels).all(axis=2) if pixels.dtype.kind == "f" else has


def _sums(pixels: np.ndarray, part: Part) -> np.ndarray:
    """Sums over the source pixels of each picture pixel: float (height, width, channels).

    (`reduceat` gives the one pixel at a start that is repeated.)
    """
    cell = part.source.area / part.target.area
    exact = pixels.dtype.itemsize == 1 and cell < 1 << 14  # a sum of bytes that float32 holds exactly
    dtype = np.float32 if exact else np.float64
    rows = np.add.reduceat(pixels, part.rows, axis=0, dtype=dtype)
    return np.add.reduceat(rows, part.cols, axis=1)


def _areas(part: Part) -> np.ndarray:
    """Source pixels of each picture pixel: int64 (height, width)."""
    heights = np.maximum(np.diff(part.rows, append=part.source.height), 1)
    widths = np.maximum(np.diff(part.cols, append=part.source.width), 1)
    return heights[:, None] * widths[None, :]
