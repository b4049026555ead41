"""Cross-entropy: of a softmax over the classes, or of each output against the rest."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from raysegment.training.losses.answers import Answers


def ce(a: Answers) -> torch.Tensor:
    """Cross-entropy; of one output, the binary one."""
    if a.logits.shape[1] == 1:
        return bce(a)
    return a.mean(F.cross_entropy(a.logits, a.target, reduction="none"))


def bce(a: Answers) -> torch.Tensor:
    """Binary cross-entropy, summed over the outputs."""
    return a.mean(F.binary_cross_entropy_with_logits(a.logits, a.one_hot, reduction="none").sum(dim=1))
