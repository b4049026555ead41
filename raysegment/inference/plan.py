"""The plan: everything that decides the mask, resolved once, written down, obeyed by every worker and every resume."""

from __future__ import annotations

import hashlib
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from raysegment.geometry import Block, Size, Window, reflect
from raysegment.inference.blend import Blend
from raysegment.inference.grid import Axis, Grid
from raysegment.inference.request import Augmentation, OnError
from raysegment.model.spec import Class
from raysegment.raster.sampling import Sampling
from raysegment.raster.segment_cache import DECODED
from raysegment.runtime.device import Device
from raysegment.storage import is_url
from raysegment.storage.url_file import AHEAD_BYTES

if TYPE_CHECKING:
    from raysegment.raster import Raster

Precision = Literal["fp32", "bf16", "fp16"]

#: What a worker holds before its first block: Python, Ray, torch and their libraries (measured, resident).
WORKER_BASE_BYTES = 415 << 20
#: How often a worker holds the weights while it loads them: as they come, as a module, folded and packed.
_WEIGHTS_HELD = 3
#: What a process grows to that keeps what the layers give back, in what they need at one time (measured): freed pieces
#: do not always fit the next layer.
_KEPT = 3
#: Blocks that one worker holds at once. Beside a GPU, one computes while the next is read and the last is written;
#: a CPU worker has one core, and reading would only take turns with the network, in twice the memory.
BLOCKS_IN_HAND = {"cpu": 1, "cuda": 3}
#: Forward passes of one tile.
VIEWS: dict[Augmentation, int] = {"none": 1, "flip": 4, "d4": 8}


class ImagePlan(BaseModel):
    """One image: where it is, what it is, how it is read, which part is wanted, where its mask goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    select: dict[str, int] | None = None
    identity: str
    sampling: Sampling | None = None
    """The resolution it is read at; None: as stored."""
    copy_name: str | None = None
    """The copy in the scratch that its pixels are read from, where its own layout makes windows dear."""
    shape: tuple[int, int, int]
    """(height, width, stored channels) at that resolution: all pixels of the plan are pixels of this grid."""
    channels: tuple[int, ...]
    """Stored channels that the network sees, in its order."""
    region: Window
    cells_per_block: int
    nodata: float | None = None
    """The model's: what means no data where the source has no such value of its own."""
    skip: bool = False
    """Whether tiles without a foreground pixel are left out."""
    foreground: str | None = None
    """Digest of the foreground that lies in the scratch; None: every valid pixel counts."""
    output: str

    @property
    def size(self) -> Size:
        return Size(*self.shape[:2])

    @cached_property
    def key(self) -> str:
        """Its name in the scratch: of what it is and where its mask goes, whatever else the plan holds."""
        # a path need not be valid Unicode
        name = f"{self.identity} {self.output}".encode(errors="surrogatepass")
        return hashlib.sha256(name).hexdigest()[:16]


class Plan(BaseModel):
    """Everything that decides the mask. Frozen: workers and resumes obey it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[6] = 6
    model: str
    """Digest of weights, network and spec."""
    classes: tuple[Class, ...]
    thresholds: tuple[float, ...] | None
    channels: int
    margin: int
    tile: int
    overlap: int
    blend: Blend
    planes: int
    """Probabilities that are summed per pixel: one per class; 1 where the second of two is what is left."""
    tta: Augmentation = "none"
    probabilities: bool = False
    uncertainty: bool = False
    on_error: OnError = "fail"
    precision: Precision
    device: Device
    batch_size: int
    compiled: bool = False
    """Whether the network runs through torch.compile, which moves its answer by rounding."""
    threads: int
    frugal: bool = False
    """Whether workers give memory back between the layers of the network: smaller and slower."""
    activations: int = 0
    """Bytes that one forward pass of a batch takes at one time, as measured."""
    weights: int = 0
    """Bytes of the network's parameters."""
    images: tuple[ImagePlan, ...]

    @property
    def stride(self) -> int:
        return self.tile - self.overlap

    @property
    def sums(self) -> int:
        """Planes of fixed-point sums: the probabilities', and one of their mean square where uncertainty is wanted."""
        return self.planes + self.uncertainty

    def block_edge(self, index: int) -> int:
        """Edge in pixels of a block of image `index`, and of a shard of its mask."""
        return self.images[index].cells_per_block * self.stride

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
            Grid(image.size, self.tile, self.overlap, image.cells_per_block, image.region)
            for image in self.images
        )

    @cached_property
    def blocks(self) -> list[tuple[int, Block]]:
        """Every (image, block) of the plan."""
        return [(i, block) for i, grid in enumerate(self.grids) for block in grid.blocks()]

    @property
    def tiles(self) -> int:
        """Tiles of all images, those that may be skipped included."""
        return sum(grid.tiles for grid in self.grids)

    def scratch_bytes(self, index: int) -> int:
        """Upper bound of an image's scratch records: rims as int32 per plane, the rest uncompressed."""
        total, grid = 0, self.grids[index]
        per_pixel = self.label_dtype.itemsize + self.probabilities * len(self.classes) + self.uncertainty
        for block in grid.blocks():
            rims = sum(window.area for _, window in grid.rims(block).items())
            total += rims * self.sums * 4 + grid.own(block).area * per_pixel
        return total

    def output_bytes(self, index: int) -> int:
        """Upper bound of an image's mask, all levels, and what is written beside it, uncompressed."""
        per_pixel = (
            self.label_dtype.itemsize * 4 / 3 + self.probabilities * len(self.classes) + self.uncertainty
        )
        return int(self.images[index].region.area * per_pixel)

    def worker_bytes(self, itemsize: int) -> int:
        """Memory of one worker, not its GPU's: of network, block, tile and class count alone, never of the image.

        `itemsize`: bytes of a stored sample.
        """
        network = self.weights if self.device == "cuda" else _WEIGHTS_HELD * self.weights
        if self.device == "cpu":
            network += self.activations * (1 if self.frugal else _KEPT)
        edge = max(map(self.block_edge, range(len(self.images))))
        seen, in_hand = edge + self.overlap + 2 * self.margin, BLOCKS_IN_HAND[self.device]
        pixels = seen**2 * max(image.shape[2] for image in self.images) * itemsize * in_hand * 2
        sums = self.tile * seen * self.sums * 4 * 2
        rims = 4 * self.overlap * seen * self.sums * 4 * in_hand * 2
        per_pixel = self.label_dtype.itemsize + self.probabilities * len(self.classes) + self.uncertainty + 2
        labels = edge**2 * per_pixel * in_hand
        brought = 2 * AHEAD_BYTES * in_hand if any(is_url(image.source) for image in self.images) else 0
        return WORKER_BASE_BYTES + DECODED.most_bytes + network + pixels + sums + rims + labels + brought

    def recipe(self, image: ImagePlan) -> dict[str, Any]:
        """What decides the values of an image's mask; block, batch and threads do not."""
        return {
            "source": image.identity,
            "model": self.model,
            "tile": self.tile,
            "overlap": self.overlap,
            "blend": self.blend,
            "precision": self.precision,
            "tta": self.tta,
            "resolution": [image.sampling.level if image.sampling else 0, *image.size],
            "channels": list(image.channels),
            "foreground": image.foreground,
            "region": [image.region.y, image.region.x, image.region.height, image.region.width],
        }


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
