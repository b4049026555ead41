"""A network that the user brings as a file, made to fit: its batch, its size, its answer.

An exported network may have been frozen at a batch of one or at one size. Here it takes any batch, says
which size it takes, and answers one float tensor, whatever format it came in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from raysegment.console import counted
from raysegment.errors import InputError, RaysegmentError

if TYPE_CHECKING:
    from raysegment.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class InputShape:
    """What a network's input is frozen to, as its file says; None = any."""

    batch: int | None
    channels: int | None
    height: int | None
    width: int | None

    @classmethod
    def of(cls, dimensions: list[int | None], name: str) -> InputShape:
        """Raises InputError when the input is no (n, c, h, w)."""
        if len(dimensions) != 4:
            raise InputError(
                f"{name}: its input has {counted(len(dimensions), 'dimension')}; "
                "export a network of (n, channels, h, w)"
            )
        return cls(*dimensions)

    def check(self, spec: ModelSpec, name: str) -> None:
        """Raise InputError when the sidecar says something that the network does not take."""
        edge = spec.tile + 2 * spec.margin
        if self.width == spec.channels != edge and self.channels in (None, edge):
            raise InputError(
                f"{name} takes its channels last: export a network of (n, channels, h, w), not (n, h, w, channels)"
            )
        if self.channels not in (None, spec.channels):
            raise InputError(
                f"{name} takes {counted(self.channels, 'channel')}, "
                f"its sidecar says channels = {spec.channels}: mend the sidecar"
            )
        for frozen in (self.height, self.width):
            if frozen not in (None, edge):
                raise InputError(
                    f"{name} takes {self.height or 'any'} × {self.width or 'any'} pixels only, its sidecar says "
                    f"tile + 2 · margin = {edge}: mend the sidecar, or export the network with dynamic height and width"
                )


class BroughtNetwork(nn.Module):
    """(n, channels, h, w) float32 → (n, outputs, h', w') float, of a network frozen to `takes`.

    Where the batch is frozen, larger ones are forwarded piece by piece and a short last piece is filled up.
    Raises InputError when the size is not the network's, when it fails, and when it answers no float tensor.
    """

    def __init__(self, network: nn.Module, takes: InputShape, name: str) -> None:
        super().__init__()
        self.network, self.takes, self.name = network, takes, name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        if self.takes.height not in (None, height) or self.takes.width not in (None, width):
            raise InputError(
                f"{self.name} takes {self.takes.height or 'any'} × {self.takes.width or 'any'} pixels only, "
                f"not {height} × {width}: use the tile of its sidecar, or export it with dynamic height and width"
            )
        batch = self.takes.batch
        if batch is None or batch == len(x):
            return self._answer(x)
        answers = []
        for piece in x.split(batch):
            filled = torch.cat([piece, piece[-1:].expand(batch - len(piece), -1, -1, -1)])
            answers.append(self._answer(filled)[: len(piece)])
        return torch.cat(answers)

    def _answer(self, x: torch.Tensor) -> torch.Tensor:
        try:
            answer: Any = self.network(x)
        except (RaysegmentError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as e:  # whatever the runtime of that format throws
            raise InputError(
                f"{self.name} fails on an input of {tuple(x.shape)}: {first_line(e)}; check tile, multiple and "
                "channels in its sidecar"
            ) from e
        if isinstance(answer, (tuple, list)) and len(answer) == 1:
            answer = answer[0]
        if not isinstance(answer, torch.Tensor):
            raise InputError(
                f"{self.name} answers a {type(answer).__name__}: export it with one tensor as its output"
            )
        return answer


def first_line(error: BaseException) -> str:
    """The first line of a foreign error's text that says something, or its kind."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
