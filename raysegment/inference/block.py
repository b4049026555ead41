"""The pixels of one block: read once, mirrored at the image's edge, with what is known of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from raysegment.errors import WorkError
from raysegment.geometry import Block, Window, mirror, unfold
from raysegment.raster.salvage import Failure, read_what_can_be
from raysegment.raster.validity import unusable

if TYPE_CHECKING:
    from raysegment.inference.foreground import Foreground
    from raysegment.inference.grid import Grid
    from raysegment.raster import Raster

Spot = tuple[int, int]
"""Tile row and tile column."""


@dataclass(frozen=True)
class BlockPixels:
    """What the tiles of one block see, mirrored at the image's edge."""

    window: Window
    """Where they lie; it sticks out of the image where the tiles do."""
    pixels: np.ndarray
    """(h, w, channels) as stored, the network's channels only."""
    valid: np.ndarray | None
    """(h, w) bool, False = nodata; None = all valid."""
    failures: list[Failure] = field(default_factory=list)
    """What could not be read, in image pixels."""


def seen_by(grid: Grid, block: Block, margin: int) -> Window:
    """All that a block's tiles see; it sticks out of the image where they do."""
    rows, cols = grid.block_tiles(block)
    return Window.between(
        grid.y.tile_start(rows[0]) - margin,
        grid.x.tile_start(cols[0]) - margin,
        grid.y.tile_start(rows[-1]) + grid.tile + margin,
        grid.x.tile_start(cols[-1]) + grid.tile + margin,
    )


def read_block(
    raster: Raster,
    channels: tuple[int, ...],
    grid: Grid,
    block: Block,
    margin: int,
    *,
    salvage: bool = False,
) -> BlockPixels:
    """Read all pixels that a block's tiles see.

    With `salvage`, chunks that cannot be read are nodata, and named; otherwise ReadError is raised. Raises WorkError
    for inf, and what float32 cannot hold, in the pixels.
    """
    seen = seen_by(grid, block, margin)
    hull, index = mirror(seen, grid.image)
    failures: list[Failure] = []
    if salvage:
        stored, valid, failures = read_what_can_be(raster, hull)
    else:
        stored = raster.read(hull)
        valid = raster.valid(hull, stored)
    pixels = stored if channels == tuple(range(stored.shape[2])) else stored[:, :, channels]
    wrong = None
    if pixels.dtype.kind == "f":
        wrong = unusable(pixels if valid is None else pixels[valid])
    if wrong is not None:
        raise WorkError(
            f"{raster.path} holds {wrong} in block {block.row},{block.col} ({hull}): mend or mask those pixels"
        )
    if index is not None:
        pixels = unfold(pixels, index)
        valid = None if valid is None else unfold(valid, index)
    return BlockPixels(seen, np.ascontiguousarray(pixels), valid, failures)


def tiles_of(grid: Grid, block: Block) -> list[Spot]:
    """Every tile that a block runs, row by row."""
    rows, cols = grid.block_tiles(block)
    return [(row, col) for row in rows for col in cols]


def tiles_on(foreground: Foreground, grid: Grid, block: Block) -> list[Spot]:
    """Those that may hold a pixel that counts, told before a pixel is read."""
    return [spot for spot in tiles_of(grid, block) if foreground.any(grid.tile_window(*spot))]


def counted_pixels(
    seen: BlockPixels, foreground: Foreground | None, grid: Grid
) -> tuple[Window, np.ndarray | None]:
    """Which pixels of the image under the block's tiles get a class: valid ones that are foreground.

    Returns the part of the image and bool (h, w); None = all.
    """
    inside = seen.window.intersect(Window(y=0, x=0, height=grid.image.height, width=grid.image.width))
    counted = None if seen.valid is None else seen.valid[inside.slices(seen.window)]
    foreseen = foreground.pixels(inside) if foreground is not None else None
    if counted is None or foreseen is None:
        return inside, counted if foreseen is None else foreseen
    return inside, counted & foreseen


def with_any(spots: list[Spot], counted: np.ndarray, inside: Window, grid: Grid) -> list[Spot]:
    """The tiles under which at least one pixel is `counted` (bool, of the window `inside`)."""
    return [spot for spot in spots if counted[grid.tile_window(*spot).intersect(inside).slices(inside)].any()]
