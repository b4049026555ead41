"""Operating thresholds: θ per class such that argmax p/θ scores best on validation.

They matter most where a loss answers with timid probabilities (focal: Dice 0.70 at equal thresholds, 0.81
at the best). They are kept only if they help on scenes that they were not chosen on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysegment.metrics import Scores, confusion

#: What thresholds must gain, on scenes they were not chosen on, to be kept.
_CLEAR_GAIN = 0.005
#: Factors tried on the odds of one class, and rounds over the classes.
_FACTORS = np.exp(np.linspace(-3, 3, 61))
_ROUNDS = 2


def choose(
    probabilities: np.ndarray, truth: np.ndarray, scene: np.ndarray, metric: str
) -> tuple[float, ...] | None:
    """θ per class, summing to 1, or None when equal thresholds do as well.

    `probabilities` (m, C), `truth` and `scene` (m,) of validation pixels. Chosen on every second scene and
    judged on the others, both ways; then chosen on all. One scene is split into two halves of its pixels.
    """
    known = np.unique(scene)
    if len(known) > 1:
        half = np.isin(scene, known[::2])
    else:
        half = np.arange(len(scene)) < len(scene) // 2
    gains = []
    for here in (half, ~half):
        weights = _best_weights(probabilities[here], truth[here], metric)
        judged = probabilities[~here], truth[~here]
        gains.append(_score(*judged, weights, metric) - _score(*judged, np.ones_like(weights), metric))
    if min(gains) <= 0 or sum(gains) / 2 < _CLEAR_GAIN:
        return None
    thresholds = 1 / _best_weights(probabilities, truth, metric)
    return tuple(float(t) for t in thresholds / thresholds.sum())


def _best_weights(probabilities: np.ndarray, truth: np.ndarray, metric: str) -> np.ndarray:
    """1/θ up to a factor, by ascent along one class at a time; class 0 stays at 1."""
    weights = np.ones(probabilities.shape[1])
    best = _score(probabilities, truth, weights, metric)
    for _ in range(_ROUNDS if len(weights) > 2 else 1):
        for c in range(1, len(weights)):
            centre = weights[c]
            for factor in _FACTORS:
                tried = weights.copy()
                tried[c] = centre * factor
                score = _score(probabilities, truth, tried, metric)
                if score > best:
                    best, weights = score, tried
    return weights


def _score(
    probabilities: np.ndarray, truth: np.ndarray, weights: Sequence[float] | np.ndarray, metric: str
) -> float:
    labels = (probabilities * np.asarray(weights, probabilities.dtype)).argmax(axis=1)
    classes = probabilities.shape[1]
    scores = Scores.of(confusion(truth, labels, classes), [str(c) for c in range(classes)])
    return float(getattr(scores, metric))
