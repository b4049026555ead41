"""The memory that a network cannot do without for one tile, told by its convolutions on a small one.

A convolution's input and output are held at the same time, whatever else is, and grow with the tile's area. Running out
of memory would end the process without a word, so a tile that needs more than there is, is not tried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from raysegment import console
from raysegment.errors import UsageError
from raysegment.inference.results import readable_bytes
from raysegment.model.brought import first_line
from raysegment.runtime.device import traits

if TYPE_CHECKING:
    from raysegment.inference.plan import Plan
    from raysegment.model.model import Model

#: No network takes so much for a pixel (a U-Net of base width 64 about 1 kB): what fits by this need not be looked at.
_MOST_PIXEL_BYTES = 4096
#: Edge of the small tile, about.
_EDGE_PX = 64


def check_tile_fits(model: Model, plan: Plan) -> None:
    """Raise UsageError for a tile that this machine's memory cannot hold within the network."""
    memory, pixels = traits("cpu").memory, (plan.tile + 2 * plan.margin) ** 2
    if pixels * _MOST_PIXEL_BYTES <= memory:
        return
    half = plan.precision != "fp32"
    need = int(pixels * convolution_bytes(model) * (0.5 if half else 1.0))
    if need > memory:
        raise UsageError(
            f"--tile {plan.tile}: one tile takes at least {readable_bytes(need)} of memory within the network and "
            f"there are {readable_bytes(memory)}: choose a smaller one"
        )


def convolution_bytes(model: Model) -> float:
    """Bytes per pixel of input, in float32, that the largest convolution takes and answers; 0 where none is seen (ONNX,
    a network of one size of input)."""
    spec = model.spec
    edge = -(-(_EDGE_PX + 2 * spec.margin) // spec.multiple) * spec.multiple
    seen = _Convolutions()
    try:
        with torch.no_grad(), seen:
            model.module(torch.zeros(1, spec.channels, edge, edge))
    except (
        Exception
    ) as e:  # the network's own code may fail in any way, and will say so on a tile of the right size
        console.detail(f"what a tile takes is not known beforehand: {first_line(e)}")
    return seen.most / edge**2


class _Convolutions(TorchDispatchMode):
    """Sees every operator that runs within it."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            self.most = max(self.most, args[0].nbytes + answer.nbytes)
        return answer
