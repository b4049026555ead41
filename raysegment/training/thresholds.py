"""Operating thresholds: θ per class such that argmax p/θ scores best on validation.

They matter most where a loss answers with timid probabilities (focal: Dice 0.70 at equal thresholds, 0.81
at the best). They are kept only if they help on scenes that they were not chosen on, and if no class pays for it.
"""

from __future__ import annotations

import numpy as np

from raysegment.metrics import Scores, confusion

#: What thresholds must gain, on scenes they were not chosen on, to be kept.
_CLEAR_GAIN = 0.005
#: IoU that no class may lose: on a network that is mostly wrong, answering one class everywhere "gains".
_MOST_LOSS = 0.02
#: Factors tried on the odds of one class, and rounds over the classes.
_FACTORS = np.exp(np.linspace(-3, 3, 61))
_ROUNDS = 2


def choose(
    probabilities: np.ndarray, truth: np.ndarray, scene: np.ndarray, metric: str
) -> tuple[float, ...] | None:
    """θ per class, summing to 1, or None when equal thresholds do as well or a class would pay.

    `probabilities` (m, C), `truth` and `scene` (m,) of validation pixels. Chosen on every second scene and
    judged on the others, both ways; then chosen on all. One scene is split into two halves of its pixels.
    """
    known = np.unique(scene)
    if len(known) > 1:
        half = np.isin(scene, known[::2])
    else:
        half = np.arange(len(scene)) < len(scene) // 2
    equal = np.ones(probabilities.shape[1])
    gains = []
    for here in (half, ~half):
        weights = _best_weights(probabilities[here], truth[here], metric)
        judged = probabilities[~here], truth[~here]
        gains.append(getattr(_scores(*judged, weights), metric) - getattr(_scores(*judged, equal), metric))
    if min(gains) <= 0 or sum(gains) / 2 < _CLEAR_GAIN:
        return None
    weights = _best_weights(probabilities, truth, metric)
    before, after = (
        _scores(probabilities, truth, equal).classes,
        _scores(probabilities, truth, weights).classes,
    )
    if any(after[name].iou < score.iou - _MOST_LOSS for name, score in before.items()):
        return None
    return tuple(float(t) for t in 1 / weights / (1 / weights).sum())


def _best_weights(probabilities: np.ndarray, truth: np.ndarray, metric: str) -> np.ndarray:
    """1/θ up to a factor, by ascent along one class at a time; class 0 stays at 1."""
    weights = np.ones(probabilities.shape[1])
    best = getattr(_scores(probabilities, truth, weights), metric)
    for _ in range(_ROUNDS if len(weights) > 2 else 1):
        for c in range(1, len(weights)):
            centre = weights[c]
            for factor in _FACTORS:
                tried = weights.copy()
                tried[c] = centre * factor
                score = getattr(_scores(probabilities, truth, tried), metric)
                if score > best:
                    best, weights = score, tried
    return weights


def _scores(probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> Scores:
    labels = (probabilities * weights.astype(probabilities.dtype)).argmax(axis=1)
    classes = probabilities.shape[1]
    return Scores.of(confusion(truth, labels, classes), [str(c) for c in range(classes)])
