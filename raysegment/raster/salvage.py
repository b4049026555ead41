"""Read a window of a damaged image: what can be read, and which chunks cannot.

What is lost depends on the chunk alone, never on the window that asks, so that neighbours who both read a broken
chunk agree on every pixel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import singledispatch
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from raysegment.errors import ReadError
from raysegment.geometry import Size, Window

if TYPE_CHECKING:
    from raysegment.raster.protocol import Raster


@dataclass(frozen=True, slots=True)
class Failure:
    """A rectangle of an image that cannot be read."""

    window: Window
    """Whole chunks, cut off at the image's edge, in pixels of the level that was read."""
    reason: str


@singledispatch
def read_what_can_be(
    raster: Raster, window: Window, level: int = 0
) -> tuple[np.ndarray, np.ndarray | None, list[Failure]]:
    """Pixels and validity of `window` as :meth:`Raster.read` and :meth:`Raster.valid` give them, and what is lost.

    In a chunk that cannot be read pixels are the nodata value, or 0 where there is none, and not valid. The
    failures cover the whole of the broken chunks that the window touches, merged to few rectangles. (A view on
    another grid, whose chunks are not the stored ones, registers its own way.)
    """
    try:
        pixels = raster.read(window, level)
        return pixels, raster.valid(window, pixels, level), []
    except ReadError:
        return _by_chunks(raster, window, level)


def merged(failures: Iterable[Failure]) -> list[Failure]:
    """The same pixels in few rectangles that do not overlap, each with the reason of the first that reached it."""
    found = list(failures)
    if not found:
        return []
    ys = np.unique([edge for f in found for edge in (f.window.y, f.window.bottom)])
    xs = np.unique([edge for f in found for edge in (f.window.x, f.window.right)])
    first = np.full((len(ys) - 1, len(xs) - 1), -1)
    for number in reversed(range(len(found))):
        w = found[number].window
        rows, columns = np.searchsorted(ys, (w.y, w.bottom)), np.searchsorted(xs, (w.x, w.right))
        first[slice(*rows), slice(*columns)] = number
    return [
        Failure(
            Window.between(int(ys[top]), int(xs[left]), int(ys[bottom]), int(xs[right])),
            found[first[top, left]].reason,
        )
        for top, left, bottom, right in _rectangles(first >= 0)
    ]


def _by_chunks(
    raster: Raster, window: Window, level: int
) -> tuple[np.ndarray, np.ndarray | None, list[Failure]]:
    lost = raster.nodata if raster.nodata is not None else 0
    pixels = np.full((window.height, window.width, raster.shape[2]), lost, raster.dtype)
    valid = np.ones(window.size, bool)
    failures = []
    for chunk in _chunks(window, raster.chunks[level], raster.levels[level]):
        part = chunk.intersect(window)
        place = part.slices(window)
        try:
            there = raster.read(part, level)
            has = raster.valid(part, there, level)
        except ReadError as e:
            valid[place] = False
            cause = e.__cause__
            reason = str(e) if cause is None else f"{type(cause).__name__}: {cause}"
            failures.append(Failure(chunk, reason))
        else:
            pixels[place] = there
            if has is not None:
                valid[place] = has
    return pixels, None if valid.all() else valid, merged(failures)


def _chunks(window: Window, chunk: Size, size: Size) -> Iterator[Window]:
    """The chunks that the window touches, whole but for the image's edge."""
    for row in range(window.y // chunk.height, ceil(window.bottom / chunk.height)):
        for column in range(window.x // chunk.width, ceil(window.right / chunk.width)):
            top, left = row * chunk.height, column * chunk.width
            bottom, right = min(top + chunk.height, size.height), min(left + chunk.width, size.width)
            yield Window.between(top, left, bottom, right)


def _rectangles(marked: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Disjoint (top, left, bottom, right) that cover what is True: runs of a row, joined with like runs above."""
    done: list[tuple[int, int, int, int]] = []
    growing: dict[tuple[int, int], int] = {}
    for row, flags in enumerate(marked):
        edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
        runs = {(int(a), int(b)) for a, b in edges.reshape(-1, 2)}
        ended = [run for run in growing if run not in runs]
        done += [(growing.pop((left, right)), left, row, right) for left, right in ended]
        for run in runs:
            growing.setdefault(run, row)
    done += [(top, left, len(marked), right) for (left, right), top in growing.items()]
    return sorted(done)
