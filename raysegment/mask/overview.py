"""A small picture of a big mask: the commonest class under each of its pixels, and what the classes are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from raysegment.classes import code_colour, distinct, pixel_codes
from raysegment.geometry import Size, Window
from raysegment.mask.coding import Coding
from raysegment.model.spec import Class, default_classes
from raysegment.raster.overview import Part, level_for, parts

if TYPE_CHECKING:
    from raysegment.raster import Raster

#: Code of picture pixels that stand for nodata; no mask stores it.
NOTHING = int(np.iinfo(np.int64).min)
#: Values above this are not drawn as class numbers but as they come.
_MOST_NUMBERED = 64
#: Counters held at once; beyond that (hundreds of values in a large picture) the first pixel stands for all.
_MOST_COUNTS = 1 << 25


def mode_picture(raster: Raster, area: Window, size: Size) -> np.ndarray:
    """The commonest pixel code (see :func:`raysegment.classes.pixel_codes`) under each pixel of the picture.

    int64 (height, width), NOTHING where that is nodata; ties go to the lower code. `area`: full-resolution
    pixels. Where the picture is finer than the mask, pixels repeat.
    """
    picture = np.full(size, NOTHING, np.int64)
    level, window = level_for(raster, area, size)
    for part in parts(window, size, raster.chunk, "mask"):
        stored = raster.read(part.source, level)
        valid = raster.valid(part.source, stored, level)
        values, index = distinct(pixel_codes(stored))
        index = index.reshape(stored.shape[:2])
        if valid is not None:
            values = np.append(values, NOTHING)
            index = np.where(valid, index, len(values) - 1)
        picture[part.target.slices()] = values[_modes(index, len(values), part)]
    return picture


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
    source, target = part.source.size, part.target.size
    if source == target:
        return index
    if source.height < target.height or source.width < target.width or target.area * values > _MOST_COUNTS:
        return index[np.ix_(part.rows, part.cols)]
    row = np.searchsorted(part.rows, np.arange(source.height), side="right") - 1
    col = np.searchsorted(part.cols, np.arange(source.width), side="right") - 1
    cell = row[:, None] * target.width + col[None, :]
    counts = np.bincount((cell * values + index).reshape(-1), minlength=target.area * values)
    return counts.reshape(target.area, values).argmax(axis=1).reshape(target)
