"""A small picture of a big mask: the commonest class under each of its pixels, and what the classes are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raysegment.classes import code_colour, distinct, pixel_codes
from raysegment.geometry import Size
from raysegment.mask.coding import Coding
from raysegment.model.spec import Class, default_classes
from raysegment.raster.overview import Part, parts

if TYPE_CHECKING:
    from raysegment.raster import Raster

#: Code of picture pixels that stand for nodata; no mask stores it.
NOTHING = int(np.iinfo(np.int64).min)
#: Values above this are not drawn as class numbers but as they come.
_MOST_NUMBERED = 64
#: Counters held at once; beyond that (hundreds of values in a large picture) the first pixel stands for all.
_MOST_COUNTS = 1 << 25
#: Of a pixel: borders nearer to a pixel's centre than this lie on it. More than rounding, less than can be seen.
_HAIR = 1e-6


@dataclass(frozen=True, slots=True)
class Area:
    """A rectangle of the plane of a mask: fractions of its pixels, and what lies beside it, included."""

    top: float
    left: float
    bottom: float
    right: float


def mode_picture(raster: Raster, area: Area, size: Size) -> np.ndarray:
    """The commonest pixel code (see :func:`raysegment.classes.pixel_codes`) under each pixel of the picture.

    int64 (height, width), NOTHING where that is nodata, and beside the mask; ties go to the lower code. `area`:
    full-resolution pixels of the mask. A picture pixel stands for the mask pixels whose centres it holds or, where the
    picture is finer than the mask, for the one under its own centre.
    """
    picture = np.full(size, NOTHING, np.int64)
    level = _level(raster, area, size)
    (full_height, full_width), (height, width) = raster.levels[0], raster.levels[level]
    y, x = height / full_height, width / full_width
    first_row, rows = _span(area.top * y, area.bottom * y, size.height, height)
    first_col, cols = _span(area.left * x, area.right * x, size.width, width)
    if len(rows) < 2 or len(cols) < 2:
        return picture
    inside = picture[first_row : first_row + len(rows) - 1, first_col : first_col + len(cols) - 1]
    for part in parts(rows, cols, raster.chunk, "mask"):
        stored = raster.read(part.source, level)
        valid = raster.valid(part.source, stored, level)
        values, index = distinct(pixel_codes(stored))
        index = index.reshape(stored.shape[:2])
        if valid is not None:
            values = np.append(values, NOTHING)
            index = np.where(valid, index, len(values) - 1)
        inside[part.target.slices()] = values[_modes(index, len(values), part)]
    return picture


def _level(raster: Raster, area: Area, size: Size) -> int:
    """The coarsest level with a pixel or more of the area for each of the picture; 0 if none has."""
    height, width = raster.levels[0]
    y, x = (area.bottom - area.top) / height, (area.right - area.left) / width
    fine = [
        n
        for n, level in enumerate(raster.levels)
        if level.height * y >= size.height and level.width * x >= size.width
    ]
    return max(fine, default=0)


def _span(start: float, stop: float, count: int, length: int) -> tuple[int, np.ndarray]:
    """One axis of :func:`raysegment.raster.overview.parts` for a picture of `count` pixels of `start … stop`.

    Only those that have one of the mask's `length` pixels under them: the first of them, and their edges.
    """
    step = (stop - start) / count
    if step >= 1:
        edges = np.ceil(start + np.arange(count + 1) * step - 0.5 - _HAIR).astype(np.int64).clip(0, length)
        there = np.flatnonzero(edges[1:] > edges[:-1])
    else:
        edges = np.floor(start + (np.arange(count + 1) + 0.5) * step + _HAIR).astype(np.int64)
        there = np.flatnonzero((edges[:-1] >= 0) & (edges[:-1] < length))
        edges = edges.clip(0, length)
    if not len(there):
        return 0, edges[:0]
    return int(there[0]), edges[there[0] : there[-1] + 2]


def classes_of(raster: Raster, coding: Coding | None, codes: np.ndarray) -> dict[int, Class]:
    """The class that each code of a mask's picture stands for; a code that is missing means nodata.

    With a coding: its classes, all of them. Otherwise those that `codes` holds: a palette's and RGB colours are
    named by their colour, 0 and 255 alone are two classes, and other numbers are class indices.
    """
    if coding is not None:
        return dict(enumerate(coding.classes))
    found = [int(c) for c in np.unique(codes) if c >= 0]
    if raster.palette is not None:
        return {c: _painted(raster.palette[c]) for c in found if c < len(raster.palette)}
    if raster.shape[2] - (raster.alpha is not None) >= 3:
        return {c: _painted(code_colour(c)) for c in found}
    if set(found) <= {0, 255}:
        return dict(zip((0, 255), default_classes(2), strict=True))
    nodata = np.iinfo(raster.dtype).max if raster.dtype.kind in "iu" else NOTHING
    numbers = [c for c in found if c != nodata]
    if max(numbers, default=0) < _MOST_NUMBERED:
        numbers = list(range(max(numbers, default=0) + 1))
    painted = default_classes(len(numbers))
    return {c: Class(name=f"class {c}", colour=p.colour) for c, p in zip(numbers, painted, strict=True)}


def _painted(colour: tuple[int, int, int]) -> Class:
    return Class(name="#{:02x}{:02x}{:02x}".format(*colour), colour=colour)


def _modes(index: np.ndarray, values: int, part: Part) -> np.ndarray:
    """The commonest of `index` (source height, width), 0 … values - 1, under each pixel of the part's target."""
    target = part.target.size
    if target.area * values > _MOST_COUNTS:
        return index[np.ix_(part.rows, part.cols)]
    rows, cols = part.rows, part.cols
    if index.shape[0] < target.height:  # the picture is finer: pixels repeat
        index, rows = index[rows], np.arange(target.height)
    if index.shape[1] < target.width:
        index, cols = index[:, cols], np.arange(target.width)
    if index.shape == target:
        return index
    row = np.searchsorted(rows, np.arange(index.shape[0]), side="right") - 1
    col = np.searchsorted(cols, np.arange(index.shape[1]), side="right") - 1
    cell = row[:, None] * target.width + col[None, :]
    counts = np.bincount((cell * values + index).reshape(-1), minlength=target.area * values)
    return counts.reshape(target.area, values).argmax(axis=1).reshape(target)
