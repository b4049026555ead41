"""The score that decides which model is kept, as the user names it: ``mean_iou``, ``iou:road``, ``v_rand`` …"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from raysegment.errors import UsageError
from raysegment.metrics import Scores

#: Names of scores, and whether a class may follow: "iou:road".
_OF_ALL = ("mean_iou", "mean_dice", "accuracy", "mean_iou_per_image", "mean_dice_per_image", "boundary_f1")
_OF_ONE = ("iou", "dice", "v_rand")


@dataclass(frozen=True, slots=True)
class Metric:
    """A score and the class that it is of, if it is of one."""

    name: str
    of_class: str | None = None

    @classmethod
    def parse(cls, text: str) -> Metric:
        """Raises UsageError naming the nearest score, before the classes are known."""
        name, colon, of_class = text.partition(":")
        known = [*_OF_ALL, *(f"{each}:CLASS" for each in _OF_ONE)]
        if name not in (*_OF_ALL, *_OF_ONE):
            near = difflib.get_close_matches(name, [*_OF_ALL, *_OF_ONE], n=1, cutoff=0)[0]
            raise UsageError(f"--metric {text!r}: the nearest is {near!r}; there are {', '.join(known)}")
        if colon and name in _OF_ALL:
            raise UsageError(f"--metric {text!r}: {name} is of all classes: write {name}")
        if name in ("iou", "dice") and not of_class:
            raise UsageError(f"--metric {text!r}: write {name}:CLASS, or mean_{name}")
        return cls(name, of_class or None)

    @classmethod
    def of(cls, text: str, names: Sequence[str], shares: Sequence[float]) -> Metric:
        """The same for classes of these names that hold these shares of the training pixels.

        Membranes, if none are named, are the rarer of two classes. Raises UsageError for a class that is none.
        """
        metric = cls.parse(text)
        if metric.of_class is not None and metric.of_class not in names:
            near = difflib.get_close_matches(metric.of_class, names, n=1, cutoff=0)[0]
            raise UsageError(
                f"--metric {text!r}: no class {metric.of_class!r} among {', '.join(names)}; the nearest is {near!r}"
            )
        if metric.name != "v_rand" or metric.of_class is not None:
            return metric
        if len(names) > 2:
            raise UsageError(
                f"--metric v_rand: which class are membranes? Write v_rand:{names[0]} or the like"
            )
        return cls("v_rand", names[min(range(2), key=lambda c: shares[c])])

    def membrane(self, names: Sequence[str]) -> int | None:
        """Index of the class whose cells are judged; None where the score is another."""
        return list(names).index(self.of_class) if self.name == "v_rand" and self.of_class else None

    @property
    def needs_outlines(self) -> bool:
        return self.name == "boundary_f1"

    @property
    def of_pixels(self) -> Metric:
        """The nearest score that the pixels of a confusion matrix alone can tell."""
        if self.name in ("boundary_f1", "mean_dice_per_image"):
            return Metric("mean_dice")
        return Metric("mean_iou") if self.name == "mean_iou_per_image" else self

    def value(self, scores: Scores) -> float:
        """Between 0 and 1, more is better; NaN where it is undefined."""
        if self.of_class is not None and self.name != "v_rand":
            return float(getattr(scores.classes[self.of_class], self.name))
        return float(getattr(scores, self.name))

    def __str__(self) -> str:
        return self.name if self.of_class is None else f"{self.name}:{self.of_class}"
