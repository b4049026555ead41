"""Validation: every pixel of the validation scenes answered once, as pixel counts summed over the workers."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from raysegment.errors import RaysegmentError
from raysegment.geometry import Size, Window
from raysegment.metrics import confusion
from raysegment.model.model import normalise, probabilities
from raysegment.model.spec import ModelSpec
from raysegment.training.batches import Batch, collate, read_ahead, widen
from raysegment.training.parallel import Workers
from raysegment.training.windows import IGNORE, WindowReader

#: Pixels, over all workers, whose probabilities are kept to choose thresholds from.
_KEPT_PX = 200_000


@dataclass(frozen=True, slots=True)
class View:
    """One forward pass of validation."""

    scene: int
    window: Window
    """What the network answers."""
    own: Window
    """Whose pixels are counted: the views' own windows cover a scene once."""


def views(sizes: Sequence[Size], tile: int) -> list[View]:
    """Tiles spread evenly over each scene, without sticking out where the scene is larger than a tile.
    Where tiles overlap, the border between them runs through the middle of the overlap."""
    found = []
    for scene, size in enumerate(sizes):
        for y, top, bottom in _axis(size.height, tile):
            for x, left, right in _axis(size.width, tile):
                window = Window(y=y, x=x, height=tile, width=tile)
                found.append(View(scene, window, Window.between(top, left, bottom, right)))
    return found


def spread(items: Sequence[View], at_most: int) -> list[View]:
    """`at_most` of the items, at equal distances."""
    if len(items) <= at_most:
        return list(items)
    return [items[i * len(items) // at_most] for i in range(at_most)]


@dataclass(frozen=True)
class Validator:
    """Runs a network over views, each worker its share."""

    reader: WindowReader
    spec: ModelSpec
    workers: Workers
    device: torch.device
    batch_size: int
    """Of one worker."""
    autocast: Callable[[], torch.autocast]

    def count(
        self, module: nn.Module, views: Sequence[View], thresholds: Sequence[float] | None = None
    ) -> np.ndarray:
        """Confusion counts int64 (C, C), rows = truth, of all workers together."""
        classes = len(self.spec.classes)
        counts = np.zeros((classes, classes), np.int64)
        with self._together():
            for _, p, truth in self._answers(module, views):
                counts += confusion(truth, label(p, thresholds), classes)
        return self.workers.sum_array(counts, self.device)

    def sample(self, module: nn.Module, views: Sequence[View]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(probabilities (m, C) float32, truth (m,), scene (m,)) of pixels at equal distances, of all workers."""
        every = max(1, math.ceil(sum(v.own.area for v in views) / _KEPT_PX))
        rows = [np.empty((0, len(self.spec.classes) + 2), np.float32)]
        with self._together():
            for view, p, truth in self._answers(module, views):
                flat = p.reshape(len(p), -1).T[::every]
                true = truth.reshape(-1)[::every]
                known = true != IGNORE
                scene = np.full(int(known.sum()), view.scene)
                rows.append(np.column_stack([flat[known], true[known], scene]).astype(np.float32))
        found = self.workers.gather(torch.from_numpy(np.concatenate(rows)).to(self.device)).cpu().numpy()
        return found[:, :-2], found[:, -2].astype(np.int64), found[:, -1].astype(np.int64)

    def each(
        self, module: nn.Module, views: Sequence[View], thresholds: Sequence[float] | None = None
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(place in `views`, labels (h, w), truth (h, w)) of this worker's share, own pixels alone."""
        with self._together():
            places = self.workers.share(len(views))
            for place, (_, p, truth) in zip(places, self._answers(module, views), strict=True):
                yield place, label(p, thresholds), truth

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Meet the other workers afterwards; raises Stopped on all of them when one cannot go on."""
        error: RaysegmentError | None = None
        try:
            yield
        except RaysegmentError as e:
            error = e
        self.workers.agree(error)

    @torch.inference_mode()
    def _answers(
        self, module: nn.Module, views: Sequence[View]
    ) -> Iterator[tuple[View, np.ndarray, np.ndarray]]:
        """(view, probabilities (C, h, w), truth (h, w)) of this worker's views, own pixels alone."""
        module.eval()
        mine = [views[i] for i in self.workers.share(len(views))]
        chunks = [mine[i : i + self.batch_size] for i in range(0, len(mine), self.batch_size)]
        for chunk, batch in zip(chunks, read_ahead(self._load, chunks), strict=True):
            x = normalise(batch.pixels.to(self.device), self.spec, batch.valid.to(self.device))
            with self.autocast():
                answer = module(x)
            p = probabilities(answer, self.spec.activation).cpu().numpy()
            for view, one, target in zip(chunk, p, batch.target.numpy(), strict=True):
                # the target came with the network's margin around it
                inner = Window(
                    y=self.spec.margin, x=self.spec.margin, height=one.shape[1], width=one.shape[2]
                )
                yield (
                    view,
                    one[:, *view.own.slices(view.window)],
                    target[inner.slices()][view.own.slices(view.window)],
                )

    def _load(self, chunk: Sequence[View]) -> Batch:
        samples = [self.reader.read(v.scene, widen(v.window, self.spec.margin)) for v in chunk]
        return collate(samples, range(len(chunk)))


def label(p: np.ndarray, thresholds: Sequence[float] | None) -> np.ndarray:
    """Class indices (h, w) of probabilities (C, h, w): argmax of p/θ, ties to the lower index."""
    if thresholds is None:
        return p.argmax(axis=0)
    return (p / np.asarray(thresholds, p.dtype).reshape(-1, 1, 1)).argmax(axis=0)


def _axis(length: int, tile: int) -> list[tuple[int, int, int]]:
    """(start, own from, own to) of the tiles along one axis."""
    if length <= tile:
        return [(-((tile - length) // 2), 0, length)]
    count = math.ceil(length / tile)
    starts = [round(k * (length - tile) / (count - 1)) for k in range(count)]
    borders = [0, *((a + tile + b) // 2 for a, b in itertools.pairwise(starts)), length]
    return [(start, *own) for start, own in zip(starts, itertools.pairwise(borders), strict=True)]
