"""A network with everything that is needed to use it right."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from raysegment.errors import InputError
from raysegment.model.shipping import fingerprint

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


def normalise(pixels: torch.Tensor, spec: ModelSpec, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Network input of pixels as stored: (n, h, w, c) of any dtype → (n, c, h, w) float32, channels_last.

    x' = (x · scale − mean) / std per channel. Where `valid` (n, h, w) is False, and where x is NaN, x' is 0.
    """
    x = pixels.to(torch.float32).permute(0, 3, 1, 2)
    mean = torch.tensor(spec.mean, dtype=torch.float32, device=x.device).view(1, -1, 1, 1)
    std = torch.tensor(spec.std, dtype=torch.float32, device=x.device).view(1, -1, 1, 1)
    x = (x * spec.scale - mean) / std
    if pixels.is_floating_point():
        x = torch.where(torch.isnan(x), 0.0, x)
    if valid is not None:
        x = torch.where(valid[:, None], x, 0.0)
    return x.contiguous(memory_format=torch.channels_last)


class Model:
    """A network and its spec: of a file by :func:`raysegment.load_model`, or any module of the user's.

    The module takes (n, channels, h, w) float32 and answers (n, outputs, h − 2·margin, w − 2·margin).
    """

    def __init__(self, module: nn.Module, spec: ModelSpec) -> None:
        self.module = module.eval()
        self.spec = spec

    @torch.inference_mode()
    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Class probabilities (n, classes, h, w) float32 of whole arrays (n, h, w, channels) as stored: no tiling.

        Raises InputError when the channels or the edges do not fit the spec, or the answer does not.
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
        x = normalise(torch.from_numpy(np.require(pixels, requirements="W")), self.spec)
        answer = probabilities(self.module(x), self.spec.activation)
        lost = 2 * self.spec.margin
        expected = (len(x), len(self.spec.classes), x.shape[2] - lost, x.shape[3] - lost)
        if answer.shape != expected:
            raise InputError(
                f"the network answered {tuple(answer.shape)} for an input of {tuple(x.shape)}; its spec "
                f"({len(self.spec.classes)} classes, margin {self.spec.margin}) says {expected}"
            )
        return answer.numpy()

    def identity(self) -> str:
        """A digest of the spec, the weights and the network's own code; equal in every process."""
        digest = hashlib.sha256(self.spec.model_dump_json().encode())
        digest.update(fingerprint(self.module))
        return digest.hexdigest()
