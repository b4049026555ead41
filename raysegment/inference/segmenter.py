"""One block through the network: read, forward, weight, sum; what is final of its core, sums for its rims."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from raysegment.errors import WorkError
from raysegment.geometry import Block, Window
from raysegment.inference.blend import weights
from raysegment.inference.block import (
    BlockPixels,
    Spot,
    counted_pixels,
    read_block,
    tiles_of,
    tiles_on,
    with_any,
)
from raysegment.inference.network import Held, Network
from raysegment.inference.outcome import ONE, outcome
from raysegment.inference.record import Record

if TYPE_CHECKING:
    from raysegment.inference.foreground import Foreground
    from raysegment.inference.grid import Grid
    from raysegment.inference.plan import Plan
    from raysegment.model.model import Model
    from raysegment.raster import Raster


@dataclass(frozen=True)
class Segmented:
    """A block that is done."""

    record: Record
    compute_s: float
    """How long the device worked on it."""


class Segmenter:
    """The network on its device. Several threads may call :meth:`segment`: one computes, the others read and pack."""

    def __init__(self, model: Model, plan: Plan) -> None:
        self.plan = plan
        self.network = Network(model, plan)
        self._computing = threading.Lock()
        self._tile_weights: dict[tuple[bytes, bytes], torch.Tensor] = {}

    def segment(
        self, raster: Raster, index: int, block: Block, foreground: Foreground | None = None
    ) -> Segmented:
        """Segment one block of image `index`. Raises ReadError, WorkError, AnswerError."""
        plan, grid, image = self.plan, self.plan.grids[index], self.plan.images[index]
        spots = tiles_of(grid, block) if foreground is None else tiles_on(foreground, grid, block)
        if not spots:
            return Segmented(nothing(plan, index, block), 0.0)
        seen = read_block(raster, image.channels, grid, block, plan.margin, salvage=plan.on_error == "skip")
        inside, counted = counted_pixels(seen, foreground, grid)
        if image.skip and counted is not None:
            spots = with_any(spots, counted, inside, grid)
        held = self._held(seen, block)
        with self._computing:
            started = time.perf_counter()
            try:
                record = self._record(index, block, seen, held, spots)
            except (
                torch.OutOfMemoryError
            ) as e:  # of the sums: the network's own is answered by smaller batches
                raise _too_large(block) from e
            compute_s = time.perf_counter() - started
        if counted is not None:
            record.core["labels"][~counted[record.own.slices(inside)]] = plan.nodata
        return Segmented(record, compute_s)

    def _held(self, seen: BlockPixels, block: Block) -> Held:
        """The block's pixels on the device, beside those that are computed with now or, where both do not fit, after.

        Raises WorkError where it does not fit alone.
        """
        with contextlib.suppress(torch.OutOfMemoryError):
            return self.network.hold(seen)
        with self._computing:
            self.network.free()
            try:
                return self.network.hold(seen)
            except torch.OutOfMemoryError as e:
                raise _too_large(block) from e

    def _record(
        self, index: int, block: Block, seen: BlockPixels, held: Held, spots: Sequence[Spot]
    ) -> Record:
        plan, grid = self.plan, self.plan.grids[index]
        own, core = grid.own(block), grid.core(block)
        made = nothing(plan, index, block).core
        made["labels"][:] = 0
        windows = dict(grid.rims(block).items())
        rims = {name: np.zeros((plan.sums, *w.size), np.int32) for name, w in windows.items()}
        for band, sums in self.sums(grid, block, seen, spots, held):
            part = core.intersect(band)
            if part.area:
                rows, cols = part.slices(band)
                for name, values in outcome(sums[:, rows, cols], plan).items():
                    made[name][..., *part.slices(own)] = values
            for name, window in windows.items():
                part = window.intersect(band)
                if part.area:
                    rows, cols = part.slices(band)
                    into_rows, into_cols = part.slices(window)
                    rims[name][:, into_rows, into_cols] = sums[:, rows, cols].cpu().numpy()
        return Record(own, made, rims, tiles=len(spots), failures=tuple(seen.failures))

    @torch.inference_mode()
    def sums(
        self,
        grid: Grid,
        block: Block,
        seen: BlockPixels,
        spots: Sequence[Spot] | None = None,
        held: Held | None = None,
    ) -> Iterator[tuple[Window, torch.Tensor]]:
        """Weighted class probabilities of the block's own tiles, summed in fixed point, band by band from the top.

        `spots`: the tiles to run, row by row; all of the block's by default. Each band is (window, sums): image
        pixels inside the block's extent, int32 (plan.sums, h, w) in units of 2⁻³⁰. The bands fill the extent; a band's
        memory is used again for the next. Only as many rows of tiles are held as a batch covers, so memory grows
        with tile × block, not with block².
        """
        plan = self.plan
        tile, stride = plan.tile, plan.stride
        rows, cols = grid.block_tiles(block)
        spots = tiles_of(grid, block) if spots is None else spots
        held = self.network.hold(seen) if held is None else held
        held.wait()
        at_once = max(1, self.network.batch // len(cols))
        extent, left = grid.extent(block), grid.x.tile_start(cols[0])
        width = (len(cols) - 1) * stride + tile
        sums = torch.zeros(
            (plan.sums, tile + (at_once - 1) * stride, width), dtype=torch.int32, device=self.network.device
        )
        for first in range(rows.start, rows.stop, at_once):
            last = min(first + at_once, rows.stop)
            here = [(r - rows.start, c - cols.start) for r, c in spots if first <= r < last]
            for batch, answers in self.network.answers(held, here, f"block {block.row},{block.col}"):
                for answer, (row, col) in zip(answers, batch, strict=False):
                    y, x = (row + rows.start - first) * stride, col * stride
                    weight = self._tile_weight(grid, row + rows.start, col + cols.start)
                    self._add(sums[:, y : y + tile, x : x + tile], answer, weight)
            height = (last - first - 1) * stride + tile
            final = height if last == rows.stop else (last - first) * stride
            whole = Window(y=grid.y.tile_start(first), x=left, height=final, width=width)
            band = whole.intersect(extent)
            if band.area:
                in_rows, in_cols = band.slices(whole)
                yield band, sums[:, in_rows, in_cols]
            kept = sums[:, final : final + tile - stride].clone()
            sums.zero_()
            sums[:, : kept.shape[1]] = kept

    def _add(self, sums: torch.Tensor, answer: torch.Tensor, weight: torch.Tensor) -> None:
        """Add one tile: every weighted probability is rounded once to int32, and exact from there on."""
        planes = self.plan.planes
        sums[:planes] += torch.mul(answer, weight).round_().to(torch.int32)
        if self.plan.uncertainty:
            squares = (answer * answer).sum(0)
            if planes < len(self.plan.classes):
                squares += (1 - answer[0]) ** 2
            # each class may be certain by itself: only their mean is at most one
            squares /= len(self.plan.classes)
            sums[planes] += squares.mul_(weight).round_().to(torch.int32)

    def _tile_weight(self, grid: Grid, row: int, col: int) -> torch.Tensor:
        """ŵ(y)·ŵ(x)·2³⁰ of one tile: float32 (tile, tile), multiplied in float64. All inner tiles share one."""
        wy, wx = weights(grid.y, row, self.plan.blend), weights(grid.x, col, self.plan.blend)
        key = (wy.tobytes(), wx.tobytes())
        if key not in self._tile_weights:
            scaled = np.outer(wy, wx) * float(ONE)
            self._tile_weights[key] = torch.from_numpy(scaled.astype(np.float32)).to(self.network.device)
        return self._tile_weights[key]


def _too_large(block: Block) -> WorkError:
    return WorkError(
        f"block {block.row},{block.col} does not fit into the device's memory: choose a smaller --block"
    )


def nothing(plan: Plan, index: int, block: Block, failed: str = "") -> Record:
    """The record of a block that no tile was run for."""
    own = plan.grids[index].own(block)
    core = {"labels": np.full(own.size, plan.nodata, plan.label_dtype)}
    if plan.probabilities:
        core["probabilities"] = np.zeros((len(plan.classes), *own.size), np.uint8)
    if plan.uncertainty:
        core["uncertainty"] = np.zeros(own.size, np.uint8)
    return Record(own, core, failed=failed)
