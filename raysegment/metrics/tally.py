"""Everything that is counted of a set of images, to be summed over workers and turned into scores once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from raysegment.metrics.boundary import boundary_counts, boundary_f1
from raysegment.metrics.rand import cells, rand_counts, v_rand
from raysegment.metrics.scores import Scores, confusion, ratio


class Tally:
    """Counts of `images` images of `classes` classes, all int64: sums that no order of adding can change."""

    def __init__(
        self, images: int, classes: int, *, boundaries: bool = False, membrane: int | None = None
    ) -> None:
        """`boundaries`: whether outlines are compared; `membrane`: the class whose cells are, for V_Rand."""
        self.boundaries, self.membrane = boundaries, membrane
        self.confusion = np.zeros((classes, classes), np.int64)
        self.per_image = np.zeros((images, 3, classes), np.int64)
        """Pixels of each class: right, in the truth, in the prediction."""
        self.outlines = np.zeros((classes, 4), np.int64)
        """See :func:`~raysegment.metrics.boundary.boundary_counts`."""
        self.pairs = np.zeros(3, np.int64)
        """See :func:`~raysegment.metrics.rand.rand_counts`."""

    def add(self, image: int, truth: np.ndarray, prediction: np.ndarray) -> None:
        """A part of an image, or all of it: class indices (h, w), truth outside the classes where nothing counts.

        Outlines and cells are those of the part: give images whole where they are to be whole.
        """
        classes = len(self.confusion)
        counts = confusion(truth, prediction, classes)
        self.confusion += counts
        self.per_image[image] += np.stack([np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)])
        if self.boundaries:
            self.outlines += boundary_counts(truth, prediction, classes)
        if self.membrane is not None:
            self.pairs += rand_counts(true_cells(truth, classes, self.membrane), prediction == self.membrane)

    @property
    def counts(self) -> np.ndarray:
        """All of it as one array int64 (n,), which adds up over workers."""
        return np.concatenate([a.ravel() for a in self._arrays()])

    @counts.setter
    def counts(self, summed: np.ndarray) -> None:
        at = 0
        for array in self._arrays():
            array[...] = summed[at : at + array.size].reshape(array.shape)
            at += array.size

    def scores(self, names: Sequence[str]) -> Scores:
        """Of everything that was added, with one name per class."""
        scores = Scores.of(self.confusion, names)
        right, true, found = self.per_image.transpose(1, 0, 2)
        f1 = boundary_f1(self.outlines)
        return replace(
            scores,
            mean_iou_per_image=_mean_per_image(right, true + found - right),
            mean_dice_per_image=_mean_per_image(2 * right, true + found),
            boundary_f1=_mean(f1[np.isfinite(f1)], of_none=math.nan) if self.boundaries else None,
            v_rand=v_rand(self.pairs) if self.membrane is not None else None,
        )

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.confusion, self.per_image, self.outlines, self.pairs


def true_cells(truth: np.ndarray, classes: int, membrane: int) -> np.ndarray:
    """Cells of the truth, numbered from 1; 0 on membranes and where nothing counts."""
    return cells((truth == membrane) | (truth < 0) | (truth >= classes))


def _mean_per_image(part: np.ndarray, whole: np.ndarray) -> float:
    """Mean over the images of the mean over the classes that occur in the image, of (images, classes)."""
    present = whole > 0
    each = ratio(part, whole).sum(axis=1)
    seen = present.any(axis=1)
    return _mean(each[seen] / present[seen].sum(axis=1))


def _mean(values: np.ndarray, of_none: float = 0.0) -> float:
    return float(values.mean()) if values.size else of_none
