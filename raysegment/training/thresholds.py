"""Operating thresholds: θ per class such that argmax p/θ scores best on validation.

They matter most where a loss answers with timid probabilities (focal: Dice 0.70 at equal thresholds, 0.81
at the best), and for V_Rand, which one gap in a membrane ruins (0.43 at equal thresholds, 0.98 at the best).
They are chosen on the validation pixels, and the model's scores on those pixels are an upper bound for that reason.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysegment.metrics import Scores, confusion
from raysegment.metrics.rand import v_rand
from raysegment.training.metric import Metric

#: What thresholds must gain, on scenes they were not chosen on, to be kept.
_CLEAR_GAIN = 0.005
#: IoU that no class may lose: on a network that is mostly wrong, answering one class everywhere "gains".
_MOST_LOSS = 0.02
#: Factors tried on the odds of one class, and rounds over the classes.
_FACTORS = np.exp(np.linspace(-3, 3, 61))
_ROUNDS = 2
#: Shares of the pixels to call membranes, in units of their true share. Each costs finding all cells anew; membranes
#: that close are mostly about twice as wide as true ones.
_MEMBRANES = np.linspace(0.5, 3.0, 21)
#: … and for an epoch's score.
_FEW_MEMBRANES = np.linspace(0.5, 3.0, 11)
#: No more of the pixels than this are called membranes, and their odds are not changed by more than this factor.
_MOST_MEMBRANES, _MOST_ODDS = 0.9, 1e4
#: V_Rand within this of the best is as good: the middle of those thresholds is taken.
_AS_GOOD = 0.001


def choose(
    probabilities: np.ndarray, truth: np.ndarray, scene: np.ndarray, metric: Metric, names: Sequence[str]
) -> tuple[float, ...] | None:
    """θ per class, summing to 1, or None when equal thresholds do as well or a class would pay.

    `probabilities` (m, C), `truth` and `scene` (m,) of validation pixels; `metric` one that pixels alone tell.
    Chosen on every second scene and judged on the others, both ways; then chosen on all. One scene is split into two
    halves of its pixels. A class that validation does not hold keeps its odds against the commonest: nothing is known
    of it.
    """
    known = np.unique(scene)
    if len(known) > 1:
        half = np.isin(scene, known[::2])
    else:
        half = np.arange(len(scene)) < len(scene) // 2
    seen = _Pixels(probabilities, truth, metric, names)
    equal = np.ones(len(names))
    gains = []
    for here in (half, ~half):
        weights, judged = _best_weights(seen.only(here)), seen.only(~here)
        gains.append(metric.value(judged.scores(weights)) - metric.value(judged.scores(equal)))
    if min(gains) <= 0 or sum(gains) / 2 < _CLEAR_GAIN:
        return None
    weights = _best_weights(seen)
    before, after = seen.scores(equal).classes, seen.scores(weights).classes
    if any(after[name].iou < score.iou - _MOST_LOSS for name, score in before.items()):
        return None
    return _theta(weights)


def for_membranes(
    probabilities: np.ndarray, truth: np.ndarray, membrane: int, *, few: bool = False
) -> list[tuple[float, ...]]:
    """Thresholds θ to try for V_Rand, from the fewest membranes to the most, equal ones among them.

    `probabilities` (m, C) and `truth` (m,) of validation pixels: how timid a network is depends on its loss, so what is
    tried are shares of the pixels that become membranes.
    """
    wanted = (truth == membrane).sum() / max(1, len(truth)) * (_FEW_MEMBRANES if few else _MEMBRANES)
    wanted = wanted[(wanted > 0) & (wanted <= _MOST_MEMBRANES)]
    others = np.delete(probabilities, membrane, axis=1).max(axis=1, initial=0)
    odds = probabilities[:, membrane] / np.maximum(others, np.finfo(np.float32).tiny)
    factors = [1.0]
    if len(wanted):
        least = np.quantile(odds, 1 - wanted).clip(1 / _MOST_ODDS, _MOST_ODDS)
        factors = sorted({1.0, *(1 / least).tolist()})
    weights = np.ones((len(factors), probabilities.shape[1]))
    weights[:, membrane] = factors
    return [_theta(w) for w in weights]


def best_for_membranes(tried: Sequence[tuple[float, ...]], pairs: np.ndarray) -> tuple[float, ...] | None:
    """Of the thresholds tried, in order, the middle of those that are as good as the best; None = equal ones.

    `pairs` (tried, 3): the summed :func:`~raysegment.metrics.rand.rand_counts` of each.
    """
    scores = np.array([v_rand(p) for p in pairs])
    best = int(scores.argmax())
    if scores[best] == 0:  # no true cells: nothing is known
        return None
    as_good = scores >= scores[best] - _AS_GOOD
    first = last = best
    while first > 0 and as_good[first - 1]:
        first -= 1
    while last + 1 < len(scores) and as_good[last + 1]:
        last += 1
    theta = tried[(first + last) // 2]
    return None if len(set(theta)) == 1 else theta


class _Pixels:
    """Validation pixels and the score that is wanted of them."""

    def __init__(self, p: np.ndarray, truth: np.ndarray, metric: Metric, names: Sequence[str]) -> None:
        self.p, self.truth, self.metric, self.names = p, truth, metric, names

    def only(self, these: np.ndarray) -> _Pixels:
        return _Pixels(self.p[these], self.truth[these], self.metric, self.names)

    def scores(self, weights: np.ndarray) -> Scores:
        labels = (self.p * weights.astype(self.p.dtype)).argmax(axis=1)
        return Scores.of(confusion(self.truth, labels, len(self.names)), self.names)


def _best_weights(seen: _Pixels) -> np.ndarray:
    """1/θ up to a factor, by ascent along one class at a time; the commonest stays at 1, as do the absent."""
    support = np.bincount(seen.truth, minlength=len(seen.names))
    moved = [c for c in np.flatnonzero(support) if c != support.argmax()]
    weights = np.ones(len(seen.names))
    best = seen.metric.value(seen.scores(weights))
    for _ in range(_ROUNDS if len(moved) > 1 else 1):
        for c in moved:
            centre = weights[c]
            for factor in _FACTORS:
                tried = weights.copy()
                tried[c] = centre * factor
                score = seen.metric.value(seen.scores(tried))
                if score > best:
                    best, weights = score, tried
    return weights


def _theta(weights: np.ndarray) -> tuple[float, ...]:
    return tuple(float(t) for t in 1 / weights / (1 / weights).sum())
