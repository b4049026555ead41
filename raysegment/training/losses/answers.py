"""What every term of the loss is given: this worker's pixels, and what crosses the workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from raysegment.training.parallel import Workers
from raysegment.training.windows import IGNORE

Activation = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Answers:
    """This worker's share of the batch. A term turns it into the loss of the whole batch."""

    logits: torch.Tensor
    """(n, outputs, h, w) float32 or float64, whatever the network computes in."""
    target: torch.Tensor
    """(n, h, w) int64 class indices; 0 where the pixel does not count."""
    valid: torch.Tensor
    """(n, h, w) 1 where the pixel counts, otherwise 0."""
    weights: torch.Tensor | None
    """One per class."""
    activation: Activation
    workers: Workers
    count: torch.Tensor
    """Valid pixels of the whole batch, at least 1."""

    @classmethod
    def of(
        cls,
        logits: torch.Tensor,
        target: torch.Tensor,
        weights: Sequence[float] | None,
        activation: Activation,
        workers: Workers,
    ) -> Answers:
        """`target` (n, h, w) holds class indices or IGNORE. All workers meet here, to count the valid pixels."""
        exact = logits if logits.dtype == torch.float64 else logits.float()
        valid = target != IGNORE
        return cls(
            exact,
            torch.where(valid, target, 0).long(),
            valid.to(exact.dtype),
            None if weights is None else torch.tensor(weights, dtype=exact.dtype, device=exact.device),
            activation,
            workers,
            workers.sum(valid.sum()).clamp(min=1),
        )

    @property
    def one_hot(self) -> torch.Tensor:
        """(n, outputs, h, w): the class as 0 and 1; of one output, whether it is class 1."""
        if self.logits.shape[1] == 1:
            return self.target[:, None].to(self.logits.dtype)
        return F.one_hot(self.target, self.logits.shape[1]).permute(0, 3, 1, 2).to(self.logits.dtype)

    def mean(self, per_pixel: torch.Tensor) -> torch.Tensor:
        """Weighted sum of (n, h, w) over the valid pixels of the whole batch, by their count."""
        per_pixel = per_pixel * self.valid
        if self.weights is not None:
            per_pixel = per_pixel * self.weights[self.target]
        return self.workers.total(per_pixel.sum()) / self.count

    def mean_class(self, losses: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Mean of (…, classes) over the classes that are `present`, by their weights; 0 where none is."""
        weights = present.to(losses.dtype)
        if self.weights is not None:
            weights = weights * self.weights
        return (losses * weights).sum(-1) / weights.sum(-1).clamp(min=torch.finfo(losses.dtype).tiny)
