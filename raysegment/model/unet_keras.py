"""The Keras variant of the U-Net that most people have run (zhixuhao/unet), for fidelity.

What differs from :class:`raysegment.model.unet.UNet`: no norm; dropout of single values, not of channels, at
the two deepest levels; nearest upsampling and a 2×2 convolution with ReLU instead of a transposed convolution;
a head of a 3×3 convolution to 2 channels with ReLU, then 1×1 to the classes. Weights start as Keras draws them,
and nothing is set to the class frequencies.

That ReLU on two channels starts with 12–21 % of the pixels dead and may never let them live again: the answer is
then one class everywhere. Prefer ``unet``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from raysegment.model.unet import DoubleConv, contract_expand

_HEAD_CHANNELS = 2
#: Keras draws "he_normal" from a normal cut at two deviations, whose own deviation is this share of the normal's.
_CUT_NORMAL = 0.87962566103423978


class UNetKeras(nn.Module):
    """(n, in_channels, h, w) float → logits (n, out_channels, h, w); h and w are multiples of ``2**depth``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        base_width: int = 64,
        depth: int = 4,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        levels = [base_width * 2**level for level in range(depth + 1)]
        self.widths = levels[-2::-1]
        """Channels of :meth:`features`."""
        self.down = nn.ModuleList(
            DoubleConv(inputs, outputs, "none", "same")
            for inputs, outputs in zip([in_channels, *levels], levels, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.ModuleList(
            nn.Dropout(dropout) if dropout > 0 and level >= depth - 1 else nn.Identity()
            for level in range(depth + 1)
        )
        self.widen = nn.ModuleList(_widening(2 * width, width) for width in self.widths)
        self.up = nn.ModuleList(DoubleConv(2 * width, width, "none", "same") for width in self.widths)
        self.head = nn.Sequential(
            nn.Conv2d(base_width, _HEAD_CHANNELS, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(_HEAD_CHANNELS, out_channels, 1),
        )
        self._initialise()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for feature in self.features(x):
            x = feature
        return self.head(x)

    def features(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """What each level of the expanding path answers, the coarsest first; the last is what the head sees."""
        return contract_expand(x, self.down, self.pool, self.drop, self.widen, self.up)

    def _initialise(self) -> None:
        """ "he_normal" where a ReLU follows; the last convolution by Keras' default, Glorot uniform."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                std = math.sqrt(2 / fan_in) / _CUT_NORMAL
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.xavier_uniform_(self.head[-1].weight)  # type: ignore[arg-type]


def _widening(inputs: int, outputs: int) -> nn.Sequential:
    """Nearest upsampling by 2, then a 2×2 convolution; its output keeps the size by a row and a column of zeros
    below and to the right, as Keras' "same" has it."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.ZeroPad2d((0, 1, 0, 1)),
        nn.Conv2d(inputs, outputs, 2),
        nn.ReLU(inplace=True),
    )
