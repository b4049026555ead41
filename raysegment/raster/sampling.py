"""An image read at another resolution: :func:`sampled` makes a Raster whose level 0 has any size.

The target grid covers exactly the ground of the image. A stored level is read, and its pixels averaged or
interpolated on read (resample.py); the value of a target pixel depends on its place alone, so blocks agree
whatever their borders. Which level and which size: resolution.py.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from raysegment.errors import ReadError
from raysegment.geometry import Size, Window
from raysegment.raster.resample import Taps, averaged, nearest, picked, taps
from raysegment.raster.salvage import Failure, merged, read_what_can_be
from raysegment.raster.stored import Stored
from raysegment.raster.window import check_window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from raysegment.raster.protocol import PixelSize, Raster, Transform

#: Stored pixels are read in bands of about as many pixels as the window has, and at least so many: what is held
#: must not grow with the factor of shrinking.
_LEAST_HELD_PIXELS = 1 << 20
#: Reads whose validity is remembered until it is asked for.
_REMEMBERED = 4


class Sampling(BaseModel):
    """At which resolution an image is read: as a grid of `size` made from the stored `level`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: int = Field(ge=0)
    """Stored level that is read."""
    size: Size
    """Of the grid, which covers exactly the whole image."""

    @field_validator("size")
    @classmethod
    def _has_pixels(cls, size: Size) -> Size:
        if min(size) < 1:
            raise ValueError(f"size {size.height} × {size.width} holds no pixel")
        return size


def sampled(raster: Raster, sampling: Sampling | None, *, labels: bool = False) -> Raster:
    """A view of `raster` on the grid of `sampling`; None: `raster` itself, and so for its own level 0.

    `labels`: the pixels are names, of which no mean is made: each is the one under the target pixel's centre.
    """
    if sampling is None or (sampling.level == 0 and sampling.size == raster.levels[0]):
        return raster
    return SampledRaster(raster, sampling, labels=labels)


class SampledRaster:
    """A Raster on another grid; see :class:`raysegment.raster.protocol.Raster`, and :func:`sampled`.

    Area means where the grid is coarser than the level read, bilinear where it is finer, the nearest pixel of
    labels and of a palette image; a grid of the level's own size gives its pixels untouched. Stored levels coarser
    than the grid follow as its further levels. As thread-safe as the raster beneath, which :meth:`close` closes.

    Raises ValueError for a level that the raster lacks.
    """

    def __init__(self, raster: Raster, sampling: Sampling, *, labels: bool = False) -> None:
        if sampling.level >= len(raster.levels):
            raise ValueError(f"{raster.path} has {len(raster.levels)} levels, none numbered {sampling.level}")
        self.raster, self.sampling, self.labels = raster, sampling, labels
        self._picks = labels or raster.palette is not None
        self._size, self._stored_size = sampling.size, raster.levels[sampling.level]
        further = [
            n
            for n, s in enumerate(raster.levels)
            if s.height < self._size.height and s.width < self._size.width
        ]
        #: The stored level that each level of this one is; None where its pixels are made.
        self.same = (sampling.level if self._size == self._stored_size else None, *further)
        self._known: dict[Window, np.ndarray | None] = {}
        self._lock = threading.Lock()

        full = raster.levels[0]
        self.path, self.select, self.format = raster.path, raster.select, raster.format
        self.dtype, self.nodata, self.alpha = raster.dtype, raster.nodata, raster.alpha
        self.palette, self.crs, self.other_images = raster.palette, raster.crs, raster.other_images
        self.shape = (*self._size, raster.shape[2])
        self.levels = (self._size, *(raster.levels[n] for n in further))
        self.chunk = self._on_grid(raster.chunks[sampling.level])
        self.chunks = (self.chunk, *(raster.chunks[n] for n in further))
        self.pixel_size = _pixel_size(raster.pixel_size, full, self._size)
        self.transform = _transform(raster.transform, full, self._size)
        self.offset = _offset(raster.offset, full, self._size)

    def read(self, window: Window, level: int = 0) -> np.ndarray:
        """Pixels on the grid (height, width, channels), in the stored dtype. Raises ReadError.

        Without data: the nodata value, NaN in a float image that has none, else 0.
        """
        check_window(window, self.levels[level], self.path)
        same = self.same[level]
        if same is not None:
            return self.raster.read(window, same)
        pixels, valid = self.made(window)
        with self._lock:
            self._known.pop(window, None)
            self._known[window] = valid
            if len(self._known) > _REMEMBERED:
                del self._known[next(iter(self._known))]
        return pixels

    def valid(self, window: Window, pixels: np.ndarray, level: int = 0) -> np.ndarray | None:
        """Where at least half of what a pixel is made of has data. True = data; None = everywhere.

        Known from the last reads: pixels alone do not tell (a mean may hit the nodata value). Another
        window is read again.
        """
        same = self.same[level]
        if same is not None:
            return self.raster.valid(window, pixels, same)
        with self._lock:
            if window in self._known:
                return self._known[window]
        return self.made(window)[1]

    def stored(self, level: int = 0) -> Stored | None:
        """Which chunks are made of anything that is in the file; None = every one."""
        same = self.same[level]
        if same is not None:
            return self.raster.stored(same)
        there = self.raster.stored(self.sampling.level)
        if there is None:
            return None
        cell = self._on_grid(there.chunk)
        rows, cols = (
            _touched(cell[axis], self._size[axis], self._stored_size[axis], there.chunk[axis])
            for axis in (0, 1)
        )
        some = np.stack([there.grid[first:last].any(axis=0) for first, last in rows])
        grid = np.stack([some[:, first:last].any(axis=1) for first, last in cols], axis=1)
        return Stored.unless_whole(cell, grid)

    def identity(self) -> str:
        """That of the raster beneath: of its content, at any resolution."""
        return self.raster.identity()

    def close(self) -> None:
        """Close the raster beneath."""
        self._known.clear()
        self.raster.close()

    def __reduce__(self) -> tuple[Callable[..., Raster], tuple[Raster, Sampling]]:
        return partial(SampledRaster, labels=self.labels), (self.raster, self.sampling)

    def made(self, window: Window, lost: list[Failure] | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Pixels of the window and where they have data, for :meth:`read` and :func:`read_what_can_be`.

        With `lost`, stored chunks that cannot be read have no data, and are added to it. Otherwise raises
        ReadError.
        """
        kind = nearest if self._picks else taps
        rows = kind(window.y, window.bottom, self._size.height, self._stored_size.height)
        cols = kind(window.x, window.right, self._size.width, self._stored_size.width)
        out = np.empty((*window.size, self.shape[2]), self.dtype)
        seen = np.ones(window.size, bool)
        held = max(_LEAST_HELD_PIXELS, window.area)
        for done, ready, pixels, valid, top in self._stored_bands(rows, cols, held, lost):
            part = rows.part(done, ready, origin=top), cols.part(0, len(cols), origin=cols.start)
            if self._picks:
                made, has = picked(pixels, valid, *part)
            else:
                made, has = averaged(pixels, valid, *part, fill=self._fill, alpha=self.alpha)
            out[done:ready] = made
            if has is not None:
                seen[done:ready] = has
            del pixels, valid  # before the next are read
        return out, None if seen.all() else seen

    def _on_grid(self, chunk: Size) -> Size:
        """About the size of a stored chunk, in pixels of the grid: at least 1."""
        stored, size = self._stored_size, self._size
        return Size(*(max(1, round(min(chunk[a], stored[a]) * size[a] / stored[a])) for a in (0, 1)))

    @property
    def _fill(self) -> float:
        if self.nodata is not None:
            return self.nodata
        return float("nan") if self.dtype.kind == "f" else 0

    def _stored_bands(
        self, rows: Taps, cols: Taps, held: int, lost: list[Failure] | None
    ) -> Iterator[tuple[int, int, np.ndarray, np.ndarray | None, int]]:
        """Read what `rows` × `cols` are made of, from top to bottom: no pixel twice, about `held` at once.

        Bands end where chunks do, so that none is decoded twice, unless one row of chunks is more than four times
        `held`. Yields the first and past the last target row that a band completes, stored pixels that these are
        made of, their validity, and the stored row at which they start.
        """
        level = self.sampling.level
        chunk = self.raster.chunks[level].height
        width = cols.stop - cols.start
        step = max(1, min(max(1, held // (width * chunk)) * chunk, 4 * held // width))
        last = rows.index[:, -1]
        done, top, kept = 0, rows.start, None
        read = top
        while done < len(rows):
            bottom = min((read // step + 1) * step, rows.stop)
            band = Window.between(top, cols.start, bottom, cols.stop)
            if lost is None:
                pixels = self.raster.read(Window.between(read, cols.start, bottom, cols.stop), level)
                pixels = pixels if kept is None else np.concatenate([kept, pixels])
                valid = self.raster.valid(band, pixels, level)
            else:
                pixels, valid, failures = read_what_can_be(self.raster, band, level)
                lost += failures
            read = bottom
            ready = int(np.searchsorted(last, bottom))
            if ready > done:
                yield done, ready, pixels, valid, top
                done = ready
            if done < len(rows):
                first = min(int(rows.index[done, 0]), bottom)
                kept, top = pixels[first - top :].copy(), first
            del pixels, valid


@read_what_can_be.register(SampledRaster)
def _of_sampled(
    raster: SampledRaster, window: Window, level: int = 0
) -> tuple[np.ndarray, np.ndarray | None, list[Failure]]:
    """Lost are the stored chunks, not those of the grid: a pixel is what is left of it, whatever window asks."""
    try:
        pixels = raster.read(window, level)
        return pixels, raster.valid(window, pixels, level), []
    except ReadError:
        number = raster.same[level]
    lost: list[Failure] = []
    if number is None:
        pixels, valid = raster.made(window, lost)
    else:
        pixels, valid, lost = read_what_can_be(raster.raster, window, number)
    stored, size = (
        raster.raster.levels[raster.sampling.level if number is None else number],
        raster.levels[level],
    )
    return pixels, valid, merged(Failure(rescaled(f.window, stored, size), f.reason) for f in lost)


def rescaled(window: Window, of: Size, to: Size) -> Window:
    """Pixels of a grid of size `of` as pixels of one of size `to` over the same ground: all that it touches.

    Snapped outward, in whole numbers, and cut at the image's edge.
    """
    return Window.between(
        window.y * to.height // of.height,
        window.x * to.width // of.width,
        -(-window.bottom * to.height // of.height),
        -(-window.right * to.width // of.width),
    ).intersect(Window(y=0, x=0, height=to.height, width=to.width))


def _touched(cell: int, length: int, stored: int, chunk: int) -> list[tuple[int, int]]:
    """First and past the last stored chunk that each cell of an axis of `length` pixels is made of."""
    found = []
    for start in range(0, length, cell):
        last = min(start + cell, length) - 1
        first, stop = taps(start, start + 1, length, stored).start, taps(last, last + 1, length, stored).stop
        found.append((first // chunk, -(-stop // chunk)))
    return found


def _pixel_size(pixel_size: PixelSize | None, full: Size, size: Size) -> PixelSize | None:
    if pixel_size is None:
        return None
    y, x, unit = pixel_size
    return (y * full.height / size.height, x * full.width / size.width, unit)


def _transform(transform: Transform | None, full: Size, size: Size) -> Transform | None:
    """The same ground in fewer or more pixels: the corner stays, the steps grow."""
    if transform is None:
        return None
    a, b, c, d, e, f = transform
    y, x = full.height / size.height, full.width / size.width
    return (a * x, b * y, c, d * x, e * y, f)


def _offset(offset: tuple[float, float], full: Size, size: Size) -> tuple[float, float]:
    """The same corner; it lies half a pixel before the first pixel's centre."""
    y, x = ((o - 0.5) * n / whole + 0.5 for o, n, whole in zip(offset, size, full, strict=True))
    return y, x
