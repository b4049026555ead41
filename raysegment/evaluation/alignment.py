"""Which pixel of a prediction lies under each pixel of its truth, where the two differ in resolution or in extent.

Both lie on grids that begin at the source's top left corner; where both say their place on the ground, it must be the
same. A pixel of the truth is answered by the pixel of the prediction that holds its centre; a centre on the border of
two, by the lower or right one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from raysegment.errors import InputError
from raysegment.geometry import Size, Window

if TYPE_CHECKING:
    from raysegment.evaluation.meaning import Side
    from raysegment.raster import Transform

#: Scales are ratios of two image sizes, read back from their decimals: the largest divisor that is looked for.
_MOST_PIXELS = 1 << 22
#: Pixel sizes that differ by less than this share are the same.
_SAME = 0.01


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of an alignment."""

    ratio: Fraction
    """Pixels of the prediction per pixel of the truth."""
    truth: int
    """Pixel of its grid at which the truth begins."""
    prediction: int
    """The same of the prediction."""

    @classmethod
    def of(cls, scales: tuple[float, float], offsets: tuple[int, int]) -> Axis:
        """From the source pixels per pixel, and the first pixels, of the truth and of the prediction."""
        ratio = Fraction(scales[0] / scales[1]).limit_denominator(_MOST_PIXELS)
        return cls(ratio, *offsets)

    def under(self, first: int, stop: int) -> np.ndarray:
        """Pixels of the prediction under the truth's pixels `first … stop - 1`: int64, ascending."""
        centre = 2 * (np.arange(first, stop, dtype=np.int64) + self.truth) + 1  # in half pixels
        return centre * self.ratio.numerator // (2 * self.ratio.denominator) - self.prediction

    def covered(self, length: int) -> tuple[int, int]:
        """The truth's pixels, first and past the last, whose centre lies in a prediction of `length` pixels."""
        half = Fraction(1, 2)
        first, stop = (math.ceil(i / self.ratio - half) for i in (self.prediction, self.prediction + length))
        return first - self.truth, stop - self.truth


@dataclass(frozen=True, slots=True)
class Alignment:
    """How a prediction lies on its truth."""

    rows: Axis
    cols: Axis
    covered: Window
    """The truth's pixels that the prediction answers: not more than it has."""

    @classmethod
    def same(cls, size: Size) -> Alignment:
        """Pixel on pixel."""
        axis = Axis(Fraction(1), 0, 0)
        return cls(axis, axis, Window(y=0, x=0, height=size.height, width=size.width))

    @classmethod
    def of(cls, p: Side, t: Side) -> Alignment:
        """The one that the corners, scales and pixel sizes of the two say. Raises InputError when they do not fit.

        A truth that says nothing of itself has the source's resolution, or the mask's own: the latter where it has the
        size of a mask that begins at the source's corner, or the pixel size of the mask.
        """
        mine = p.coding.offset if p.coding is not None else (0, 0)
        theirs = t.coding.offset if t.coding is not None else (0, 0)
        if p.size == t.size and mine == theirs == (0, 0):
            return _in_place(cls.same(t.size), p, t)
        if p.coding is None:
            raise InputError(f"{_sizes(p, t)}: give a truth of the same size")
        scale = _scale_of_truth(p, t)
        if scale is not None:
            rows, cols = (
                Axis.of(pair, offsets)
                for pair, offsets in zip(
                    zip(scale, p.coding.scale, strict=True), zip(theirs, mine, strict=True), strict=True
                )
            )
            (top, bottom), (left, right) = rows.covered(p.size.height), cols.covered(p.size.width)
            covered = Window.between(top, left, bottom, right)
            if covered.area and Window(y=0, x=0, height=t.size.height, width=t.size.width).holds(covered):
                return _in_place(cls(rows, cols, covered), p, t)
        y, x = p.coding.origin
        at = f"whose corner is the source's pixel y {y:g}, x {x:g}"
        if p.coding.scale != (1.0, 1.0):
            at += f" and whose pixels are {p.coding.scale[0]:g} × {p.coding.scale[1]:g} of the source's"
        raise InputError(
            f"{_sizes(p, t)}, and the mask, {at}, is no part of it: "
            "give the truth at the source's resolution or at the mask's"
        )


def _in_place(alignment: Alignment, p: Side, t: Side) -> Alignment:
    """The alignment itself. Raises InputError where it lays more than a pixel of ground onto another."""
    ours, theirs = p.raster.transform, t.raster.transform
    if ours is None or theirs is None or p.raster.crs != t.raster.crs:
        return alignment
    rows, cols, covered = alignment.rows, alignment.cols, alignment.covered
    pixel = max(math.hypot(m[i], m[i + 3]) for m in (ours, theirs) for i in (0, 1))
    for y, x in ((covered.y, covered.x), (covered.bottom, covered.right)):
        above = float((y + rows.truth) * rows.ratio - rows.prediction)
        left = float((x + cols.truth) * cols.ratio - cols.prediction)
        off = math.dist(_on_ground(theirs, y, x), _on_ground(ours, above, left))
        if off > pixel * (1 + 1e-6):
            raise InputError(
                f"the truth {t.path} lies elsewhere than {p.path}, by {off:.6g} of their CRS's units: "
                "give a truth on the grid of the image that was segmented"
            )
    return alignment


def _on_ground(transform: Transform, y: float, x: float) -> tuple[float, float]:
    a, b, c, d, e, f = transform
    return a * x + b * y + c, d * x + e * y + f


def _sizes(p: Side, t: Side) -> str:
    return (
        f"{p.path} is {p.size.height} × {p.size.width} px, "
        f"the truth {t.path} {t.size.height} × {t.size.width} px"
    )


def _scale_of_truth(p: Side, t: Side) -> tuple[float, float] | None:
    """Source pixels per pixel of the truth (y, x): what it says, else 1, or the mask's where pixel sizes say so.

    None where they say something else.
    """
    own = p.coding.scale if p.coding is not None else (1.0, 1.0)
    said = t.coding.scale if t.coding is not None else (1.0, 1.0)
    a, b = p.raster.pixel_size, t.raster.pixel_size
    if a is None or b is None or a[2] != b[2]:
        return said
    by_pixel_size = own[0] * b[0] / a[0], own[1] * b[1] / a[1]
    for scale in (said, own):
        if all(abs(s / found - 1) <= _SAME for s, found in zip(scale, by_pixel_size, strict=True)):
            return scale
    return None
