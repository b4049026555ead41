"""A network with everything that is needed to use it right."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from raysegment.console import counted
from raysegment.errors import AnswerError, InputError, UsageError

if TYPE_CHECKING:
    from raysegment.model.spec import Activation, ModelSpec


def probabilities(answer: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Class probabilities (n, classes, h, w) float32 of a network's answer (n, outputs, h, w) of any float dtype.

    One output channel stands for two classes: index 1 is the channel, index 0 what is left. Raises InputError
    when the answer is no float tensor (class indices, say).
    """
    if not isinstance(answer, torch.Tensor):
        raise InputError(
            f"the network answered a {type(answer).__name__}: give one that answers a tensor alone"
        )
    if not answer.is_floating_point():
        raise InputError(
            f"the network answered {answer.dtype}, which is neither logits nor probabilities: leave its argmax out"
        )
    answer = answer.float()
    if activation == "softmax":
        return answer.softmax(dim=1)
    p = answer.sigmoid() if activation == "sigmoid" else answer
    return torch.cat([1 - p, p], dim=1) if p.shape[1] == 1 else p


def normalise(
    pixels: Sequence[torch.Tensor] | torch.Tensor,
    spec: ModelSpec,
    valid: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Network input of pixels as stored: n tiles (h, w, c) of any dtype → (n, c, h, w) float32, channels_last.

    x' = (x · scale − mean) / std per channel. Where `valid` (n, h, w) is False, and where x is NaN, x' is 0.
    `out`, float32 (n, h, w, c), is written over where it is given.
    """
    h, w, c = pixels[0].shape
    x = torch.empty((len(pixels), h, w, c), device=pixels[0].device) if out is None else out
    for slot, tile in zip(x, pixels, strict=True):
        slot.copy_(tile)
    # One fused pass over whole rows: a broadcast over three channels would not be vectorised.
    rows = x.view(len(pixels), h, w * c)
    factor, shift = _affine(spec.scale, spec.mean, spec.std, w, c, x.device)
    torch.addcmul(shift, rows, factor, out=rows)
    if pixels[0].is_floating_point():
        x.nan_to_num_(0.0, torch.inf, -torch.inf)
    if valid is not None:
        x.masked_fill_(~valid[..., None], 0.0)
    return x.permute(0, 3, 1, 2)


@lru_cache(maxsize=16)
def _affine(
    scale: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    width: int,
    channels: int,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x' = x · factor + shift, both float32 (width · channels,): the channels' values over and over."""
    spread = np.broadcast_to(np.asarray(std, np.float64), channels)
    factor, shift = (
        np.tile(v, width).astype(np.float32) for v in (scale / spread, -np.asarray(mean) / spread)
    )
    return torch.from_numpy(factor).to(device), torch.from_numpy(shift).to(device)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within, the network is in eval mode; after, each of its parts is in the mode that it was in.

    Raises UsageError for an exported program, which has no modes.
    """
    # a frozen TorchScript has no such word
    learning = [part for part in module.modules() if getattr(part, "training", False)]
    if learning:
        try:
            module.eval()
        except NotImplementedError as e:
            raise UsageError(
                "the module of an exported program has no eval mode: export the network in eval mode, save it with "
                "torch.export.save and give its .pt2"
            ) from e
    try:
        yield
    finally:
        for part in learning:
            part.training = True


class Model:
    """A network and its spec: of a file by :func:`raysegment.load_model`, or any module of the user's.

    The module takes (n, channels, h, w) float32 and answers (n, outputs, h − 2·margin, w − 2·margin). It is asked in
    eval mode and stays in the mode that it was in; `infer` and `plan` ask a copy.
    """

    def __init__(self, module: nn.Module, spec: ModelSpec) -> None:
        self.module, self.spec = module, spec

    @torch.inference_mode()
    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Class probabilities (n, classes, h, w) float32 of whole arrays (n, h, w, channels) as stored: no tiling.

        Raises InputError when the channels or the edges do not fit the spec, or the answer does not; AnswerError for an
        answer that is no probability.
        """
        if pixels.ndim != 4 or pixels.shape[3] != self.spec.channels:
            raise InputError(
                f"pixels of shape {pixels.shape} do not fit the model: give (n, h, w, {self.spec.channels})"
            )
        if any(edge % self.spec.multiple for edge in pixels.shape[1:3]):
            raise InputError(
                f"pixels of {pixels.shape[1]} × {pixels.shape[2]} do not fit the model: "
                f"both edges must be multiples of {self.spec.multiple}"
            )
        stored = np.require(pixels, pixels.dtype.newbyteorder("="), ["C", "W"])
        x = normalise(torch.from_numpy(stored), self.spec)
        device = next((p.device for p in self.module.parameters()), x.device)
        with evaluating(self.module):
            answer = probabilities(self.module(x.to(device)), self.spec.activation).cpu()
        lost = 2 * self.spec.margin
        expected = (len(x), len(self.spec.classes), x.shape[2] - lost, x.shape[3] - lost)
        if answer.shape != expected:
            raise InputError(
                f"the network answered {tuple(answer.shape)} for an input of {tuple(x.shape)}; its spec "
                f"({counted(len(self.spec.classes), 'class')}, margin {self.spec.margin}) says {expected}"
            )
        low, high = (float(v) for v in answer.aminmax())
        if not (low >= -1e-6 and high <= 1 + 1e-6):  # NaN neither
            raise AnswerError(
                f"the network's probabilities reach from {low:g} to {high:g}, not within 0 and 1"
            )
        return answer.numpy()

    def identity(self) -> str:
        """A digest of the spec, the weights and the network's own code; equal in every process. Raises InputError."""
        from raysegment.model.fingerprint import fingerprint

        digest = hashlib.sha256(self.spec.model_dump_json().encode())
        with evaluating(self.module):
            digest.update(fingerprint(self.module))
        return digest.hexdigest()
