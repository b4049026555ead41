"""Which pixels of an image are worth the network: found once, on the whole image, before the first block.

find_foreground ─► Foreground ─► to_bytes ─► a small file in the scratch ─► from_bytes in every worker
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from raysegment import console
from raysegment.errors import InputError, UsageError
from raysegment.geometry import Size, Window, mirror
from raysegment.raster.glass import tissue_grid
from raysegment.raster.open import open_raster
from raysegment.raster.walk import windows
from raysegment.storage import Location, Url

if TYPE_CHECKING:
    from raysegment.raster import Raster, Transform

#: A mask of more pixels stays in its file; this many cells say where in it there is anything at all.
MOST_CELLS = 1 << 22
#: Pixels of a mask that are read at once.
_BAND_PIXELS = 1 << 22
#: The share of foreground is counted on a picture of at most this edge.
_SHARE_EDGE = 2048
#: How far the proportions, or the places, of mask and image may differ.
_TOLERANCE = 0.01
#: Indices on one axis, one or many (int64).
_Pixels = TypeVar("_Pixels", int, np.ndarray)


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A grid over the whole image; a pixel belongs to the cell that its centre falls into."""

    grid: np.ndarray
    """bool (rows, columns): False = nothing in the cell is foreground."""
    length: Size
    """The whole image, in pixels of the level, the picture or the mask that the grid was made from."""
    cell: Size
    """One cell, in the same pixels; the last of a row or a column may be cut off."""

    def any(self, window: Window, size: Size) -> bool:
        """Whether a pixel of `window`, of an image resampled to `size`, falls into a cell that is True."""
        top, bottom = self._cells(window.y, 0, size), self._cells(window.bottom - 1, 0, size)
        left, right = self._cells(window.x, 1, size), self._cells(window.right - 1, 1, size)
        return bool(self.grid[top : bottom + 1, left : right + 1].any())

    def pixels(self, window: Window, size: Size) -> np.ndarray:
        """bool (height, width) of a window of an image resampled to `size`."""
        rows = self._cells(np.arange(window.y, window.bottom), 0, size)
        columns = self._cells(np.arange(window.x, window.right), 1, size)
        seen: np.ndarray = self.grid[rows][:, columns]
        return seen

    def _cells(self, pixels: _Pixels, axis: int, size: Size) -> _Pixels:
        return _under(pixels, size[axis], self.length[axis]) // self.cell[axis]


@dataclass(frozen=True, eq=False)
class Foreground:
    """Which pixels of one image count. Windows are in the image's pixels as the network sees it, of `size`.

    A pixel counts when every layer says so and, where there is one, the mask under its centre.
    """

    size: Size
    layers: tuple[Layer, ...]
    share: float
    """How much of the image counts, 0 to 1."""
    identity: str = ""
    """Of the mask's file, where it is read."""
    mask: str | None = None
    """Absolute path of a mask too large to be kept as a layer; a layer then says where it holds anything."""

    def any(self, window: Window) -> bool:
        """False only where no pixel of `window` counts; it may stick out of the image, which is mirrored there."""
        if window.y < 0 or window.x < 0 or window.bottom > self.size.height or window.right > self.size.width:
            window, _ = mirror(window, self.size)
        return all(layer.any(window, self.size) for layer in self.layers)

    def pixels(self, window: Window) -> np.ndarray | None:
        """Which pixels count: bool (height, width), True = foreground; None = all of them.

        `window` lies inside the image. Raises ReadError when the mask's file cannot be read.
        """
        seen = np.ones(window.size, bool)
        for layer in self.layers:
            seen &= layer.pixels(window, self.size)
        if self.mask is not None and seen.any():
            seen &= self._mask_pixels(window)
        return None if seen.all() else seen

    @cached_property
    def digest(self) -> str:
        """Changes when another pixel of the image counts; the same wherever the mask's file lies."""
        digest = hashlib.sha256(self.identity.encode())
        for layer in self.layers:
            digest.update(repr((layer.grid.shape, *layer.length, *layer.cell)).encode())
            digest.update(np.packbits(layer.grid).tobytes())
        return digest.hexdigest()[:32]

    def to_bytes(self) -> bytes:
        """For a file beside the plan."""
        about = {
            "size": self.size,
            "share": self.share,
            "identity": self.identity,
            "mask": self.mask,
            "layers": [(layer.grid.shape, layer.length, layer.cell) for layer in self.layers],
        }
        arrays: dict[str, Any] = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
        arrays |= {f"layer{i}": np.packbits(layer.grid) for i, layer in enumerate(self.layers)}
        out = io.BytesIO()
        np.savez_compressed(out, **arrays)
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Foreground:
        """What :meth:`to_bytes` wrote."""
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            layers = []
            for i, (shape, length, cell) in enumerate(about["layers"]):
                flat = np.unpackbits(file[f"layer{i}"], count=shape[0] * shape[1]).view(bool)
                layers.append(Layer(flat.reshape(shape), Size(*length), Size(*cell)))
        return cls(Size(*about["size"]), tuple(layers), about["share"], about["identity"], about["mask"])

    @cached_property
    def _opened(self) -> Raster:
        assert self.mask is not None
        return open_raster(self.mask)

    def _mask_pixels(self, window: Window) -> np.ndarray:
        height, width, _ = self._opened.shape
        ys = _under(np.arange(window.y, window.bottom), self.size.height, height)
        xs = _under(np.arange(window.x, window.right), self.size.width, width)
        left, right = int(xs[0]), int(xs[-1]) + 1
        seen = np.empty(window.size, bool)
        rows = max(1, int(_BAND_PIXELS / (right - left) * self.size.height / max(height, self.size.height)))
        for start in range(0, window.height, rows):
            band = ys[start : start + rows]
            there = _marked(self._opened, Window.between(int(band[0]), left, int(band[-1]) + 1, right))
            seen[start : start + rows] = there[band - band[0]][:, xs - left]
        return seen


def find_foreground(
    raster: Raster, choice: Literal["all", "auto"] | Location, size: Size
) -> Foreground | None:
    """Which pixels of `raster`, read as an image of `size`, are worth the network; None = all of them.

    `raster` is the image as it was opened, whatever level or pixel size is then read: it is looked at as a whole.
    "auto" leaves out what the file does not store (see :meth:`Raster.stored`) and, on slides, bare glass (see
    :func:`raysegment.raster.glass.tissue_grid`). A path is a mask of the image at any resolution: where it is 0
    or has no data there is background. Raises InputError when the mask cannot be used, ReadError when it or the
    folders of a Zarr cannot be read.
    """
    if choice == "all":
        return None
    if isinstance(choice, (Path, Url)):
        return _by_mask(raster, choice, size)
    full, layers = Size(*raster.shape[:2]), []
    if (stored := raster.stored()) is not None:
        layers.append(Layer(stored.grid, full, stored.chunk))
    if (tissue := tissue_grid(raster)) is not None:
        layers.append(Layer(tissue, Size(*tissue.shape), Size(1, 1)))
    if not layers:
        return None
    found = Foreground(Size(*(min(n, _SHARE_EDGE) for n in size)), tuple(layers), 0.0)
    seen = found.pixels(Window(y=0, x=0, height=found.size.height, width=found.size.width))
    return replace(found, size=size, share=1.0 if seen is None else float(seen.mean()))


def _by_mask(raster: Raster, path: Location, size: Size) -> Foreground | None:
    try:
        mask = open_raster(path)
    except UsageError as e:  # what has to be mended is the mask, not --select
        raise InputError(f"--foreground {path} is not one plane: {e}") from e
    try:
        _check_fit(raster, mask)
        length = Size(*mask.shape[:2])
        factor = max(1, ceil((length.area / MOST_CELLS) ** 0.5))
        grid, marked = _pooled(mask, factor)
        if marked == length.area:
            return None
        layer = Layer(grid, length, Size(factor, factor))
        if factor == 1:
            return Foreground(size, (layer,), marked / length.area)
        return Foreground(size, (layer,), marked / length.area, mask.identity(), mask.path)
    finally:
        mask.close()


def _pooled(mask: Raster, factor: int) -> tuple[np.ndarray, int]:
    """Cells of `factor` × `factor` pixels in which the mask is set anywhere, and how many pixels are set."""
    height, width, _ = mask.shape
    grid, count = np.zeros((ceil(height / factor), ceil(width / factor)), bool), 0
    with console.progress("foreground", height * width / 1e6, "MP") as progress:
        for window in windows(Window(y=0, x=0, height=height, width=width), mask.chunk):
            marked = _marked(mask, window)
            count += int(np.count_nonzero(marked))
            rows = np.arange(window.y, window.bottom) // factor
            columns = np.arange(window.x, window.right) // factor
            starts = [np.flatnonzero(np.diff(cells, prepend=-1)) for cells in (rows, columns)]
            cells = np.logical_or.reduceat(
                np.logical_or.reduceat(marked, starts[0], axis=0), starts[1], axis=1
            )
            grid[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] |= cells
            progress.advance(window.area / 1e6)
    return grid, count


def _marked(mask: Raster, window: Window) -> np.ndarray:
    """Where the mask has data and some channel, other than opacity, is not 0."""
    pixels = mask.read(window)
    marked = np.zeros(window.size, bool)
    for channel in range(pixels.shape[2]):
        if channel != mask.alpha:
            marked |= pixels[:, :, channel] != 0
    valid = mask.valid(window, pixels)
    return marked if valid is None else marked & valid


def _check_fit(raster: Raster, mask: Raster) -> None:
    """Raise InputError unless image and mask have like proportions and, where both say it, lie in one place."""
    (height, width, _), (rows, columns, _) = raster.shape, mask.shape
    if abs(rows - columns * height / width) > max(1.0, _TOLERANCE * rows):
        raise InputError(
            f"--foreground {mask.path} ({rows} × {columns} px) has other proportions than {raster.path} "
            f"({height} × {width} px): give a mask of the whole image"
        )
    if raster.transform is None or mask.transform is None or raster.crs != mask.crs:
        return
    ours, theirs = _corners(raster.transform, raster.shape), _corners(mask.transform, mask.shape)
    off = np.abs(ours - theirs).max()
    if off > 2 * _TOLERANCE * np.abs(ours[1] - ours[0]).max():
        raise InputError(
            f"--foreground {mask.path} lies elsewhere than {raster.path}, by {off:g} of their CRS's units: "
            "give a mask of the whole image"
        )


def _corners(transform: Transform, shape: tuple[int, int, int]) -> np.ndarray:
    """(x, y) of the first and the last corner."""
    a, b, c, d, e, f = transform
    height, width, _ = shape
    return np.array([[c, f], [a * width + b * height + c, d * width + e * height + f]])


def _under(pixels: _Pixels, count: int, length: int) -> _Pixels:
    """Which of `length` pixels the centres of some of `count` pixels fall into, on one axis: exact in integers."""
    return (2 * pixels + 1) * length // (2 * count)
