"""The plan proven before it is carried out: a constant and a ramp must come back from its tiles, blocks and store.

All inner blocks of a grid are the same but for their place, so the first three and the last two rows and columns of
them show every case there is: corners, edges, and blocks with neighbours all around.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from raysegment import console
from raysegment.console import counted
from raysegment.errors import WorkError
from raysegment.geometry import Block, Size, Window
from raysegment.inference.assembly import Assembly, Shard
from raysegment.inference.block import read_block
from raysegment.inference.outcome import ONE
from raysegment.inference.scratch import Scratch
from raysegment.inference.segmenter import Segmenter
from raysegment.inference.stitch import stitch
from raysegment.mask.outputs import Outputs
from raysegment.model.model import Model
from raysegment.model.spec import ModelSpec, default_classes
from raysegment.runtime.device import borrowed, is_here, on_gpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from raysegment.inference.plan import Plan

CONSTANT = 0.7
#: How far the stitched answer may be from the constant, and from the ramp.
TOLERANCE = {"constant": 1e-6, "ramp": 1e-5}
_FIRST, _LAST = 3, 2


class _Echo(nn.Module):
    """Answers with its input, as the probability of the second of two classes."""

    def __init__(self, margin: int) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        m = self.margin
        return x[:, :1, m : x.shape[2] - m, m : x.shape[3] - m]


class _Field:
    """An image that is a formula: float32 (h, w, 1), never held as a whole."""

    path, format = "self-check", "formula"
    select: dict[str, int] = {}  # noqa: RUF012
    pixel_size = crs = transform = nodata = alpha = palette = None
    dtype = np.dtype(np.float32)

    def __init__(self, size: Size, value: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        self.shape, self.levels, self.chunk, self.value = (*size, 1), (size,), size, value
        self.chunks = (size,)

    def read(self, window: Window, level: int = 0) -> np.ndarray:
        ys = np.arange(window.y, window.bottom, dtype=np.float64)[:, None]
        xs = np.arange(window.x, window.right, dtype=np.float64)[None, :]
        return np.broadcast_to(self.value(ys, xs), window.size).astype(np.float32)[..., None]

    def valid(self, window: Window, pixels: np.ndarray, level: int = 0) -> np.ndarray | None:
        return None

    def stored(self, level: int = 0) -> None:
        return None

    def identity(self) -> str:
        return "formula"

    def close(self) -> None:
        """Nothing is open."""


def self_check(plan: Plan) -> None:
    """Raise WorkError when a constant or a ramp does not come back from the plan as it went in, on its device."""
    if not is_here(plan.device):
        for finding in on_gpu(_all_findings, plan):
            console.say(f"self-check: {finding}")
        return
    with borrowed(plan.device):
        for finding in _findings(plan):
            console.say(f"self-check: {finding}")


def _all_findings(plan: Plan) -> list[str]:
    return list(_findings(plan))


def _findings(plan: Plan) -> Iterator[str]:
    """How exactly each field of each image comes back."""
    for index, image in enumerate(plan.images):
        height, width = image.size
        fields: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
            "constant": lambda ys, xs: np.float64(CONSTANT) + 0 * ys * xs,
            "ramp": lambda ys, xs, n=height + width: (ys + xs) / n,  # type: ignore[misc]
        }
        for name, value in fields.items():
            worst, blocks = _largest_error(plan, index, _Field(image.size, value))
            if worst > TOLERANCE[name]:
                raise WorkError(
                    f"self-check: a {name} comes back {worst:.2g} off from {image.source}'s plan: do not trust its mask"
                )
            yield f"a {name} comes back to {worst:.1g} ({counted(blocks, 'block')}, every kind)"


def _largest_error(plan: Plan, index: int, field: _Field) -> tuple[float, int]:
    """Largest error of a probability, stitched labels included, and how many blocks were run for it."""
    spec = ModelSpec(
        classes=default_classes(2),
        channels=1,
        activation="none",
        margin=plan.margin,
        multiple=1,
        tile=plan.tile,
    )
    image = plan.images[index].model_copy(update={"channels": (0,), "shape": (*plan.images[index].size, 1)})
    trial = plan.model_copy(
        update={
            "classes": spec.classes,
            "thresholds": None,
            "channels": 1,
            "planes": 1,
            "precision": "fp32",
            "probabilities": False,
            "uncertainty": False,
            "images": (image,),
        }
    )
    grid = trial.grids[0]
    segmenter = Segmenter(Model(_Echo(plan.margin), spec), trial)
    rows, cols = grid.y.needed_blocks, grid.x.needed_blocks
    blocks = [Block(r, c) for r in _some(*rows) for c in _some(*cols)]
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        scratch = Scratch(Path(folder) / "scratch")
        outputs = Outputs.at(
            Path(folder) / "mask.zarr",
            Size(*image.region.size),
            trial.label_dtype,
            2,
            trial.block_edge(0),
            (),
        )
        outputs.create()
        assembly = Assembly(trial, 0, outputs.mask)
        for block in blocks:
            scratch.save_record(image.key, block, segmenter.segment(field, 0, block).record)  # type: ignore[arg-type]
            for shard in assembly.done(block):
                worst = max(worst, _label_error(trial, assembly, shard, outputs, scratch, field))
        worst = max(worst, *_sum_errors(trial, segmenter, blocks, field))
    return worst, len(blocks)


def _label_error(
    plan: Plan, assembly: Assembly, shard: Shard, outputs: Outputs, scratch: Scratch, field: _Field
) -> float:
    """How far from a half, the border of the two classes, a stored label is wrong."""
    at = assembly.in_image(shard)
    outputs.write(assembly.window(shard), stitch(plan, 0, at, scratch))
    labels = outputs.mask.read(0, assembly.window(shard))
    wanted = field.read(at)[..., 0]
    wrong = labels != (wanted > 0.5)
    return float(np.abs(wanted - 0.5)[wrong].max(initial=0.0))


def _sum_errors(plan: Plan, segmenter: Segmenter, blocks: list[Block], field: _Field) -> Iterator[float]:
    """Errors of the summed probabilities, where the blocks that were run sum to a whole."""
    grid = plan.grids[0]
    held = {block: _sums(segmenter, plan, block, field) for block in blocks}
    yield 0.0
    for block in blocks:
        reaching = grid.blocks_reaching(own := grid.own(block))
        if not set(reaching) <= set(blocks):
            continue
        total = np.zeros(own.size, np.int64)
        for other in reaching:
            extent = grid.extent(other)
            part = own.intersect(extent)
            total[part.slices(own)] += held[other][part.slices(extent)]
        yield float(np.abs(total / ONE - field.read(own)[..., 0]).max(initial=0.0))


def _sums(segmenter: Segmenter, plan: Plan, block: Block, field: _Field) -> np.ndarray:
    grid = plan.grids[0]
    extent = grid.extent(block)
    sums = np.zeros(extent.size, np.int32)
    seen = read_block(field, (0,), grid, block, plan.margin)  # type: ignore[arg-type]
    for band, values in segmenter.sums(grid, block, seen):
        sums[band.slices(extent)] = values[0].cpu().numpy()
    return sums


def _some(first: int, last: int) -> list[int]:
    return sorted({*range(first, min(first + _FIRST, last)), *range(max(first, last - _LAST), last)})
