"""The plan: everything that decides the mask, resolved once, written down, obeyed by every worker and every resume."""

from __future__ import annotations

from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from raysegment.errors import InputError, UsageError
from raysegment.geometry import Block, Size, Window, reflect
from raysegment.inference.blend import Blend
from raysegment.inference.grid import Axis, Grid
from raysegment.model.spec import Class, ModelSpec

if TYPE_CHECKING:
    from raysegment.raster import Raster

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["cpu", "cuda"]

#: Bounds of an automatic block edge. It depends on the image alone: the mask's files must not depend on the workers.
BLOCK_EDGES = (1024, 2048)
#: What a worker needs before its first block: Python, Ray, torch and their libraries (measured, PSS).
WORKER_BASE_BYTES = 450 << 20
#: Blocks that one worker holds at once. Beside a GPU, one computes while the next is read and the last is written;
#: a CPU worker has one core, and reading would only take turns with the network, in twice the memory.
BLOCKS_IN_HAND = {"cpu": 1, "cuda": 2}


class Request(BaseModel):
    """What the caller asked for. None and "auto" leave the choice to the plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tile: int | None = Field(default=None, ge=1)
    overlap: int | None = Field(default=None, ge=0)
    blend: Blend = "hann"
    region: Window | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    block: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"


class ImagePlan(BaseModel):
    """One image: where it is, what it is, which part is wanted, where its mask goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    select: dict[str, int] | None = None
    identity: str
    shape: tuple[int, int, int]
    channels: tuple[int, ...]
    """Stored channels that the network sees, in its order."""
    region: Window
    output: str

    @property
    def size(self) -> Size:
        return Size(*self.shape[:2])


class Plan(BaseModel):
    """Everything that decides the mask. Frozen: workers and resumes obey it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    model: str
    """Digest of weights, network and spec."""
    classes: tuple[Class, ...]
    thresholds: tuple[float, ...] | None
    channels: int
    margin: int
    tile: int
    overlap: int
    blend: Blend
    cells_per_block: int
    precision: Precision
    device: Device
    batch_size: int
    threads: int
    images: tuple[ImagePlan, ...]

    @property
    def stride(self) -> int:
        return self.tile - self.overlap

    @property
    def block_edge(self) -> int:
        """Edge in pixels of a block, and of a shard of the mask."""
        return self.cells_per_block * self.stride

    @property
    def label_dtype(self) -> np.dtype:
        """Of the mask: class index, the largest value being nodata."""
        return np.dtype(np.uint8 if len(self.classes) <= 254 else np.uint16)

    @property
    def nodata(self) -> int:
        return int(np.iinfo(self.label_dtype).max)

    @cached_property
    def grids(self) -> tuple[Grid, ...]:
        """The grid of each image."""
        return tuple(
            Grid(image.size, self.tile, self.overlap, self.cells_per_block, image.region)
            for image in self.images
        )

    @cached_property
    def blocks(self) -> list[tuple[int, Block]]:
        """Every (image, block) of the plan."""
        return [(i, block) for i, grid in enumerate(self.grids) for block in grid.blocks()]

    @property
    def tiles(self) -> int:
        """Forward passes."""
        return sum(grid.tiles for grid in self.grids)

    @property
    def forward_pixels(self) -> int:
        """Pixels that the network answers for."""
        return self.tiles * self.tile**2

    @property
    def scratch_bytes(self) -> int:
        """Upper bound of the scratch records: rims as int32 per class, labels uncompressed."""
        total = 0
        for i, block in self.blocks:
            grid = self.grids[i]
            rims = sum(window.area for _, window in grid.rims(block).items())
            total += rims * len(self.classes) * 4 + grid.own(block).area * self.label_dtype.itemsize
        return total

    def worker_bytes(self, itemsize: int) -> int:
        """Memory of one worker: of block, tile and class count alone, never of the image."""
        edge, in_hand = self.block_edge + self.overlap + 2 * self.margin, BLOCKS_IN_HAND[self.device]
        pixels = edge**2 * self.channels * itemsize * in_hand
        sums = self.tile * edge * len(self.classes) * 4
        rims = 4 * self.overlap * edge * len(self.classes) * 4 * in_hand
        labels = self.block_edge**2 * self.label_dtype.itemsize * in_hand
        return WORKER_BASE_BYTES + pixels + sums + rims + labels

    def recipe(self, image: ImagePlan) -> dict[str, Any]:
        """What decides the values of an image's mask; block, batch and threads do not."""
        return {
            "source": image.identity,
            "model": self.model,
            "tile": self.tile,
            "overlap": self.overlap,
            "blend": self.blend,
            "precision": self.precision,
            "region": [image.region.y, image.region.x, image.region.height, image.region.width],
        }


def choose_tile(request: Request, spec: ModelSpec) -> tuple[int, int]:
    """Tile and overlap that the network allows. Raises UsageError naming the two nearest valid values.

    The network's input edge, tile + 2·margin, and the stride must be multiples of `spec.multiple`; the overlap even.
    """
    tile = request.tile if request.tile is not None else spec.tile
    m, margin = spec.multiple, spec.margin
    below = (tile + 2 * margin) // m * m - 2 * margin
    if below != tile:
        valid = [v for v in (below, below + m) if v > 0]
        raise UsageError(f"--tile {tile} does not fit the model: the nearest that do are {_either(valid)}")

    def allowed(overlap: int) -> bool:
        return 0 <= overlap < tile and overlap % 2 == 0 and (tile - overlap) % m == 0

    def nearest(overlap: int) -> list[int]:
        down = next((v for v in range(min(overlap, tile - 1), -1, -1) if allowed(v)), None)
        up = next((v for v in range(max(overlap, 0), tile) if allowed(v)), None)
        return [v for v in (down, up) if v is not None]

    if request.overlap is not None:
        if allowed(request.overlap):
            return tile, request.overlap
        valid = nearest(request.overlap)
        if request.overlap >= tile:
            raise UsageError(
                f"--overlap {request.overlap} is not smaller than --tile {tile}: the largest valid is {valid[-1]}"
                if valid
                else f"--overlap {request.overlap} is not smaller than --tile {tile}, and no overlap fits that tile"
            )
        hint = f"the nearest that do are {_either(valid)}" if valid else f"none does at --tile {tile}"
        raise UsageError(f"--overlap {request.overlap} does not fit tile {tile} and the model: {hint}")
    choices = nearest(tile // 8)
    if not choices:
        raise UsageError(
            f"--tile {tile} allows no overlap: the stride must be a multiple of {m} and the overlap even"
        )
    return tile, min(choices, key=lambda v: abs(v - tile / 8))


def choose_cells(request: Request, region: Window, tile: int, overlap: int) -> int:
    """Cells per block and axis: ``--block`` rounded up to whole cells, or by the size of the region."""
    stride = tile - overlap
    least = -(-overlap // stride) + 1
    if request.block != "auto":
        return max(least, -(-request.block // stride))
    low, high = BLOCK_EDGES
    wanted = min(max(region.area**0.5 / 4, low), high)
    return max(least, round(wanted / stride))


def choose_region(request: Request, raster: Raster) -> Window:
    """The wanted pixels. Raises UsageError when they do not lie in the image."""
    height, width, _ = raster.shape
    whole = Window(y=0, x=0, height=height, width=width)
    if request.region is None:
        return whole
    if request.region.height < 1 or request.region.width < 1 or not whole.holds(request.region):
        raise UsageError(
            f"--region {request.region} does not lie in {raster.path}, which is {height} high and {width} wide"
        )
    return request.region


def choose_channels(raster: Raster, spec: ModelSpec) -> tuple[int, ...]:
    """Stored channels that the network sees: all, or all but the opacity. Raises InputError."""
    stored = list(range(raster.shape[2]))
    if len(stored) != spec.channels and raster.alpha is not None:
        stored.remove(raster.alpha)
    if len(stored) != spec.channels:
        raise InputError(
            f"{raster.path} has {len(stored)} channels, the model takes {spec.channels}: "
            "give a model that was trained on such images"
        )
    return tuple(stored)


def read_bytes(plan: Plan, index: int, raster: Raster) -> int:
    """Bytes that are decoded for an image: every chunk that a block touches, each time it is touched."""
    grid = plan.grids[index]

    def pixels(axis: Axis, chunk: int) -> int:
        total = 0
        for b in range(*axis.needed_blocks):
            first, last = axis.block_tiles(b)
            start = axis.tile_start(first) - plan.margin
            stop = axis.tile_start(last - 1) + plan.tile + plan.margin
            seen = reflect(np.arange(start, stop), axis.length)
            low, high = int(seen.min()) // chunk * chunk, -(-(int(seen.max()) + 1) // chunk) * chunk
            total += min(high, axis.length) - low
        return total

    per_pixel = raster.shape[2] * raster.dtype.itemsize
    return prod((pixels(grid.y, raster.chunk.height), pixels(grid.x, raster.chunk.width), per_pixel))


def _either(values: list[int]) -> str:
    return " and ".join(map(str, sorted(set(values))))
