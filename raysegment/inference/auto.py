"""What "auto" becomes: measured on the image's own first tiles, before the first block, and written into the plan."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raysegment.geometry import Block
from raysegment.hardware import has_fast_bf16
from raysegment.inference.segmenter import Segmenter, read_block

if TYPE_CHECKING:
    from raysegment.inference.plan import Plan, Precision
    from raysegment.model.model import Model
    from raysegment.raster import Raster

#: bf16 is taken when no more than this share of the pixels changes class.
TOLERATED_DISAGREEMENT = 1e-3


@dataclass(frozen=True)
class Measured:
    """What one tile of the image, forwarded in this process, says."""

    precision: Precision
    tile_s: float
    """Seconds of one forward pass in that precision, on one worker's threads."""
    forward_pixels: int
    agreement: Agreement | None
    """Of bf16 with fp32; None where only one was tried."""

    def __str__(self) -> str:
        return self.precision if self.agreement is None else f"{self.precision} ({self.agreement})"


@dataclass(frozen=True)
class Agreement:
    """How far two precisions answer the same."""

    difference: float
    """Largest difference of a class probability."""
    disagreement: float
    """Share of pixels whose class differs."""

    def __str__(self) -> str:
        return (
            f"bf16 against fp32 on a tile: probabilities differ by at most {self.difference:.2g}, "
            f"the class on {100 * self.disagreement:.3g} % of the pixels"
        )


def measure(model: Model, raster: Raster, plan: Plan, *, choose_precision: bool) -> Measured:
    """Forward the tile in the middle of the wanted region; with `choose_precision`, in bf16 too where that is fast."""
    grid = plan.grids[0]
    block = _middle_block(plan)
    seen = read_block(raster, plan.images[0].channels, grid, block, plan.margin)
    tried: list[Precision] = [plan.precision]
    if choose_precision and has_fast_bf16(plan.device):
        tried = ["fp32", "bf16"]
    answers: list[np.ndarray] = []
    seconds: list[float] = []
    for precision in tried:
        segmenter = Segmenter(model, plan.model_copy(update={"precision": precision}))
        segmenter.answer(seen, block)  # the first call pays for memory and kernels
        started = time.perf_counter()
        answers.append(segmenter.answer(seen, block))
        seconds.append(time.perf_counter() - started)
    pixels = 2 * len(tried) * plan.batch_size * plan.tile**2
    if len(tried) == 1:
        return Measured(tried[0], seconds[0] / plan.batch_size, pixels, None)
    fp32, bf16 = answers
    agreement = Agreement(
        difference=float(np.abs(fp32 - bf16).max()),
        disagreement=float((fp32.argmax(axis=1) != bf16.argmax(axis=1)).mean()),
    )
    chosen = 1 if agreement.disagreement <= TOLERATED_DISAGREEMENT else 0
    return Measured(tried[chosen], seconds[chosen] / plan.batch_size, pixels, agreement)


def _middle_block(plan: Plan) -> Block:
    blocks = plan.grids[0].blocks()
    return blocks[len(blocks) // 2]
