"""Rasters made in memory, and plans for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raysegment.geometry import Size, Window
from raysegment.inference.auto import Measured
from raysegment.inference.blend import FIXED_POINT_BITS
from raysegment.inference.block import read_block
from raysegment.inference.image import Image
from raysegment.inference.job import Job
from raysegment.inference.plan import ImagePlan, Plan
from raysegment.inference.resolve import new_plan
from raysegment.inference.scratch import Scratch
from raysegment.inference.segmenter import Segmenter
from raysegment.model.model import Model


class ArrayRaster:
    """An array (h, w, channels) behind the Raster protocol, with an optional mask of valid pixels."""

    path, format = "memory", "array"
    pixel_size = crs = transform = nodata = alpha = palette = None
    offset, other_images = (0.0, 0.0), ()

    def __init__(self, pixels: np.ndarray, valid: np.ndarray | None = None) -> None:
        self.pixels, self._valid = pixels, valid
        self.shape = pixels.shape
        self.dtype = pixels.dtype
        self.levels = (Size(*pixels.shape[:2]),)
        self.chunk = Size(*pixels.shape[:2])
        self.chunks = (self.chunk,)

    def read(self, window: Window, level: int = 0) -> np.ndarray:
        return self.pixels[window.slices()]

    def valid(self, window: Window, pixels: np.ndarray, level: int = 0) -> np.ndarray | None:
        return None if self._valid is None else self._valid[window.slices()]

    def stored(self, level: int = 0) -> None:
        return None

    def identity(self) -> str:
        return "array"

    def close(self) -> None:
        pass


def make_plan(model: Model, image: np.ndarray, **changes: Any) -> Plan:
    """A plan for one image in memory; tile 32, overlap 8, blocks of 3 cells unless said otherwise."""
    height, width, channels = image.shape
    region = changes.pop("region", Window(y=0, x=0, height=height, width=width))
    cells = changes.pop("cells_per_block", 3)
    values: dict[str, Any] = {
        "model": "made",
        "classes": model.spec.classes,
        "thresholds": model.spec.thresholds,
        "channels": model.spec.channels,
        "margin": model.spec.margin,
        "tile": 32,
        "overlap": 8,
        "blend": "hann",
        "planes": len(model.spec.classes),
        "precision": "fp32",
        "device": "cpu",
        "batch_size": 1,
        "threads": 1,
        "images": (
            ImagePlan(
                source="memory",
                identity="made",
                shape=(height, width, channels),
                channels=tuple(range(channels)),
                region=region,
                cells_per_block=cells,
                skip=changes.pop("skip", False),
                output="none",
            ),
        ),
    }
    return Plan(**{**values, **changes})


def summed(model: Model, plan: Plan, image: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Fixed-point sums (classes, h, w) int64 of the wanted region: every block's partial sums, added up."""
    grid, region = plan.grids[0], plan.images[0].region
    raster, segmenter = ArrayRaster(image, valid), Segmenter(model, plan)
    total = np.zeros((plan.sums, *region.size), np.int64)
    for _, block in plan.blocks:
        seen = read_block(raster, plan.images[0].channels, grid, block, plan.margin)
        for band, sums in segmenter.sums(grid, block, seen):
            rows, cols = band.slices(region)
            total[:, rows, cols] += sums.numpy()
    return total


def probabilities(sums: np.ndarray) -> np.ndarray:
    return sums / float(1 << FIXED_POINT_BITS)


def settle(
    job: Job, todo: Sequence[Image], scratch: Scratch, overwrite: bool
) -> tuple[Plan, Measured | None]:
    """The plan that `infer` would carry out in this scratch, and what was measured if it is new."""
    plan = job.resume(todo, scratch, overwrite)
    return (plan, None) if plan is not None else new_plan(job, todo, scratch)
