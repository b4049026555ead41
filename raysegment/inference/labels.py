"""From summed class probabilities to class indices: the one rule, for cores and for rims."""

from __future__ import annotations

from typing import Any

import numpy as np


def labels_of(sums: Any, thresholds: tuple[float, ...] | None, dtype: np.dtype) -> np.ndarray:
    """argmax over classes of p_c / θ_c; ties go to the lower index.

    `sums`: probabilities in fixed point, int32 (classes, h, w), a NumPy array or a tensor on any device.
    Comparisons class by class: `argmax` over a leading axis is seventy times slower. Returns (h, w) of `dtype`.
    """
    xp = _namespace(sums)
    scores = (
        sums
        if thresholds is None
        else [plane / t for plane, t in zip(_double(sums), thresholds, strict=True)]
    )
    best = scores[0]
    label = xp.zeros_like(best, dtype=xp.uint8 if dtype == np.uint8 else xp.int32)
    for index in range(1, len(scores)):
        better = scores[index] > best
        label[better] = index
        if index + 1 < len(scores):
            best = xp.maximum(best, scores[index])
    host = label if isinstance(label, np.ndarray) else label.cpu().numpy()
    return host.astype(dtype, copy=False)


def _namespace(array: Any) -> Any:
    """numpy or torch, whichever made the array (the stitcher has no torch to load)."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch


def _double(array: Any) -> Any:
    return array.astype(np.float64) if isinstance(array, np.ndarray) else array.double()
