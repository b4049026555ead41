"""One block through the network: read, forward, weight, sum; labels for its core, sums for its rims."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from raysegment.errors import AnswerError, InputError, WorkError
from raysegment.geometry import Block, Window, mirror
from raysegment.inference.blend import FIXED_POINT_BITS, weights
from raysegment.inference.labels import labels_of
from raysegment.inference.record import Record
from raysegment.model.model import normalise, probabilities

if TYPE_CHECKING:
    from raysegment.inference.grid import Grid
    from raysegment.inference.plan import Plan
    from raysegment.model.model import Model
    from raysegment.raster import Raster

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class BlockPixels:
    """What the tiles of one block see, mirrored at the image's edge."""

    window: Window
    """Where they lie; it sticks out of the image where the tiles do."""
    pixels: np.ndarray
    """(h, w, channels) as stored, the network's channels only."""
    valid: np.ndarray | None
    """(h, w) bool, False = nodata; None = all valid."""


def read_block(
    raster: Raster, channels: tuple[int, ...], grid: Grid, block: Block, margin: int
) -> BlockPixels:
    """Read all pixels that a block's tiles see. Raises ReadError, and WorkError for inf in the pixels."""
    rows, cols = grid.block_tiles(block)
    seen = Window.between(
        grid.y.tile_start(rows[0]) - margin,
        grid.x.tile_start(cols[0]) - margin,
        grid.y.tile_start(rows[-1]) + grid.tile + margin,
        grid.x.tile_start(cols[-1]) + grid.tile + margin,
    )
    hull, index = mirror(seen, grid.image)
    stored = raster.read(hull)
    valid = raster.valid(hull, stored)
    pixels = stored if channels == tuple(range(stored.shape[2])) else stored[:, :, channels]
    if (
        np.issubdtype(pixels.dtype, np.floating)
        and np.isinf(pixels if valid is None else pixels[valid]).any()
    ):
        raise WorkError(
            f"{raster.path} holds inf in block {block.row},{block.col} ({hull}): mend or mask those pixels"
        )
    if index is not None:
        pixels = pixels[index]
        valid = None if valid is None else valid[index]
    return BlockPixels(seen, np.ascontiguousarray(pixels), valid)


class Segmenter:
    """The network on its device. Several threads may call :meth:`segment`: one computes, the others read and pack."""

    def __init__(self, model: Model, plan: Plan) -> None:
        torch.set_num_threads(plan.threads)
        self.plan, self.spec = plan, model.spec
        self.device = torch.device(plan.device)
        self.module = model.module.to(device=self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._computing = threading.Lock()
        self._tile_weights: dict[tuple[bytes, bytes], torch.Tensor] = {}

    def segment(self, raster: Raster, index: int, block: Block) -> Record:
        """Segment one block of image `index`. Raises ReadError, WorkError, AnswerError."""
        plan, grid = self.plan, self.plan.grids[index]
        seen = read_block(raster, plan.images[index].channels, grid, block, plan.margin)
        own, core = grid.own(block), grid.core(block)
        labels = np.zeros(own.size, plan.label_dtype)
        windows = dict(grid.rims(block).items())
        rims = {name: np.zeros((len(plan.classes), *w.size), np.int32) for name, w in windows.items()}
        with self._computing:
            for band, sums in self.sums(grid, block, seen):
                part = core.intersect(band)
                if part.area:
                    rows, cols = part.slices(band)
                    labels[part.slices(own)] = labels_of(
                        sums[:, rows, cols], plan.thresholds, plan.label_dtype
                    )
                for name, window in windows.items():
                    part = window.intersect(band)
                    if part.area:
                        rows, cols = part.slices(band)
                        into_rows, into_cols = part.slices(window)
                        rims[name][:, into_rows, into_cols] = sums[:, rows, cols].cpu().numpy()
        if seen.valid is not None:
            labels[~seen.valid[own.slices(seen.window)]] = plan.nodata
        rows_run, cols_run = grid.block_tiles(block)
        return Record(own, labels, rims, tiles=len(rows_run) * len(cols_run))

    @torch.inference_mode()
    def answer(self, seen: BlockPixels, block: Block) -> np.ndarray:
        """Class probabilities of the block's first tile: float32 (batch, classes, tile, tile), for measuring."""
        pixels = torch.from_numpy(seen.pixels).to(self.device)
        valid = None if seen.valid is None else torch.from_numpy(seen.valid).to(self.device)
        return self._forward(pixels, valid, 0, [0], block).cpu().numpy()

    @torch.inference_mode()
    def sums(self, grid: Grid, block: Block, seen: BlockPixels) -> Iterator[tuple[Window, torch.Tensor]]:
        """Weighted class probabilities of the block's own tiles, summed in fixed point, band by band from the top.

        Each band is (window, sums): image pixels inside the block's extent, int32 (classes, h, w) in units of
        2⁻³⁰. The bands fill the extent; a band's memory is used again for the next. Only one row of tiles is
        held at a time, so memory grows with tile × block, not with block².
        """
        plan = self.plan
        tile, stride = plan.tile, plan.stride
        rows, cols = grid.block_tiles(block)
        pixels = torch.from_numpy(seen.pixels).to(self.device)
        valid = None if seen.valid is None else torch.from_numpy(seen.valid).to(self.device)
        extent, left = grid.extent(block), grid.x.tile_start(cols[0])
        width = (len(cols) - 1) * stride + tile
        sums = torch.zeros((len(plan.classes), tile, width), dtype=torch.int32, device=self.device)
        for row in rows:
            top = grid.y.tile_start(row)
            for first in range(0, len(cols), plan.batch_size):
                batch = cols[first : first + plan.batch_size]
                answers = self._forward(pixels, valid, row - rows[0], [c - cols[0] for c in batch], block)
                for answer, col in zip(answers, batch, strict=False):
                    x = (col - cols[0]) * stride
                    weighted = torch.mul(answer, self._tile_weight(grid, row, col)).round_()
                    sums[:, :, x : x + tile] += weighted.to(torch.int32)
            final = tile if row == rows[-1] else stride
            whole = Window(y=top, x=left, height=final, width=width)
            band = whole.intersect(extent)
            if band.area:
                in_rows, in_cols = band.slices(whole)
                yield band, sums[:, in_rows, in_cols]
            kept = sums[:, stride:].clone()
            sums.zero_()
            sums[:, : tile - stride] = kept

    def _forward(
        self, pixels: torch.Tensor, valid: torch.Tensor | None, row: int, cols: list[int], block: Block
    ) -> torch.Tensor:
        """Class probabilities of tiles of one tile row: float32 (batch, classes, tile, tile).

        A short last batch is filled up by repeating its last tile: every forward has one shape.
        """
        plan = self.plan
        edge = plan.tile + 2 * plan.margin
        cols = cols + [cols[-1]] * (plan.batch_size - len(cols))
        rows = slice(row * plan.stride, row * plan.stride + edge)
        spans = [slice(c * plan.stride, c * plan.stride + edge) for c in cols]
        x = normalise(
            torch.stack([pixels[rows, span] for span in spans]),
            self.spec,
            None if valid is None else torch.stack([valid[rows, span] for span in spans]),
        )
        with torch.autocast(
            self.device.type, dtype=_DTYPES[plan.precision], enabled=plan.precision != "fp32"
        ):
            answer = self.module(x)
        self._check(answer, block)
        return probabilities(answer, self.spec.activation)

    def _check(self, answer: torch.Tensor, block: Block) -> None:
        """The network answered what its spec says, and nothing that is no number."""
        plan, where = self.plan, f"block {block.row},{block.col}"
        outputs = (
            {len(plan.classes), 1}
            if len(plan.classes) == 2 and self.spec.activation != "softmax"
            else {len(plan.classes)}
        )
        expected = (plan.batch_size, plan.tile, plan.tile)
        if (
            answer.ndim != 4
            or answer.shape[1] not in outputs
            or (answer.shape[0], *answer.shape[2:]) != expected
        ):
            raise InputError(
                f"the network answered shape {tuple(answer.shape)} in {where}; its spec ({len(plan.classes)} classes, "
                f"margin {plan.margin}) says {(plan.batch_size, len(plan.classes), plan.tile, plan.tile)}"
            )
        if self.spec.activation == "none":
            low, high = (float(v) for v in answer.aminmax())
            if not (low >= -1e-6 and high <= 1 + 1e-6):
                raise AnswerError(
                    f"the network's probabilities in {where} reach from {low:g} to {high:g}, not within 0 and 1"
                )
        elif not bool(torch.isfinite(answer.sum(dtype=torch.float32))):
            raise AnswerError(
                f"the network answered NaN or inf in {where}: check its weights, or use --precision fp32"
            )

    def _tile_weight(self, grid: Grid, row: int, col: int) -> torch.Tensor:
        """ŵ(y)·ŵ(x)·2³⁰ of one tile: float32 (tile, tile), multiplied in float64. All inner tiles share one."""
        wy, wx = weights(grid.y, row, self.plan.blend), weights(grid.x, col, self.plan.blend)
        key = (wy.tobytes(), wx.tobytes())
        if key not in self._tile_weights:
            scaled = np.outer(wy, wx) * float(1 << FIXED_POINT_BITS)
            self._tile_weights[key] = torch.from_numpy(scaled.astype(np.float32)).to(self.device)
        return self._tile_weights[key]
