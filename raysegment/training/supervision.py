"""Deep supervision: in training, the coarser levels of the expanding path answer too.

Lee et al. (2015) and, as here, Isensee et al. (2021): a 1×1 convolution on every coarser level, the loss of each
halved from level to level and all divided by their sum. The heads live beside the network, not in it: what
validates, travels in the model file and segments is the network alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from raysegment.training.losses import Loss
from raysegment.training.parallel import Workers


class Supervised(nn.Module):
    """A U-Net and the heads of its coarser levels: `network` is `unet` or `unet-keras`."""

    def __init__(self, network: nn.Module, outputs: int) -> None:
        super().__init__()
        self.network = network
        coarser: list[int] = network.widths[:-1]  # type: ignore[assignment,index]
        self.heads = nn.ModuleList(nn.Conv2d(width, outputs, 1) for width in coarser)
        for head in self.heads:
            nn.init.normal_(head.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(head.bias)  # type: ignore[arg-type]
            if isinstance(network.head, nn.Conv2d):  # which starts at the class frequencies
                head.load_state_dict({**head.state_dict(), "bias": network.head.bias})

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Logits of every level, the finest first."""
        heads = [*self.heads, self.network.head]
        return [head(f) for head, f in zip(heads, self.network.features(x), strict=True)][::-1]  # type: ignore[operator]


def supervised_loss(
    loss: Loss,
    answers: Sequence[torch.Tensor],
    targets: torch.Tensor,
    workers: Workers,
    weights: Sequence[float] | None,
) -> torch.Tensor:
    """The mean loss of all levels, level k weighing 2^−k. `answers` as :class:`Supervised` gives them, `targets`
    (n, t, t) of the finest. A coarse pixel is held to the target at its centre."""
    shares = [0.5**level for level in range(len(answers))]
    parts = []
    for level, (answer, share) in enumerate(zip(answers, shares, strict=True)):
        rows, y = _centres(answer.shape[2], targets.shape[1], 2**level, targets.device)
        columns, x = _centres(answer.shape[3], targets.shape[2], 2**level, targets.device)
        own = loss(answer[:, :, rows, columns], targets[:, y][:, :, x], workers, weights)
        parts.append(share / sum(shares) * own)
    return torch.stack(parts).sum()


def _centres(coarse: int, fine: int, scale: int, device: torch.device) -> tuple[slice, torch.Tensor]:
    """(coarse pixels whose centre lies inside the target, the target's pixel at each centre), along one axis.

    Both have one centre; of an unpadded network the coarse answer reaches beyond the target.
    """
    overhang = (coarse * scale - fine) // 2
    place = torch.arange(coarse, device=device) * scale + scale // 2 - overhang
    inside = torch.nonzero((place >= 0) & (place < fine))[:, 0]
    first, last = int(inside[0]), int(inside[-1])
    return slice(first, last + 1), place[first : last + 1]
