"""Sizes, windows and blocks: frozen values, always (y, x), always in pixels.

A window is half open: it holds the rows ``y … y + height - 1``. Windows may stick out of the image;
what lies outside is read by mirroring (:func:`reflect`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int

    @property
    def area(self) -> int:
        return self.height * self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A rectangle of pixels: top left corner and size."""

    y: int
    x: int
    height: int
    width: int

    @classmethod
    def between(cls, top: int, left: int, bottom: int, right: int) -> Window:
        """The window of rows ``top … bottom - 1`` and columns ``left … right - 1``; empty if none."""
        return cls(y=top, x=left, height=max(0, bottom - top), width=max(0, right - left))

    @property
    def bottom(self) -> int:
        return self.y + self.height

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def size(self) -> Size:
        return Size(self.height, self.width)

    @property
    def area(self) -> int:
        return self.height * self.width

    def intersect(self, other: Window) -> Window:
        """What both hold; of area 0 if they do not meet."""
        return Window.between(
            max(self.y, other.y),
            max(self.x, other.x),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )

    def holds(self, other: Window) -> bool:
        """Whether `other` lies wholly inside."""
        return (
            self.y <= other.y
            and self.x <= other.x
            and other.bottom <= self.bottom
            and other.right <= self.right
        )

    def slices(self, origin: Window | None = None) -> tuple[slice, slice]:
        """Row and column slices that cut this window out of an array that starts at `origin`'s corner."""
        y0, x0 = (origin.y, origin.x) if origin is not None else (0, 0)
        return slice(self.y - y0, self.bottom - y0), slice(self.x - x0, self.right - x0)

    def __str__(self) -> str:
        return f"y {self.y}–{self.bottom}, x {self.x}–{self.right}"


@dataclass(frozen=True, slots=True)
class Block:
    """One row of work: `n` × `n` cells, its place on the block grid."""

    row: int
    col: int


def reflect(indices: np.ndarray, length: int) -> np.ndarray:
    """Map any integer index onto ``0 … length - 1`` by mirroring at the edge pixels.

    The same as ``numpy.pad(mode="reflect")`` of the whole axis: period ``2 (length - 1)``, the edge
    pixel is not repeated; an axis of one pixel maps to 0.
    """
    import numpy as np

    if length == 1:
        return np.zeros_like(indices)
    period = 2 * (length - 1)
    folded = np.mod(indices, period)
    return np.minimum(folded, period - folded)


def mirror(window: Window, size: Size) -> tuple[Window, tuple[np.ndarray, ...] | None]:
    """How to read a window that may stick out of an image of `size`, by mirroring at the image's edge.

    Returns the hull of the pixels it is made of, and the index that makes the window from the hull's pixels
    (`hull_pixels[index]`); None where the window lies inside and the hull is the window itself.
    """
    import numpy as np

    ys = reflect(np.arange(window.y, window.bottom), size.height)
    xs = reflect(np.arange(window.x, window.right), size.width)
    hull = Window.between(int(ys.min()), int(xs.min()), int(ys.max()) + 1, int(xs.max()) + 1)
    return hull, None if hull == window else np.ix_(ys - hull.y, xs - hull.x)


def unfold(pixels: np.ndarray, index: tuple[np.ndarray, ...]) -> np.ndarray:
    """What ``pixels[index]`` gives for the index of :func:`mirror`, ten times as fast and more.

    The largest part that is not mirrored is copied as it lies; only the rest is looked up.
    """
    import numpy as np

    rows, cols = (part.reshape(-1) for part in index)
    top, bottom = _longest_stretch(rows)
    left, right = _longest_stretch(cols)
    out = np.empty((len(rows), len(cols), *pixels.shape[2:]), pixels.dtype)
    inner = pixels[rows[top] : rows[top] + bottom - top]
    for into, taken in (
        (out[top:bottom], inner),
        (out[:top], pixels[rows[:top]]),
        (out[bottom:], pixels[rows[bottom:]]),
    ):
        into[:, left:right] = taken[:, cols[left] : cols[left] + right - left]
        into[:, :left] = taken[:, cols[:left]]
        into[:, right:] = taken[:, cols[right:]]
    return out


def _longest_stretch(index: np.ndarray) -> tuple[int, int]:
    """Where the longest run of neighbours, upwards, begins and ends in an index."""
    import numpy as np

    edges = np.concatenate([[0], np.flatnonzero(np.diff(index) != 1) + 1, [len(index)]])
    longest = int(np.argmax(np.diff(edges)))
    return int(edges[longest]), int(edges[longest + 1])
