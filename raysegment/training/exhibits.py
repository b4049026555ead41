"""Validation windows to show: the ones answered best and worst, as pictures in RUN/last/exhibits.json."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from raysegment.metrics import confusion
from raysegment.report.pictures import data_uri, panels
from raysegment.training.validate import Validator, View

#: Windows kept of the best, and of the worst.
KEPT = 4
#: A class counts for the score of a window when it holds this share of it, in truth or prediction: a few stray
#: pixels on plain background would otherwise make the worst windows of all.
_LEAST_SHARE = 0.01
#: A window of which less than this share has a truth is not shown.
_LEAST_KNOWN = 0.1
_NONE = -1


@dataclass(frozen=True, slots=True)
class Shown:
    """One window and how it was answered."""

    view: View
    score: float
    """Mean IoU over the classes that hold 1 % of the window or more."""
    labels: np.ndarray
    """uint8 (h, w), of the view's own pixels."""
    kind: str
    """best or worst."""


@dataclass(frozen=True, slots=True, order=True)
class _Answer:
    score: float
    place: int
    """Among all views; decides between equal scores, so that the choice does not depend on the workers."""


def find(
    validator: Validator,
    module: nn.Module,
    views: Sequence[View],
    thresholds: tuple[float, ...] | None = None,
) -> list[Shown]:
    """The worst windows, worst first, then the best, best first; all workers together, the same answer on each.

    Holds the labels of at most 2 · KEPT windows at a time. The best are taken from windows of two classes or
    more: nothing is learned from an empty one that was answered empty. Raises Stopped.
    """
    lowest: list[tuple[float, int]] = []
    highest: list[tuple[float, int]] = []
    labels: dict[int, np.ndarray] = {}
    for place, answered, truth in validator.each(module, views, thresholds):
        score, classes = window_score(truth, answered, len(validator.spec.classes))
        if score is None:
            continue
        labels[place] = answered
        _push(lowest, (-score, -place))
        if classes > 1:
            _push(highest, (score, -place))
        kept = {-p for _, p in (*lowest, *highest)}
        labels = {p: a for p, a in labels.items() if p in kept}
    worst = _gather(validator, views, [(_Answer(-s, -p), labels[-p]) for s, p in lowest])
    best = _gather(validator, views, [(_Answer(s, -p), labels[-p]) for s, p in highest])
    worst = sorted(worst, key=lambda found: found[0])[:KEPT]
    best = sorted(best, key=lambda found: (-found[0].score, found[0].place))[:KEPT]
    if {a.place for a, _ in worst} & {a.place for a, _ in best}:  # few windows: halve what there is
        known = {a.place: (a, label) for a, label in (*worst, *best)}
        ranked = sorted(known.values(), key=lambda found: found[0])
        worst, best = ranked[: len(ranked) // 2][:KEPT], ranked[len(ranked) // 2 :][::-1][:KEPT]
    return [
        Shown(views[a.place], a.score, label, kind)
        for kind, found in (("worst", worst), ("best", best))
        for a, label in found
    ]


def window_score(truth: np.ndarray, labels: np.ndarray, classes: int) -> tuple[float | None, int]:
    """(mean IoU of one window, over how many classes); None where too little of it has a truth."""
    counts = confusion(truth, labels, classes)
    total = counts.sum()
    if total < max(1, _LEAST_KNOWN * truth.size):
        return None, 0
    hit = np.diag(counts)
    union = counts.sum(axis=0) + counts.sum(axis=1) - hit
    seen = union >= min(_LEAST_SHARE * total, union.max())
    return float((hit[seen] / union[seen]).mean()), int(seen.sum())


def draw(found: Sequence[Shown], validator: Validator) -> tuple[list[dict[str, Any]], list[list[np.ndarray]]]:
    """(plain values for exhibits.json, the same panels as arrays). Raises ReadError."""
    told, pictures = [], []
    for shown in found:
        scene, own = validator.reader.scenes[shown.view.scene], shown.view.own
        sample = validator.reader.read(shown.view.scene, own)
        drawn = panels(sample.pixels, sample.valid, sample.target, shown.labels, validator.spec.classes)
        known = sample.target < len(validator.spec.classes)
        told.append(
            {
                "kind": shown.kind,
                "scene": scene.name,
                "window": [own.y, own.x, own.height, own.width],
                "score": shown.score,
                "wrong": float((shown.labels != sample.target)[known].mean()),
                "panels": {name: data_uri(picture) for name, picture in drawn.items()},
            }
        )
        pictures.append(list(drawn.values()))
    return told, pictures


def _push(kept: list[tuple[float, int]], item: tuple[float, int]) -> None:
    """Keep the KEPT greatest."""
    (heapq.heappush if len(kept) < KEPT else heapq.heappushpop)(kept, item)


def _gather(
    validator: Validator, views: Sequence[View], mine: Sequence[tuple[_Answer, np.ndarray]]
) -> list[tuple[_Answer, np.ndarray]]:
    """Those of all workers. Every worker sends KEPT rows, some of them empty."""
    edge = max((max(v.own.size) for v in views), default=1)
    answers = torch.full((KEPT, 2), _NONE, dtype=torch.float64)
    pixels = torch.zeros((KEPT, edge, edge), dtype=torch.uint8)
    for row, (answer, labels) in enumerate(mine):
        answers[row] = torch.tensor((answer.score, answer.place), dtype=torch.float64)
        pixels[row, : labels.shape[0], : labels.shape[1]] = torch.from_numpy(labels.astype(np.uint8))
    all_answers = validator.workers.gather(answers.to(validator.device)).cpu().tolist()
    all_pixels = validator.workers.gather(pixels.to(validator.device)).cpu().numpy()
    found = []
    for (score, place), square in zip(all_answers, all_pixels, strict=True):
        if place != _NONE:
            size = views[int(place)].own.size
            found.append((_Answer(score, int(place)), square[: size.height, : size.width]))
    return found
