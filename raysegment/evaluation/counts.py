"""How often each pair of stored values meets in two masks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from raysegment import console
from raysegment.classes import distinct, pixel_codes
from raysegment.errors import InputError
from raysegment.geometry import Size, Window
from raysegment.raster.walk import WINDOW_PIXELS, windows

if TYPE_CHECKING:
    from raysegment.evaluation.alignment import Alignment
    from raysegment.raster import Raster

#: More different values than this in one image: it is a picture, not a mask.
MOST_VALUES = 4096


@dataclass
class Counts:
    """How often stored codes meet. Truth without data is only counted."""

    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(truth code, predicted code) → pixels."""
    unpredicted: Counter[int] = field(default_factory=Counter)
    """Truth code → pixels whose prediction has no data."""
    no_truth: int = 0

    @property
    def predicted_codes(self) -> list[int]:
        return sorted({p for _, p in self.pairs})

    @property
    def truth_codes(self) -> list[int]:
        return sorted({t for t, _ in self.pairs} | set(self.unpredicted))


def count_pairs(
    prediction: Raster, truth: Raster, alignment: Alignment, named: frozenset[int] = frozenset()
) -> Counts:
    """Count the pairs of codes over all pixels of the truth that the prediction answers.

    `named`: codes that are classes of the truth even where they are its nodata value.
    """
    rows, cols, area = alignment.rows, alignment.cols, alignment.covered
    chunk = Size(
        max(truth.chunk.height, ceil(prediction.chunk.height / rows.ratio)),
        max(truth.chunk.width, ceil(prediction.chunk.width / cols.ratio)),
    )
    # what is read of a prediction that is finer than its truth must not outgrow a window either
    pixels = max(1, int(WINDOW_PIXELS / (max(1.0, float(rows.ratio)) * max(1.0, float(cols.ratio)))))
    counts = Counts()
    with console.progress("evaluate", area.area / 1e6, "MP") as progress:
        for window in windows(area, chunk, pixels):
            under = rows.under(window.y, window.bottom), cols.under(window.x, window.right)
            hull = Window.between(*(int(axis[0]) for axis in under), *(int(axis[-1]) + 1 for axis in under))
            p, p_valid = _codes(prediction, hull)
            if hull.size != window.size:  # otherwise pixel on pixel
                ys, xs = under[0] - hull.y, under[1] - hull.x
                p = p.take(xs, axis=1).take(ys, axis=0)  # three times as fast as indexing both at once
                p_valid = None if p_valid is None else p_valid.take(xs, axis=1).take(ys, axis=0)
            t, t_valid = _codes(truth, window)
            if t_valid is not None and truth.nodata in named:
                t_valid = t_valid | (t == truth.nodata)
            _count(counts, p, p_valid, t, t_valid)
            progress.advance(window.area / 1e6)
    return counts


def _codes(raster: Raster, window: Window) -> tuple[np.ndarray, np.ndarray | None]:
    pixels = raster.read(window)
    try:
        return pixel_codes(pixels), raster.valid(window, pixels)
    except InputError as e:
        raise InputError(f"{raster.path}: {e}") from e


def _count(
    counts: Counts, p: np.ndarray, p_valid: np.ndarray | None, t: np.ndarray, t_valid: np.ndarray | None
) -> None:
    if t_valid is not None:
        counts.no_truth += t_valid.size - int(np.count_nonzero(t_valid))
        p, t = p[t_valid], t[t_valid]
        p_valid = p_valid[t_valid] if p_valid is not None else None
    if p_valid is not None:
        values, index = _compact(t[~p_valid])
        counts.unpredicted.update(_numbered(values, np.bincount(index, minlength=len(values))))
        p, t = p[p_valid], t[p_valid]
    if t.dtype == p.dtype == np.uint8:  # nearly every mask: three times as fast as what is right for all
        t_values = p_values = np.arange(256)
        joint = np.bincount((t.astype(np.uint16) << 8 | p).reshape(-1), minlength=1 << 16)
    else:
        (t_values, t_index), (p_values, p_index) = _compact(t), _compact(p)
        joint = np.bincount(t_index * len(p_values) + p_index, minlength=len(t_values) * len(p_values))
    for i in np.flatnonzero(joint):
        row, column = divmod(int(i), len(p_values))
        counts.pairs[int(t_values[row]), int(p_values[column])] += int(joint[i])


def _compact(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, index = distinct(codes)
    if len(values) > MOST_VALUES:
        raise InputError(f"more than {MOST_VALUES} different pixel values: a picture, not a mask")
    return values, index


def _numbered(values: np.ndarray, numbers: np.ndarray) -> dict[int, int]:
    return {int(v): int(n) for v, n in zip(values, numbers, strict=True)}
