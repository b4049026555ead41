"""`evaluate`: from two masks to scores."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysegment.classes import NO_CLASS, ClassMap
from raysegment.errors import UsageError
from raysegment.evaluation.alignment import Alignment
from raysegment.evaluation.counts import Counts, count_pairs
from raysegment.evaluation.meaning import MISS, Side, classes_named, meanings
from raysegment.metrics import ClassScore, Scores


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """Scores of one mask. Every pixel of the truth under it is counted once: in `confusion`, `missed_pixels`
    or `ignored_pixels`."""

    classes: dict[str, ClassScore]
    """Per class name. `support` and `recall` count missed pixels too."""
    mean_iou: float
    """Over the classes that occur in truth or prediction; from the whole image's counts."""
    mean_dice: float
    accuracy: float
    constant_accuracy: float
    """Accuracy of the best constant answer: what any model must beat."""
    confusion: tuple[tuple[int, ...], ...]
    """Pixel counts, rows = truth, columns = prediction. Missed pixels are in no column."""
    ignored_pixels: int
    """Truth without a class: nodata and ignore."""
    missed_pixels: int
    """Predicted nodata over valid truth: wrong for the truth's class, right or wrong for no other."""

    @property
    def exit_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, Any]:
        return {
            "classes": {name: score.to_json() for name, score in self.classes.items()},
            "mean_iou": self.mean_iou,
            "mean_dice": self.mean_dice,
            "accuracy": self.accuracy,
            "constant_accuracy": self.constant_accuracy,
            "confusion": [list(row) for row in self.confusion],
            "ignored_pixels": self.ignored_pixels,
            "missed_pixels": self.missed_pixels,
        }

    def summary(self) -> str:
        # as `mean` has them: where the truth is, and where it is not but the prediction is
        answered = map(sum, zip(*self.confusion, strict=True))
        present = {n: s for (n, s), px in zip(self.classes.items(), answered, strict=True) if s.support or px}
        width = max([len("class"), *map(len, present)])
        lines = [f"{'class':<{width}}     IoU    Dice  precision  recall          pixels"]
        lines += [
            f"{name:<{width}}  {s.iou:6.4f}  {s.dice:6.4f}     {s.precision:6.4f}  {s.recall:6.4f}"
            f"  {s.support:>14,}"
            for name, s in present.items()
        ]
        lines.append(f"{'mean':<{width}}  {self.mean_iou:6.4f}  {self.mean_dice:6.4f}")
        lines.append(
            f"accuracy {self.accuracy:.4f}; the best constant answer has {self.constant_accuracy:.4f}"
        )
        if self.missed_pixels:
            lines.append(f"{self.missed_pixels:,} px of valid truth have no prediction and count as wrong")
        if self.ignored_pixels:
            lines.append(f"{self.ignored_pixels:,} px of the truth have no class and are left out")
        return "\n".join(lines)


def evaluate(
    prediction: str | os.PathLike[str],
    truth: str | os.PathLike[str],
    *,
    classes: str | os.PathLike[str] | ClassMap | None = None,
    select: Mapping[str, int] | None = None,
) -> EvaluateResult:
    """Score the mask `prediction` against `truth`, both of any readable format and size.

    The truth's pixel values get their classes from `classes` (a classes file), or from its own coding if it
    is a mask of ours, or from the source values in the prediction's coding, or they are class indices.
    A mask of a region is compared with that region of the truth, a mask of another resolution at the truth's: each
    pixel of the truth with the one of the mask under its centre. `select`: the plane of either that has further axes,
    {"z": 0}. Raises InputError when the sizes do not fit or a value belongs to no class, UsageError for a `select`
    that does not fit.
    """
    mapping = classes if classes is None or isinstance(classes, ClassMap) else ClassMap.load(classes)
    p, t = Side.open("prediction", prediction, select), Side.open("truth", truth, select)
    try:
        if select and not p.raster.select and not t.raster.select:
            raise UsageError(
                f"--select fits neither {prediction} nor {truth}, which are one plane: leave it out"
            )
        named = classes_named(p, t, mapping)
        counts = count_pairs(p.raster, t.raster, Alignment.of(p, t), named)
        return _scored(counts, *meanings(p, t, counts.predicted_codes, counts.truth_codes, mapping))
    finally:
        p.raster.close()
        t.raster.close()


def _scored(
    counts: Counts, names: Sequence[str], of_prediction: Mapping[int, int], of_truth: Mapping[int, int]
) -> EvaluateResult:
    confusion = np.zeros((len(names), len(names)), np.int64)
    missed = np.zeros(len(names), np.int64)
    ignored = counts.no_truth
    predicted = [(of_truth[t], of_prediction[p], n) for (t, p), n in counts.pairs.items()]
    unpredicted = [(of_truth[t], MISS, n) for t, n in counts.unpredicted.items()]
    for row, column, n in predicted + unpredicted:
        if row == NO_CLASS:
            ignored += n
        elif column == MISS:
            missed[row] += n
        else:
            confusion[row, column] += n
    scores = Scores.of(confusion, names, missed)
    return EvaluateResult(
        classes=scores.classes,
        mean_iou=scores.mean_iou,
        mean_dice=scores.mean_dice,
        accuracy=scores.accuracy,
        constant_accuracy=scores.constant_accuracy,
        confusion=scores.confusion,
        ignored_pixels=ignored,
        missed_pixels=int(missed.sum()),
    )
