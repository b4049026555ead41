"""Convolution and ReLU in one pass over memory, on the CPU.

oneDNN, which computes PyTorch's convolutions on the CPU, can apply a ReLU to what it has just computed, while that is
still in the cache. PyTorch reaches this through torch.compile alone, which needs a C++ compiler on every node and 6 s
a worker; the operator that its compiled code calls can be called as well. 4 % of our U-Net's time.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F

from raysegment import console
from raysegment.model.fold import followers, own_copy


class _ConvReLU(nn.Module):
    """A Conv2d whose answer goes through a ReLU."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.padding = [int(p) for p in conv.padding]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        c = self.conv
        return _conv_relu(x, c.weight, c.bias, self.padding, list(c.stride), list(c.dilation), c.groups)


def fuse_relu(module: nn.Module) -> nn.Module:
    """A copy in eval mode for fp32 on the CPU, with every ReLU that directly follows a Conv2d computed with it.

    The module itself where there is nothing to fuse, its forward cannot be followed, or this PyTorch cannot do it.
    """
    if not any(type(m) is nn.ReLU for m in module.modules()) or not _is_possible():
        return module
    fused = own_copy(module)
    if fused is None:
        return module
    pairs = [
        (conv, relu)
        for conv, relu in followers(fused, nn.ReLU)
        if (layer := fused.get_submodule(conv)).padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.weight.dtype == torch.float32
    ]
    for conv_name, relu_name in pairs:
        fused.set_submodule(conv_name, _ConvReLU(fused.get_submodule(conv_name)))  # type: ignore[arg-type]
        fused.set_submodule(relu_name, nn.Identity())
    return fused if pairs else module


def _conv_relu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    answer: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, padding, stride, dilation, groups, "relu", [], ""
    )
    return answer


@lru_cache(maxsize=1)
def _is_possible() -> bool:
    """Whether this PyTorch has the operator and it computes what it should: it is not part of the public API."""
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight = (
        torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8),
        torch.linspace(-1, 1, 4 * 27).view(4, 3, 3, 3),
    )
    try:
        with torch.inference_mode():
            got = _conv_relu(x, weight, None, [1, 1], [1, 1], [1, 1], 1)
    except (AttributeError, RuntimeError) as e:
        console.detail(f"convolution and ReLU are computed apart: {type(e).__name__}: {e}")
        return False
    return torch.allclose(got, F.conv2d(x, weight, padding=1).relu(), atol=1e-5)
