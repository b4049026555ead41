"""Tiles, cells and blocks of one image: where each lies, what it owns, what it sees.

On one axis, with tile edge T, overlap O and stride S = T − O::

    cell k      [kS, (k+1)S)               the pixels tile k owns
    tile k      [kS − O/2, kS − O/2 + T)   what the network answers for: its cell and O/2 around
    block b     cells bn … (b+1)n − 1      what one worker does at once; it runs the tiles of its own cells only

A block's tiles reach O/2 beyond its cells, and its neighbours' tiles as far into it. So its pixels are the
core, where only its own tiles answer, and rims, whose sums are shared with the neighbours::

    ┌───────────────────────┐ extent    own ± O/2, cut to the wanted region
    │  ┌─────────────────┐  │ own       the block's cells
    │  │  ┌───────────┐  │  │
    │  │  │   core    │  │  │ core      own ∓ O/2, but up to the image's edge where there is no neighbour
    │  │  └───────────┘  │  │
    │  └─────────────────┘  │
    └───────────────────────┘

The grid is anchored to the image, never to the region: a region only says which tiles are needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil

from raysegment.geometry import Block, Size, Window

Span = tuple[int, int]
"""Half-open range of pixels or cells on one axis."""


@dataclass(frozen=True)
class Axis:
    """The grid along one axis of an image, and the part of it that is wanted."""

    length: int
    """Pixels of the image."""
    tile: int
    overlap: int
    cells_per_block: int
    wanted: Span
    """The region, in image pixels: (0, length) for the whole image."""

    @property
    def stride(self) -> int:
        return self.tile - self.overlap

    @property
    def cells(self) -> int:
        """Tile positions on the axis."""
        return ceil(self.length / self.stride)

    @property
    def blocks(self) -> int:
        return ceil(self.cells / self.cells_per_block)

    def tile_start(self, k: int) -> int:
        """First pixel of tile k; negative where it sticks out of the image."""
        return k * self.stride - self.overlap // 2

    @cached_property
    def needed(self) -> Span:
        """Tiles that reach into the wanted pixels."""
        start, stop = self.wanted
        first = (start + self.overlap // 2 - self.tile) // self.stride + 1
        last = ceil((stop + self.overlap // 2) / self.stride) - 1
        return max(0, first), min(self.cells, last + 1)

    def block_tiles(self, b: int) -> Span:
        """Needed tiles of block b; empty if none."""
        start = max(b * self.cells_per_block, self.needed[0])
        return start, max(start, min((b + 1) * self.cells_per_block, self.needed[1]))

    @property
    def needed_blocks(self) -> Span:
        """Blocks that run at least one tile."""
        return self.needed[0] // self.cells_per_block, ceil(self.needed[1] / self.cells_per_block)

    def own(self, b: int) -> Span:
        """Wanted pixels of block b's cells."""
        edge = self.cells_per_block * self.stride
        return self._cut((b * edge, (b + 1) * edge))

    def extent(self, b: int) -> Span:
        """Wanted pixels that block b's tiles reach."""
        edge, half = self.cells_per_block * self.stride, self.overlap // 2
        last = b == self.blocks - 1
        return self._cut((b * edge - half, self.length if last else (b + 1) * edge + half))

    def core(self, b: int) -> Span:
        """Wanted pixels that block b's tiles alone reach."""
        edge, half = self.cells_per_block * self.stride, self.overlap // 2
        start = 0 if b == 0 else b * edge + half
        return self._cut((start, self.length if b == self.blocks - 1 else (b + 1) * edge - half))

    def _cut(self, span: Span) -> Span:
        start = min(max(span[0], self.wanted[0]), self.wanted[1])
        return start, min(max(span[1], start), self.wanted[1])


@dataclass(frozen=True)
class Rims:
    """The four parts of a block's extent around its core; corners belong to top and bottom."""

    top: Window
    bottom: Window
    left: Window
    right: Window

    def items(self) -> Iterator[tuple[str, Window]]:
        """Name and window of each rim that holds a pixel."""
        for name in ("top", "bottom", "left", "right"):
            window: Window = getattr(self, name)
            if window.area:
                yield name, window


@dataclass(frozen=True)
class Grid:
    """Tiles and blocks of one image."""

    image: Size
    tile: int
    overlap: int
    cells_per_block: int
    region: Window
    """Wanted pixels of the image."""

    @cached_property
    def y(self) -> Axis:
        return Axis(
            self.image.height,
            self.tile,
            self.overlap,
            self.cells_per_block,
            (self.region.y, self.region.bottom),
        )

    @cached_property
    def x(self) -> Axis:
        return Axis(
            self.image.width,
            self.tile,
            self.overlap,
            self.cells_per_block,
            (self.region.x, self.region.right),
        )

    @property
    def block_edge(self) -> int:
        """Pixels of a whole block along one axis."""
        return self.cells_per_block * self.y.stride

    @property
    def tiles(self) -> int:
        """Forward passes that the wanted pixels need."""
        (y0, y1), (x0, x1) = self.y.needed, self.x.needed
        return (y1 - y0) * (x1 - x0)

    def blocks(self) -> list[Block]:
        """Blocks that run at least one tile, row by row."""
        return [Block(r, c) for r in range(*self.y.needed_blocks) for c in range(*self.x.needed_blocks)]

    def block_tiles(self, block: Block) -> tuple[range, range]:
        """Tile rows and tile columns that a block runs."""
        return range(*self.y.block_tiles(block.row)), range(*self.x.block_tiles(block.col))

    def tile_window(self, row: int, col: int) -> Window:
        """What the network answers for in tile (row, col); it may stick out of the image."""
        return Window(y=self.y.tile_start(row), x=self.x.tile_start(col), height=self.tile, width=self.tile)

    def own(self, block: Block) -> Window:
        return _window(self.y.own(block.row), self.x.own(block.col))

    def extent(self, block: Block) -> Window:
        return _window(self.y.extent(block.row), self.x.extent(block.col))

    def core(self, block: Block) -> Window:
        return _window(self.y.core(block.row), self.x.core(block.col))

    def rims(self, block: Block) -> Rims:
        extent, core = self.extent(block), self.core(block)
        return Rims(
            top=Window.between(extent.y, extent.x, core.y, extent.right),
            bottom=Window.between(core.bottom, extent.x, extent.bottom, extent.right),
            left=Window.between(core.y, extent.x, core.bottom, core.x),
            right=Window.between(core.y, core.right, core.bottom, extent.right),
        )

    def blocks_reaching(self, window: Window) -> list[Block]:
        """Blocks whose extent meets `window` (image pixels)."""
        edge, half = self.block_edge, self.overlap // 2

        def span(start: int, stop: int, axis: Axis) -> range:
            first, last = axis.needed_blocks
            return range(max(first, (start - half) // edge), min(last, ceil((stop + half) / edge)))

        rows, cols = span(window.y, window.bottom, self.y), span(window.x, window.right, self.x)
        return [b for b in (Block(r, c) for r in rows for c in cols) if self.extent(b).intersect(window).area]


def _window(rows: Span, cols: Span) -> Window:
    return Window.between(rows[0], cols[0], rows[1], cols[1])
