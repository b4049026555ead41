"""Focal loss (Lin et al. 2017)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from raysegment.training.losses.answers import Answers


def focal(a: Answers, alpha: float = 0.25, gamma: float = 2.0) -> torch.Tensor:
    """α(1−p)^γ·(−log p) where y = 1 and (1−α)p^γ·(−log(1−p)) where y = 0, summed over the outputs.

    α weighs class 1, 1 − α class 0; of more classes, each against the rest. The powers are exp(γ·log p), so that
    value and gradient are finite for every γ ≥ 0 and every logit.
    """
    y, log_p, log_q = a.one_hot, F.logsigmoid(a.logits), F.logsigmoid(-a.logits)
    at_one = -alpha * torch.exp(gamma * log_q) * log_p
    at_zero = -(1 - alpha) * torch.exp(gamma * log_p) * log_q
    return a.mean((y * at_one + (1 - y) * at_zero).sum(dim=1))
