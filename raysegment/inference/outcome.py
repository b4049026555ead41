"""From fixed-point sums to what is written: class, probabilities, uncertainty. The one rule, for cores and for rims.

Sums are int32 (plan.sums, h, w) in units of 2⁻³⁰, a NumPy array or a tensor on any device: one plane per class, or
a single one for the second of two classes, the first being what is left; then, where uncertainty is wanted, one
plane of Σ ŵ·mean_c p_c². Integers all the way: where nothing is rounded, order cannot show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raysegment.inference.blend import FIXED_POINT_BITS

if TYPE_CHECKING:
    from raysegment.inference.plan import Plan

ONE = 1 << FIXED_POINT_BITS
#: A sum of one may be off by this much: weight and product are float32 (2⁻²⁴ each), and every tile is rounded once.
_ROUNDING = 1 << (FIXED_POINT_BITS - 22)


def outcome(sums: Any, plan: Plan) -> dict[str, np.ndarray]:
    """What the plan wants to be written of pixels whose sums are whole.

    "labels" (h, w) of the plan's label dtype; where wanted "probabilities" uint8 (classes, h, w), round(255·p),
    and "uncertainty" uint8 (h, w), round(255·min(1, 4·Σ_c ŵ-weighted variance)).
    """
    classes = len(plan.classes)
    found = {"labels": labels_of(sums[: plan.planes], classes, plan.thresholds, plan.label_dtype)}
    if plan.probabilities:
        scaled = (_wide(all_planes(sums[: plan.planes], classes)) * 255 + ONE // 2) >> FIXED_POINT_BITS
        found["probabilities"] = _host(scaled).clip(0, 255).astype(np.uint8)
    if plan.uncertainty:
        found["uncertainty"] = _uncertainty(sums, plan)
    return found


def labels_of(sums: Any, classes: int, thresholds: tuple[float, ...] | None, dtype: np.dtype) -> np.ndarray:
    """argmax over classes of p_c / θ_c, ties to the lower index: `sums` (planes, h, w) → (h, w) of `dtype`.

    Comparisons class by class: `argmax` over a leading axis is seventy times slower.
    """
    if len(sums) == 1 and classes == 2:
        first, second = thresholds or (1.0, 1.0)
        # The first class's own sum would be off alike; what is left of one is not, so a tie is within rounding.
        return _host(sums[0] > int(ONE * (second / (first + second))) + _ROUNDING).astype(dtype)
    scores = (
        sums
        if thresholds is None
        else [plane / t for plane, t in zip(_double(sums), thresholds, strict=True)]
    )
    xp = _namespace(sums)
    best = scores[0]
    label = xp.zeros_like(best, dtype=xp.uint8 if dtype == np.uint8 else xp.int32)
    for index in range(1, len(scores)):
        better = scores[index] > best
        label[better] = index
        if index + 1 < len(scores):
            best = xp.maximum(best, scores[index])
    return _host(label).astype(dtype, copy=False)


def all_planes(sums: Any, classes: int) -> Any:
    """One plane per class: (planes, h, w) → (classes, h, w)."""
    if len(sums) == classes:
        return sums
    return _namespace(sums).stack([ONE - sums[0], sums[0]])


def _uncertainty(sums: Any, plan: Plan) -> np.ndarray:
    means = _double(all_planes(sums[: plan.planes], len(plan.classes))) / ONE
    variance = _double(sums[plan.planes]) / ONE * len(plan.classes) - (means * means).sum(0)
    return (_host(variance * 4).clip(0, 1) * 255).round().astype(np.uint8)


def _namespace(array: Any) -> Any:
    """numpy or torch, whichever made the array (the stitcher has no torch to load)."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch


def _wide(array: Any) -> Any:
    return array.astype(np.int64) if isinstance(array, np.ndarray) else array.long()


def _double(array: Any) -> Any:
    return array.astype(np.float64) if isinstance(array, np.ndarray) else array.double()


def _host(array: Any) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()
