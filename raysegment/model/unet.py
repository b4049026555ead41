"""The U-Net of Ronneberger, Fischer and Brox (2015), padded or not, on logits.

Each of the `depth` levels of the contracting path runs two 3×3 convolutions and halves the size by 2×2
max pooling; the expanding path doubles it by 2×2 transposed convolutions and joins what the same level
of the contracting path saw. The head is a plain 1×1 convolution without activation.

``padding="same"``   output as big as the input; `multiple` = 2^depth, margin 0.
``padding="valid"``  the paper's: every 3×3 convolution loses one pixel per side. The paper's input sizes
                     (572 for four levels) are those at which every pooling divides evenly, 2^depth·k − 4.
                     So that tiles can be planned by `multiple` = 2^depth alone, the network first crops
                     its input by `_trim(depth)` pixels per side: 576 in, 572 kept, 388 out, margin 94.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import nn

Norm = Literal["batch", "group", "none"]
Padding = Literal["same", "valid"]

#: Class frequencies are clipped to this before they become the head's bias.
_RAREST = 1e-3
_GROUP_CHANNELS = 8


def multiple(depth: int) -> int:
    """Both edges of the network's input must be multiples of this."""
    return 2**depth


def margin(depth: int, padding: Padding) -> int:
    """Pixels that the output is smaller than the input, on each side."""
    if padding == "same":
        return 0
    return _trim(depth) + 6 * 2**depth - 4


def receptive_radius(depth: int, *, head: int = 0, widen: int = 0) -> int:
    """How far from an output pixel the input can still change it, in pixels.

    Exact: the interval that one output pixel sees, traced through the deepest path, for the worst of
    the 2^depth phases that a pixel can have on the pooling grid. `head`: pixels that the head sees on every
    side; `widen`: pixels that a convolution after each doubling sees to the right and below.
    """
    return max(_reach(y, depth, head, widen) for y in range(2**depth))


def _reach(y: int, depth: int, head: int, widen: int) -> int:
    low, high = y - head, y + head
    for _ in range(depth):
        # two convolutions, then the cell of the coarser level
        low, high = (low - 2) // 2, (high + 2 + widen) // 2
    low, high = low - 2, high + 2
    for _ in range(depth):
        low, high = 2 * low - 2, 2 * high + 1 + 2  # both pixels of the pooled pair, then two convolutions
    return max(y - low, high - y)


def _trim(depth: int) -> int:
    """Pixels cropped per side from an input of edge 2^depth·k, so that (edge + 4) divides by 2^depth."""
    return 2 % 2 ** max(depth - 1, 0)


class DoubleConv(nn.Sequential):
    """Twice: 3×3 convolution, norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, norm: Norm, padding: Padding) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers.append(
                nn.Conv2d(channels, outputs, 3, padding=1 if padding == "same" else 0, bias=norm == "none")
            )
            if norm == "batch":
                layers.append(nn.BatchNorm2d(outputs))
            elif norm == "group":
                layers.append(nn.GroupNorm(max(1, outputs // _GROUP_CHANNELS), outputs))
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class UNet(nn.Module):
    """(n, in_channels, h, w) float → logits (n, out_channels, h − 2·margin, w − 2·margin).

    h and w are multiples of ``2**depth``. `base_width` channels at full resolution, twice as many per
    level. `dropout` drops whole channels at the two deepest levels of the contracting path (the paper
    drops at its end), in training only.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        base_width: int = 16,
        depth: int = 4,
        norm: Norm = "batch",
        padding: Padding = "same",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.depth, self.padding = depth, padding
        self.trim = _trim(depth) if padding == "valid" else 0
        widths = [base_width * 2**level for level in range(depth + 1)]
        self.widths = widths[-2::-1]
        """Channels of :meth:`features`."""
        self.down = nn.ModuleList(
            DoubleConv(inputs, outputs, norm, padding)
            for inputs, outputs in zip([in_channels, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.ModuleList(
            nn.Dropout2d(dropout) if dropout > 0 and level >= depth - 1 else nn.Identity()
            for level in range(depth + 1)
        )
        self.widen = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in self.widths)
        self.up = nn.ModuleList(DoubleConv(2 * width, width, norm, padding) for width in self.widths)
        self.head = nn.Conv2d(base_width, out_channels, 1)
        self._initialise()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for feature in self.features(x):
            x = feature
        return self.head(x)

    def features(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """What each level of the expanding path answers, the coarsest first; the last is what the head sees."""
        if self.trim:
            x = x[:, :, self.trim : -self.trim, self.trim : -self.trim]
        return contract_expand(x, self.down, self.pool, self.drop, self.widen, self.up)

    def set_prior(self, frequencies: Sequence[float], activation: Literal["softmax", "sigmoid"]) -> None:
        """Start the head at the class frequencies (one per output), so that the first steps are not
        spent on learning how common each class is (Lin et al. 2017, section 4.1)."""
        start_at_prior(self.head, frequencies, activation)

    def _initialise(self) -> None:
        """He et al. (2015) where a ReLU follows; a small head, so that it first answers the prior."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                # fan_out of a stride-2 transposed convolution counts what one output pixel sums
                mode: Literal["fan_in", "fan_out"] = "fan_in" if isinstance(module, nn.Conv2d) else "fan_out"
                nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.head.weight, std=0.01)


def contract_expand(
    x: torch.Tensor,
    down: Iterable[nn.Module],
    pool: nn.Module,
    drop: Iterable[nn.Module],
    widen: Iterable[nn.Module],
    up: Iterable[nn.Module],
) -> Iterator[torch.Tensor]:
    """The U itself: `down` and `drop` per level with `pool` between, then `widen`, join and `up` per level.

    Yields what every `up` answers, the coarsest first, and holds on to none of them.
    """
    skips: list[torch.Tensor] = []
    for level, (block, dropout) in enumerate(zip(down, drop, strict=True)):
        x = dropout(block(x if level == 0 else pool(x)))
        skips.append(x)
    skips.pop()
    for widening, block in zip(widen, up, strict=True):
        x = widening(x)
        x = block(torch.cat([_centre(skips.pop(), x), x], dim=1))
        yield x


def start_at_prior(
    head: nn.Conv2d, frequencies: Sequence[float], activation: Literal["softmax", "sigmoid"]
) -> None:
    """Set the bias of the last convolution so that the first answer is the class frequencies, one per output."""
    prior = torch.tensor(frequencies, dtype=head.weight.dtype).clamp(_RAREST, 1 - _RAREST)
    with torch.no_grad():
        head.bias.copy_(prior.log() if activation == "softmax" else prior.logit())  # type: ignore[union-attr]


def _centre(skip: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The middle of `skip`, as big as `x`."""
    top, left = (skip.shape[2] - x.shape[2]) // 2, (skip.shape[3] - x.shape[3]) // 2
    return skip[:, :, top : top + x.shape[2], left : left + x.shape[3]]
