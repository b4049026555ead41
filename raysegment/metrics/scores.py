"""Scores of a segmentation, from pixel counts alone.

Counts add up over blocks, images and workers; only the final sum is turned into scores, once. A mean of
per-image scores is another number, on CamVid by up to 0.14, and is named so. Shared by `train` and `evaluate`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

#: What of the scores is counted beside the confusion matrix, if it is.
_COUNTED = ("mean_iou_per_image", "mean_dice_per_image", "boundary_f1", "v_rand")


def confusion(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Pixel counts int64 (classes, classes), rows = truth, columns = prediction.

    Both arrays hold class indices, any integer dtype, equal shapes. A pixel whose truth lies outside
    ``0 … classes - 1`` is left out (ignore); a prediction outside it, over valid truth, raises ValueError:
    what such a pixel means (a miss, nodata) is for the caller to say first.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
    counted = (truth >= 0) & (truth < classes)
    t = truth[counted].astype(np.int64)
    p = prediction[counted].astype(np.int64)
    if p.size and (p.min() < 0 or p.max() >= classes):
        raise ValueError(f"prediction holds {p.min()} … {p.max()}, the classes are 0 … {classes - 1}")
    return np.bincount(t * classes + p, minlength=classes * classes).reshape(classes, classes)


@dataclass(frozen=True, slots=True)
class ClassScore:
    """How well one class was found."""

    iou: float
    """Intersection over union, TP / (TP + FP + FN)."""
    dice: float
    """2 TP / (2 TP + FP + FN), which is the F1 score."""
    precision: float
    """TP / (TP + FP); 0 where nothing was predicted."""
    recall: float
    """TP / (TP + FN); 0 where there is no support."""
    support: int
    """Pixels of this class in the truth."""

    def to_json(self) -> dict[str, float | int]:
        return {
            "iou": self.iou,
            "dice": self.dice,
            "precision": self.precision,
            "recall": self.recall,
            "support": self.support,
        }


@dataclass(frozen=True, slots=True)
class Scores:
    """Everything that a confusion matrix says."""

    classes: dict[str, ClassScore]
    mean_iou: float
    """Mean over the classes that occur in truth or prediction; a class absent from both is left out."""
    mean_dice: float
    accuracy: float
    """Share of pixels whose class is right."""
    constant_accuracy: float
    """Accuracy of the best constant answer: the commonest class everywhere. What any model must beat."""
    confusion: tuple[tuple[int, ...], ...]
    """Pixel counts, rows = truth."""
    mean_iou_per_image: float | None = None
    """Mean over the images of each image's own mean IoU, over the classes that occur in it. This and the following are
    None where they were not counted: a confusion matrix does not hold them."""
    mean_dice_per_image: float | None = None
    boundary_f1: float | None = None
    """Mean over the classes that have outlines of how well these are placed, NaN where no class has any; see
    boundary.py."""
    v_rand: float | None = None
    """Which cells membranes keep apart; see rand.py."""

    @classmethod
    def of(cls, confusion: np.ndarray, names: Sequence[str], missed: np.ndarray | None = None) -> Self:
        """Scores of counts (C, C), rows = truth, one name per class. Without any pixel every score is 0.

        `missed` (C,): further pixels of each class in the truth that were given no class at all. They are wrong:
        they lower recall, IoU, Dice and accuracy of their class, and no class's precision.
        """
        counts = np.asarray(confusion, dtype=np.int64)
        if counts.shape != (len(names), len(names)):
            raise ValueError(f"a confusion matrix of shape {counts.shape} does not fit {len(names)} classes")
        hit, predicted = np.diag(counts), counts.sum(axis=0)
        support = counts.sum(axis=1) + (0 if missed is None else np.asarray(missed, dtype=np.int64))
        union = support + predicted - hit
        present = union > 0
        iou = ratio(hit, union)
        dice = ratio(2 * hit, support + predicted)
        precision, recall = ratio(hit, predicted), ratio(hit, support)
        total = int(support.sum())
        return cls(
            classes={
                name: ClassScore(
                    float(iou[i]), float(dice[i]), float(precision[i]), float(recall[i]), int(support[i])
                )
                for i, name in enumerate(names)
            },
            mean_iou=float(iou[present].mean()) if present.any() else 0.0,
            mean_dice=float(dice[present].mean()) if present.any() else 0.0,
            accuracy=int(hit.sum()) / total if total else 0.0,
            constant_accuracy=int(support.max()) / total if total else 0.0,
            confusion=tuple(tuple(int(n) for n in row) for row in counts),
        )

    @property
    def beats_constant(self) -> bool:
        """Whether the mean IoU is above that of the commonest class everywhere. (Not the accuracy: where a class is
        rare, or membranes are drawn wide to close them, a useful answer has less of that than a constant one.)"""
        supports = [score.support for score in self.classes.values() if score.support]
        return bool(supports) and self.mean_iou > self.constant_accuracy / len(supports)

    @property
    def absent(self) -> frozenset[str]:
        """Classes that occur in neither truth nor prediction: their scores are 0 and say nothing."""
        predicted = zip(self.classes, zip(*self.confusion, strict=True), strict=True)
        return frozenset(
            name for name, column in predicted if not any(column) and not self.classes[name].support
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "classes": {name: score.to_json() for name, score in self.classes.items()},
            "mean_iou": self.mean_iou,
            "mean_dice": self.mean_dice,
            "accuracy": self.accuracy,
            "constant_accuracy": self.constant_accuracy,
            "confusion": [list(row) for row in self.confusion],
            **{name: known(value) for name in _COUNTED if (value := getattr(self, name)) is not None},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What :meth:`to_json` gave, for the pixels that the confusion matrix counts."""
        counted: dict[str, Any] = {name: data[name] for name in _COUNTED if name in data}
        undefined = {name: math.nan for name, value in counted.items() if value is None}
        scores = cls.of(np.array(data["confusion"]), list(data["classes"]))
        return replace(scores, **{**counted, **undefined})


def known(score: float) -> float | None:
    """None, which is null in JSON, for a score that is undefined (NaN, for which JSON has no word)."""
    return None if math.isnan(score) else score


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole in float64, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
