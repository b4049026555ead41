"""The network on its device: tiles of a block in, class probabilities out."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from raysegment.console import counted
from raysegment.errors import AnswerError, InputError, WorkError
from raysegment.model.fold import fold_batchnorm
from raysegment.model.fuse import fuse_relu
from raysegment.model.model import normalise, probabilities

if TYPE_CHECKING:
    from raysegment.inference.block import BlockPixels, Spot
    from raysegment.inference.plan import Plan
    from raysegment.inference.request import Augmentation
    from raysegment.model.model import Model
    from raysegment.model.spec import Activation

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: Quarter turns and whether the tile is mirrored too, of every view of a tile. The tile as it is comes last: the others
#: are copies of it, and a network may change its input in place, or answer with a view of it.
_VIEWS: dict[Augmentation, tuple[tuple[int, bool], ...]] = {
    "none": ((0, False),),
    "flip": ((0, True), (2, True), (2, False), (0, False)),
    "d4": tuple((turns, mirrored) for turns in (3, 2, 1, 0) for mirrored in (True, False)),
}


class Held:
    """A block's pixels on the device, as stored; the copy runs beside the computing."""

    def __init__(self, seen: BlockPixels, device: torch.device, copies: torch.cuda.Stream | None) -> None:
        self.pixels = torch.from_numpy(seen.pixels)
        self.valid = None if seen.valid is None else torch.from_numpy(seen.valid)
        self._ready: torch.cuda.Event | None = None
        if copies is not None:
            with torch.cuda.stream(copies):
                self.pixels = self.pixels.pin_memory().to(device, non_blocking=True)
                if self.valid is not None:
                    self.valid = self.valid.pin_memory().to(device, non_blocking=True)
                self._ready = copies.record_event()

    def wait(self) -> None:
        """Let the computing stream wait for the copy, and the allocator know who uses it."""
        if self._ready is not None:
            current = torch.cuda.current_stream()
            current.wait_event(self._ready)
            for tensor in (self.pixels, self.valid):
                if tensor is not None:
                    tensor.record_stream(current)


class Network:
    """A model on the plan's device, ready to answer."""

    def __init__(self, model: Model, plan: Plan) -> None:
        torch.set_num_threads(plan.threads)
        self.plan, self.spec = plan, model.spec
        self.device = torch.device(plan.device)
        module = fold_batchnorm(model.module)
        if self.device.type == "cpu" and plan.precision == "fp32":
            module = fuse_relu(module)
        elif module is model.module and self.device.type != "cpu":
            module = copy.deepcopy(module)  # the caller's own stays where it is
        self.module = module.to(device=self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        if plan.compiled:
            self.module = torch.compile(self.module, dynamic=False)
        self.batch = plan.batch_size
        """Tiles in one forward pass; halved for good when the device's memory does not hold them."""
        self._copies = torch.cuda.Stream() if self.device.type == "cuda" else None
        self._input: torch.Tensor | None = None

    def hold(self, seen: BlockPixels) -> Held:
        """Begin to copy a block's pixels to the device."""
        return Held(seen, self.device, self._copies)

    @torch.inference_mode()
    def answers(
        self, held: Held, spots: Sequence[Spot], where: str
    ) -> Iterator[tuple[Sequence[Spot], torch.Tensor]]:
        """Probabilities of the tiles at `spots` (row and column in the block), batch by batch.

        Yields the spots of a batch and float32 (at least as many, planes, tile, tile). Raises InputError, AnswerError,
        and WorkError when not even one tile fits into the device's memory.
        """
        at = 0
        while at < len(spots):
            batch = spots[at : at + self.batch]
            answer = None
            try:
                answer = self._answer(held, batch, where)
            except torch.OutOfMemoryError as e:
                if self.batch == 1:
                    raise WorkError(
                        f"one tile in {where} does not fit into the device's memory: choose a smaller --tile"
                    ) from e
            if answer is None:  # not while the error is handled: its traceback holds what the layers made
                self.batch //= 2
                self.free()
                continue
            yield batch, answer
            at += len(batch)

    def free(self) -> None:
        """Give back the device's memory that is held for later."""
        self._input = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _answer(self, held: Held, spots: Sequence[Spot], where: str) -> torch.Tensor:
        x = self._gather(held, spots)
        total: torch.Tensor | None = None
        for turns, mirrored in (views := _VIEWS[self.plan.tta]):
            p = _back(self._forward(_turned(x, turns, mirrored), where), turns, mirrored)
            total = p if total is None else total.add_(p)
        assert total is not None
        return total if len(views) == 1 else total.div_(len(views))

    def _gather(self, held: Held, spots: Sequence[Spot]) -> torch.Tensor:
        """Normalised tiles (batch, channels, edge, edge) float32, channels_last.

        A short last batch is filled up by repeating its last tile: every forward has one shape.
        """
        plan = self.plan
        edge = plan.tile + 2 * plan.margin
        shape = (self.batch, edge, edge, held.pixels.shape[2])
        if self._input is None or self._input.shape != shape:
            self._input = torch.empty(shape, dtype=torch.float32, device=self.device)
        full = [*spots, *[spots[-1]] * (self.batch - len(spots))]
        places = [
            (
                slice(row * plan.stride, row * plan.stride + edge),
                slice(col * plan.stride, col * plan.stride + edge),
            )
            for row, col in full
        ]
        pixels = [held.pixels[place] for place in places]
        valid = None if held.valid is None else torch.stack([held.valid[place] for place in places])
        return normalise(pixels, self.spec, valid, out=self._input)

    def _forward(self, x: torch.Tensor, where: str) -> torch.Tensor:
        """One view of a batch: probabilities (batch, planes, tile, tile) float32."""
        is_fp32 = self.plan.precision == "fp32"
        with (
            full_precision() if is_fp32 else contextlib.nullcontext(),
            torch.autocast(self.device.type, dtype=_DTYPES[self.plan.precision], enabled=not is_fp32),
        ):
            answer = self.module(x)
        self._check(answer, where)
        return plane_probabilities(answer, self.plan.planes, self.spec.activation, where)

    def _check(self, answer: torch.Tensor, where: str) -> None:
        """The network answered in the shape that its spec says."""
        if not isinstance(answer, torch.Tensor):
            raise InputError(
                f"the network answered a {type(answer).__name__} in {where}: give one that answers a tensor alone"
            )
        plan = self.plan
        outputs = possible_outputs(len(plan.classes), self.spec.activation)
        expected = (self.batch, plan.tile, plan.tile)
        if (
            answer.ndim != 4
            or answer.shape[1] not in outputs
            or (answer.shape[0], *answer.shape[2:]) != expected
        ):
            raise InputError(
                f"the network answered shape {tuple(answer.shape)} in {where}; its spec "
                f"({counted(len(plan.classes), 'class')}, "
                f"margin {plan.margin}) says {(self.batch, len(plan.classes), plan.tile, plan.tile)}"
            )


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Within, a GPU's convolutions of float32 are that: TF32, which is on by itself, keeps 10 bits of 23. After, it is
    as it was: a training, or the caller, may go on in this process."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def possible_outputs(classes: int, activation: str) -> set[int]:
    """How many channels a network may answer with: one per class, or a single one for two classes."""
    return {2, 1} if classes == 2 and activation != "softmax" else {classes}


def plane_probabilities(
    answer: torch.Tensor, planes: int, activation: Activation, where: str
) -> torch.Tensor:
    """Probabilities (n, planes, h, w) float32 of a network's answer: of every class, or of the second of two alone.

    softmax over two channels is the sigmoid of their difference, at a third of the cost. Raises AnswerError for what is
    no number, and for probabilities that are none.
    """
    if planes == 1 and activation == "softmax":
        return _finite(answer[:, 1:].float() - answer[:, :1].float(), where).sigmoid_()
    if activation == "none":
        low, high = (float(v) for v in answer.aminmax())
        if not (low >= -1e-6 and high <= 1 + 1e-6):
            raise AnswerError(
                f"the network's probabilities in {where} reach from {low:g} to {high:g}, not within 0 and 1"
            )
    else:
        _finite(answer, where)
    if planes == 1:
        return answer.float().sigmoid() if activation == "sigmoid" else answer.float()
    return probabilities(answer.contiguous(), activation)


def _finite(logits: torch.Tensor, where: str) -> torch.Tensor:
    """The logits; the sum of all of them tells of a single NaN or inf."""
    if not bool(torch.isfinite(logits.sum(dtype=torch.float32))):
        raise AnswerError(
            f"the network answered NaN or inf in {where}: check its weights, or use --precision fp32"
        )
    return logits


def _turned(x: torch.Tensor, turns: int, mirrored: bool) -> torch.Tensor:
    if not turns and not mirrored:
        return x
    x = x.flip(3) if mirrored else x
    return x.rot90(turns, (2, 3)).contiguous(memory_format=torch.channels_last)


def _back(p: torch.Tensor, turns: int, mirrored: bool) -> torch.Tensor:
    p = p.rot90(-turns, (2, 3)) if turns else p
    return p.flip(3) if mirrored else p
