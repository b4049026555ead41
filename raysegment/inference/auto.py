"""What "auto" becomes: measured on the image's own first tiles, before the first block, and written into the plan."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from raysegment import console
from raysegment.geometry import Block
from raysegment.hardware import WORTH_BF16, has_fast_bf16, large_pieces_mapped, peak_memory
from raysegment.inference.block import read_block, tiles_of
from raysegment.inference.least_memory import check_tile_fits
from raysegment.inference.network import Network, possible_outputs
from raysegment.inference.plan import VIEWS
from raysegment.inference.request import least_cells

if TYPE_CHECKING:
    from raysegment.inference.block import BlockPixels, Spot
    from raysegment.inference.plan import Plan, Precision
    from raysegment.inference.request import Request
    from raysegment.model.model import Model
    from raysegment.raster import Raster

#: bf16 is taken when no more than this share of the pixels changes class.
TOLERATED_DISAGREEMENT = 1e-3
#: A larger batch is taken when it is at least this much faster a tile: less than that is the machine's mood.
_WORTH = 1.05
#: Compiling takes up to a minute in every worker: a GPU must have this many seconds of work for it to be tried.
_COMPILE_FROM_S = 600
#: A forward pass is timed so often, and the fastest counts: whatever else runs only slows it.
_TIMES = 2
_BATCHES = {"cpu": (1, 2), "cuda": (1, 2, 4, 8, 16, 32, 64)}


@dataclass(frozen=True)
class Measured:
    """What a few tiles of the image, forwarded in one process, say."""

    precision: Precision
    batch_size: int
    compiled: bool
    planes: int
    """Probabilities that have to be summed per pixel."""
    tile_s: float
    """Seconds of one tile's forward passes, on one worker's threads or its GPU."""
    activations: int
    """Bytes that one forward pass of a batch takes at one time, above what the process held before."""
    weights: int
    """Bytes of the network's parameters."""
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
            f"bf16 against fp32 on the first tiles: probabilities differ by at most {self.difference:.2g}, "
            f"the class on {100 * self.disagreement:.3g} % of the pixels"
        )


def measure(model: Model, raster: Raster, plan: Plan, request: Request) -> Measured:
    """Forward tiles from the middle of the wanted region; in bf16 too where that may be fast, and in larger batches.

    Raises UsageError for a tile that no memory here could hold.
    """
    if plan.device == "cpu":  # a GPU says by itself what it does not hold
        check_tile_fits(model, plan)
    trial = _Trial(model, raster, plan)
    precision, agreement = plan.precision, None
    answer = trial.answer(precision, plan.batch_size)
    batch, tile_s = plan.batch_size, trial.tile_s(precision, plan.batch_size)
    if request.precision == "auto" and has_fast_bf16(plan.device):
        agreement = _agreement(answer, trial.answer("bf16", plan.batch_size))
        seconds = trial.tile_s("bf16", plan.batch_size)
        is_faster = seconds is not None and (tile_s is None or tile_s >= WORTH_BF16 * seconds)
        if is_faster and agreement.disagreement <= TOLERATED_DISAGREEMENT:
            precision, tile_s = "bf16", seconds
    if request.batch_size == "auto":
        for larger in _BATCHES[plan.device][1:]:
            seconds = trial.tile_s(precision, larger)
            if seconds is None or tile_s is None or tile_s < _WORTH * seconds:
                break
            batch, tile_s = larger, seconds
    compiled = False
    if plan.device == "cuda" and tile_s is not None and plan.tiles * tile_s > _COMPILE_FROM_S:
        seconds = trial.compiled_tile_s(precision, batch)
        if seconds is not None and tile_s > _WORTH * seconds:
            compiled, tile_s = True, seconds
    return Measured(
        precision=precision,
        batch_size=batch,
        compiled=compiled,
        planes=trial.planes,
        tile_s=tile_s or 0.0,
        activations=trial.activations * batch // plan.batch_size,
        weights=sum(p.numel() * p.element_size() for p in model.module.parameters()),
        forward_pixels=trial.forward_pixels,
        agreement=agreement,
    )


def measure_planned(network: str | bytes, plan: Plan, request: Request) -> Measured:
    """The same in a process that has opened nothing yet: `network` as :meth:`Job.shipped` gives it."""
    from raysegment.inference.image import open_planned
    from raysegment.model.file import load_model
    from raysegment.model.shipping import unship

    model = load_model(network) if isinstance(network, str) else unship(network)
    return measure(model, open_planned(plan.images[0]), plan, request)


class _Trial:
    """The network on a few tiles of one small block."""

    def __init__(self, model: Model, raster: Raster, plan: Plan) -> None:
        image = plan.images[0].model_copy(update={"cells_per_block": least_cells(plan.tile, plan.overlap)})
        self._plan = plan.model_copy(update={"images": (image,)})
        self._model = model
        grid = self._plan.grids[0]
        blocks = grid.blocks()
        self._block: Block = blocks[len(blocks) // 2]
        self._seen: BlockPixels = read_block(
            raster, image.channels, grid, self._block, plan.margin, salvage=plan.on_error == "skip"
        )
        rows, cols = grid.block_tiles(self._block)
        self._spots: list[Spot] = [(r - rows[0], c - cols[0]) for r, c in tiles_of(grid, self._block)]
        self._networks: dict[tuple[Precision, bool], Network] = {}
        self._warm: set[tuple[Network, int]] = set()
        """Those that have answered before, in batches of what size."""
        self.forward_pixels = 0
        self.activations = 0
        self.planes = plan.planes

    def answer(self, precision: Precision, batch: int) -> torch.Tensor:
        """Probabilities (batch, classes, tile, tile) of the first tiles; learns what the network answers with."""
        network = self._network(precision, batch)
        channels: list[int] = []
        hook = network.module.register_forward_hook(
            lambda _m, _x, y: channels.append(
                y.shape[1] if isinstance(y, torch.Tensor) and y.ndim == 4 else 0
            )
        )
        with large_pieces_mapped():  # what this process has used before must not pass for what is free now
            before = _reset_peak(network.device)
            p = self._forward(network, batch)
            self.activations = max(self.activations, _peak(network.device) - before)
        hook.remove()
        classes, activation = len(self._plan.classes), self._model.spec.activation
        if classes == 2 and (activation == "softmax" or channels[0] == 1):
            assert channels[0] in possible_outputs(2, activation)
            self.planes = 1
        return p

    def tile_s(self, precision: Precision, batch: int) -> float | None:
        """Seconds a tile; None when the device's memory does not hold the batch."""
        return self._timed(self._network(precision, batch), batch)

    def compiled_tile_s(self, precision: Precision, batch: int) -> float | None:
        """The same through torch.compile; None where this machine or this network cannot be compiled."""
        network = self._network(precision, batch, compiled=True)
        try:
            return self._timed(network, batch)
        except Exception as e:  # compilers, Triton and the network's own code may fail in any way
            console.detail(f"not compiled: {type(e).__name__}: {str(e).splitlines()[0]}")
            return None

    def _timed(self, network: Network, batch: int) -> float | None:
        if (network, batch) not in self._warm:
            self._forward(network, batch)  # the first call pays for memory and kernels
        if network.batch < batch:
            return None
        best = math.inf
        for _ in range(_TIMES):
            started = time.perf_counter()
            self._forward(network, batch)
            best = min(best, time.perf_counter() - started)
        return best / batch

    def _network(self, precision: Precision, batch: int, *, compiled: bool = False) -> Network:
        key = (precision, compiled)
        if key not in self._networks:
            trial = {"precision": precision, "compiled": compiled}
            self._networks[key] = Network(self._model, self._plan.model_copy(update=trial))
        self._networks[key].batch = batch
        return self._networks[key]

    def _forward(self, network: Network, batch: int) -> torch.Tensor:
        spots = [self._spots[i % len(self._spots)] for i in range(batch)]
        held = network.hold(self._seen)
        held.wait()
        self._warm.add((network, batch))
        answers = [p for _, p in network.answers(held, spots, f"block {self._block.row},{self._block.col}")]
        if network.device.type == "cuda":
            torch.cuda.synchronize()
        self.forward_pixels += batch * VIEWS[self._plan.tta] * self._plan.tile**2
        return torch.cat(answers)[:batch]


def _agreement(fp32: torch.Tensor, bf16: torch.Tensor) -> Agreement:
    return Agreement(
        difference=float((fp32 - bf16).abs().max()),
        disagreement=float((fp32.argmax(dim=1) != bf16.argmax(dim=1)).float().mean()),
    )


def _reset_peak(device: torch.device) -> int:
    """Forget the process's, or the device's, peak; returns what it holds now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    forget = Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")  # of the peak resident size, see proc(5)
    return peak_memory()


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory()
