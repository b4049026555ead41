"""Lovász losses (Berman, Triki and Blaschko 2018): the convex surface over IoU."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from raysegment.training.losses.answers import Answers


def lovasz(a: Answers) -> torch.Tensor:
    """Lovász-softmax; of one output the Lovász hinge, of both classes.

    It is no sum over pixels, for the pixels are ranked. So each window is ranked by itself, over the classes that
    occur in it, and the mean is over the windows of the whole batch that hold a valid pixel: a window's loss is the
    same whichever worker has it.
    """
    y, valid = a.one_hot.flatten(2), a.valid.flatten(1)
    z = a.logits.flatten(2)
    if z.shape[1] == 1:
        margin = F.relu(1 - z * (2 * y - 1))  # the same seen from either class
        errors, y = margin.expand(-1, 2, -1), torch.cat([1 - y, y], dim=1)
    else:
        p = z.softmax(dim=1) if a.activation == "softmax" else z.sigmoid()
        errors = (y - p).abs()
    y = y * valid[:, None]
    losses = [_of_class(errors[:, c], y[:, c], valid) for c in range(y.shape[1])]
    per_window = a.mean_class(torch.stack(losses, dim=1), y.sum(dim=2) > 0)
    windows = a.workers.sum(valid.any(dim=1).sum()).clamp(min=1)
    return a.workers.total(per_window.sum()) / windows


def _of_class(errors: torch.Tensor, is_class: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """(n,) of (n, pixels): the errors, largest first, each times what it takes from the IoU of the class.

    With I pixels of the class still right and a union of U, a wrong pixel of the class costs 1 / U, one of another
    class I / (U·(U − 1)): in this form nothing cancels in float32.
    """
    order = torch.where(valid > 0, errors.detach(), -1.0).argsort(dim=1, descending=True, stable=True)
    errors, is_class, valid = (t.gather(1, order) for t in (errors, is_class, valid))
    total = is_class.sum(dim=1, keepdim=True)
    right = total - is_class.cumsum(dim=1)
    union = total + (valid - is_class).cumsum(dim=1)
    union = union.clamp(min=1)
    cost = torch.where(is_class > 0, 1 / union, right / (union * (union - 1).clamp(min=1)))
    return (errors * cost * valid).sum(dim=1)
