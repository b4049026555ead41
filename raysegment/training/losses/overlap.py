"""Dice and Tversky: how much of each class is found, from sums over the pixels of the whole batch."""

from __future__ import annotations

import torch

from raysegment.training.losses.answers import Answers

#: Pixels added to what is found and to what there is, so that a class of no pixels has a score.
_SMOOTH = 0.5
#: A power below one has no finite slope where nothing is missing.
_LEAST_MISS = 1e-6


def dice(a: Answers) -> torch.Tensor:
    """1 − soft Dice of the batch, mean over the classes that occur in it."""
    return tversky(a, alpha=0.5, beta=0.5)


def tversky(a: Answers, alpha: float = 0.3, beta: float = 0.7, gamma: float = 1.0) -> torch.Tensor:
    """(1 − TP / (TP + α·FP + β·FN))^γ of the batch, mean over the classes that occur in it.

    Salehi et al. 2017: β above α prefers false alarms to misses. γ other than 1 is the focal Tversky loss (Abraham
    and Khan 2018, whose exponent is 1/γ). α = β = ½ is Dice.
    """
    y = a.one_hot
    p = a.logits.softmax(dim=1) if a.activation == "softmax" else a.logits.sigmoid()
    if p.shape[1] == 1:
        p, y = torch.cat([1 - p, p], dim=1), torch.cat([1 - y, y], dim=1)
    p, y = p * a.valid[:, None], y * a.valid[:, None]
    sums = [t.sum(dim=(0, 2, 3)) for t in (p * y, p, y)]
    both, predicted, true = a.workers.total(torch.stack(sums))
    whole = both + alpha * (predicted - both) + beta * (true - both)
    missing = 1 - (both + _SMOOTH) / (whole + _SMOOTH)
    if gamma != 1:
        missing = missing.clamp(min=_LEAST_MISS) ** gamma
    return a.mean_class(missing, true > 0)
