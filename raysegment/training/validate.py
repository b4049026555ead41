"""Validation: every pixel of the validation scenes answered, as counts summed over the workers.

At the end of a run whole scenes, as `infer` answers them (stitched.py). After an epoch in windows, for speed: a pixel
is answered once, and outlines are those of the windows. But V_Rand is always that of scenes: cells are
cut only where a scene is answered in pieces, above 4096 × 4096 px of two classes, and each part counts as a cell then.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from raysegment.errors import RaysegmentError
from raysegment.geometry import Size, Window
from raysegment.inference.outcome import ONE, all_planes, labels_of
from raysegment.metrics import Scores, Tally
from raysegment.metrics.rand import rand_counts, v_rand
from raysegment.metrics.tally import true_cells
from raysegment.model.model import normalise, probabilities
from raysegment.model.spec import ModelSpec
from raysegment.training.batches import Batch, collate, read_ahead, widen
from raysegment.training.metric import Metric
from raysegment.training.parallel import Workers
from raysegment.training.stitched import Engine, Piece, pieces, planes
from raysegment.training.thresholds import best_for_membranes, choose, for_membranes
from raysegment.training.windows import IGNORE, WindowReader

#: Views that are answered after an epoch, of all workers together; the end of the run answers all.
_VIEWS_PER_EPOCH = 256
#: Pixels, over all workers, whose probabilities are kept to choose thresholds from.
_KEPT_PX = 200_000

Answer = tuple[Piece, np.ndarray, np.ndarray]
"""A part of a scene, its sums int32 (planes, h, w) in units of 2⁻³⁰, and its truth (h, w)."""
Thresholds = tuple[float, ...]
Part = TypeVar("Part")


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


def spread(items: Sequence[Part], at_most: int) -> list[Part]:
    """`at_most` of the items, at equal distances."""
    if len(items) <= at_most:
        return list(items)
    return [items[i * len(items) // at_most] for i in range(at_most)]


@dataclass(frozen=True)
class Validator:
    """Runs a network over the validation scenes, each worker its share."""

    reader: WindowReader
    spec: ModelSpec
    metric: Metric
    workers: Workers
    device: torch.device
    batch_size: int
    """Of one worker."""
    autocast: Callable[[], torch.autocast]
    precision: str = "fp32"
    check: Callable[[], None] = lambda: None
    """Asked between pieces and between batches: raises what is to end the validation, a RaysegmentError."""

    def after_epoch(self, module: nn.Module) -> Scores:
        """Scores of a share of the pixels, at equal thresholds; but V_Rand at the best of a few."""
        tile, names = self.spec.tile, self.spec.class_names
        if self._membrane is not None:
            area = sum(p.window.area for p in self._pieces)
            affordable = max(1, _VIEWS_PER_EPOCH * tile**2 * len(self._pieces) // area)
            some = spread(self._pieces, affordable)
            p, truth, _ = self.sample(module, some)
            tried = for_membranes(p, truth, self._membrane, few=True)
            tally, pairs = self._count(self._stitched(module, self._mine(some)), None, tried, False)
            return replace(tally.scores(names), v_rand=max(map(v_rand, pairs)))
        answers = self._windowed(module, self._mine(self.spread_views(_VIEWS_PER_EPOCH)))
        return self._count(answers, None, (), self.metric.needs_outlines)[0].scores(names)

    def spread_views(self, at_most: int) -> list[View]:
        """Some of the views that cover the scenes, at equal distances."""
        return spread(views([scene.size for scene in self.reader.scenes], self.spec.tile), at_most)

    def in_scenes(self, module: nn.Module, thresholds: Thresholds | None = None) -> Scores:
        """Scores of whole scenes, stitched as `infer` does, at these thresholds."""
        answers = self._stitched(module, self._mine(self._pieces))
        return self._count(answers, thresholds, (), True)[0].scores(self.spec.class_names)

    def thresholds(self, module: nn.Module) -> Thresholds | None:
        """Operating thresholds that are best for the metric on the whole scenes; None where equal ones do."""
        p, truth, scene = self.sample(module)
        if self._membrane is None:
            return choose(p, truth, scene, self.metric.of_pixels, self.spec.class_names)
        tried = for_membranes(p, truth, self._membrane)
        answers = self._stitched(module, self._mine(self._pieces))
        return best_for_membranes(tried, self._count(answers, None, tried, False)[1])

    def sample(
        self, module: nn.Module, some: Sequence[Piece] | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(probabilities (m, C) float32, truth (m,), scene (m,)) of pixels at equal distances, piece by piece.

        `some`: the pieces, all by default.
        """
        some = self._pieces if some is None else some
        area = sum(p.window.area for p in some)
        every = math.ceil(area / _KEPT_PX) | 1  # odd: not always the same columns of a width that is even
        classes = len(self.spec.classes)
        rows = [np.empty((0, classes + 2), np.float32)]
        with self._together():
            places = self.workers.share(len(some))
            answers = self._stitched(module, self._mine(some))
            for place, (_, sums, truth) in zip(places, answers, strict=True):
                p = all_planes(sums, classes).reshape(classes, -1)[:, ::every].T / np.float32(ONE)
                true = truth.reshape(-1)[::every]
                known = true != IGNORE
                rows.append(np.column_stack([p[known], true[known], np.full(known.sum(), place)]))
        own = np.concatenate(rows).astype(np.float32)
        found = self.workers.gather(torch.from_numpy(own).to(self.device)).cpu().numpy()
        found = found[np.argsort(found[:, -1], kind="stable")]  # in one order, however many workers there are
        scene = np.array([p.scene for p in some])[found[:, -1].astype(np.int64)]
        return found[:, :-2], found[:, -2].astype(np.int64), scene

    def rules(self, thresholds: Thresholds | None) -> dict[str, str]:
        """How the final scores came about, for people and for run.json."""
        plan = Engine(self.spec, self.precision, self.device, 1).plan
        equal = f"equal, no others being clearly better for {self._chosen_for} on these pixels"
        chosen = f"argmax of p/θ, θ best for {self._chosen_for} on these very pixels: the scores are an upper bound"
        return {
            "scores": f"whole scenes, stitched: tile {plan.tile}, overlap {plan.overlap}, {plan.blend} blend, "
            "no test-time augmentation",
            "thresholds": equal if thresholds is None else chosen,
        }

    @property
    def _chosen_for(self) -> Metric:
        return self.metric.of_pixels if self._membrane is None else self.metric

    @property
    def _membrane(self) -> int | None:
        """The class of membranes where the metric is one of cells."""
        return self.metric.membrane(self.spec.class_names)

    @property
    def _pieces(self) -> list[Piece]:
        return pieces([scene.size for scene in self.reader.scenes], self.spec)

    def _mine(self, items: Sequence[Part]) -> list[Part]:
        return [items[i] for i in self.workers.share(len(items))]

    def _count(
        self,
        answers: Iterable[Answer],
        thresholds: Thresholds | None,
        tried: Sequence[Thresholds],
        outlines: bool,
    ) -> tuple[Tally, np.ndarray]:
        """Counts at the thresholds, and the pairs (tried, 3) at each of those tried, of all workers together."""
        classes, membrane = len(self.spec.classes), self._membrane
        tally = Tally(
            len(self.reader.scenes), classes, boundaries=outlines, membrane=None if tried else membrane
        )
        pairs = np.zeros((len(tried), 3), np.int64)
        with self._together():
            for piece, sums, truth in answers:
                tally.add(piece.scene, truth, _labels(sums, classes, thresholds))
                if tried and membrane is not None:
                    cells = true_cells(truth, classes, membrane)
                    for row, theta in zip(pairs, tried, strict=True):
                        row += rand_counts(cells, _labels(sums, classes, theta) == membrane)
        tally.counts = self.workers.sum_array(tally.counts, self.device)
        return tally, self.workers.sum_array(pairs, self.device)

    def each(
        self, module: nn.Module, some: Sequence[View], thresholds: Thresholds | None = None
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(place in `some`, labels (h, w), truth (h, w)) of this worker's share, own pixels alone."""
        classes = len(self.spec.classes)
        with self._together():
            places = self.workers.share(len(some))
            for place, (_, sums, truth) in zip(places, self._windowed(module, self._mine(some)), strict=True):
                yield place, _labels(sums, classes, thresholds), truth

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Meet the other workers afterwards; raises Stopped on all of them when one cannot go on."""
        error: RaysegmentError | None = None
        try:
            yield
        except RaysegmentError as e:
            error = e
        self.workers.agree(error)

    def _stitched(self, module: nn.Module, mine: Sequence[Piece]) -> Iterator[Answer]:
        batch = 1 if self.device.type == "cpu" else self.batch_size
        engine = Engine(self.spec, self.precision, self.device, batch)
        for piece, (sums, truth) in zip(mine, engine.answers(module, self.reader, mine), strict=True):
            self.check()
            yield piece, sums, truth

    @torch.inference_mode()
    def _windowed(self, module: nn.Module, mine: Sequence[View]) -> Iterator[Answer]:
        """Of each view, its own pixels alone."""
        module.eval()
        chunks = [mine[i : i + self.batch_size] for i in range(0, len(mine), self.batch_size)]
        margin = self.spec.margin
        for chunk, batch in zip(chunks, read_ahead(self._load, chunks), strict=True):
            self.check()
            x = normalise(batch.pixels.to(self.device), self.spec, batch.valid.to(self.device))
            with self.autocast():
                answer = module(x)
            p = probabilities(answer, self.spec.activation)[:, -planes(self.spec) :]
            sums = (p * ONE).round_().int().cpu().numpy()
            for view, one, target in zip(chunk, sums, batch.target.numpy(), strict=True):
                rows, cols = view.own.slices(view.window)
                # the target came with the network's margin around it
                inner = Window(y=margin, x=margin, height=one.shape[1], width=one.shape[2])
                yield Piece(view.scene, view.own), one[:, rows, cols], target[inner.slices()][rows, cols]

    def _load(self, chunk: Sequence[View]) -> Batch:
        samples = [self.reader.read(v.scene, widen(v.window, self.spec.margin)) for v in chunk]
        return collate(samples, range(len(chunk)))


def _labels(sums: np.ndarray, classes: int, thresholds: Thresholds | None) -> np.ndarray:
    """The class of each pixel, as `infer` takes it."""
    return labels_of(sums, classes, thresholds, np.dtype(np.uint8))


def _axis(length: int, tile: int) -> list[tuple[int, int, int]]:
    """(start, own from, own to) of the tiles along one axis."""
    if length <= tile:
        return [(-((tile - length) // 2), 0, length)]
    count = math.ceil(length / tile)
    starts = [round(k * (length - tile) / (count - 1)) for k in range(count)]
    borders = [0, *((a + tile + b) // 2 for a, b in itertools.pairwise(starts)), length]
    return [(start, *own) for start, own in zip(starts, itertools.pairwise(borders), strict=True)]
