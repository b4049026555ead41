"""Validation scenes as `infer` answers them: tiled, blended and stitched by the same engine, piece by piece.

A scene of up to a few megapixels is one piece. Larger ones are cut into pieces that are answered as `infer` answers a
``--region``: with the pixels of the whole scene around them, so that no cut shows in the classes. Cells and outlines
are counted piece by piece.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from raysegment.geometry import Block, Size, Window
from raysegment.inference.block import BlockPixels, seen_by
from raysegment.inference.grid import Grid
from raysegment.inference.plan import Plan
from raysegment.inference.request import Request, choose_tile
from raysegment.inference.segmenter import Segmenter
from raysegment.model.model import Model
from raysegment.model.spec import ModelSpec
from raysegment.training.batches import read_ahead
from raysegment.training.windows import Sample, WindowReader

#: Most probabilities of one piece, 64 MiB of sums: with two classes a scene of 4096 × 4096 px is whole.
_SUMS = 16 << 20
#: The only block of a piece.
_ALL = Block(0, 0)


@dataclass(frozen=True, slots=True)
class Piece:
    """A scene, or a part of it that is answered at once."""

    scene: int
    window: Window


@dataclass(frozen=True)
class Engine:
    """How `infer` would answer with a network of this spec, on this device."""

    spec: ModelSpec
    precision: str
    device: torch.device
    batch_size: int
    """Tiles in one forward pass."""

    @property
    def plan(self) -> Plan:
        """What decides the answer: `infer`'s own defaults for tile, overlap and blend."""
        tile, overlap = choose_tile(Request(), self.spec)
        return Plan.model_validate(
            {
                "model": "in training",
                "classes": self.spec.classes,
                "thresholds": None,
                "channels": self.spec.channels,
                "margin": self.spec.margin,
                "tile": tile,
                "overlap": overlap,
                "blend": Request().blend,
                "planes": planes(self.spec),
                "precision": self.precision,
                "device": self.device.type,
                "batch_size": self.batch_size,
                "threads": torch.get_num_threads(),
                "images": (),
            }
        )

    def answers(
        self, module: nn.Module, reader: WindowReader, pieces: Sequence[Piece]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(sums int32 (planes, h, w) in units of 2⁻³⁰, truth uint8 (h, w)) of each piece.

        Raises what reading raises, and AnswerError for a network that answers no number.
        """
        plan = self.plan
        segmenter = Segmenter(Model(module, self.spec), plan)
        grids = [_grid(plan, reader.scenes[p.scene].size, p.window) for p in pieces]
        windows = [seen_by(grid, _ALL, plan.margin) for grid in grids]

        def load(k: int) -> Sample:
            return reader.read(pieces[k].scene, windows[k])

        for k, sample in enumerate(read_ahead(load, range(len(pieces)))):
            valid = None if sample.valid.all() else sample.valid
            seen = BlockPixels(windows[k], np.ascontiguousarray(sample.pixels), valid)
            own = pieces[k].window
            sums = np.empty((plan.sums, *own.size), np.int32)
            for band, part in segmenter.sums(grids[k], _ALL, seen):
                rows, cols = band.slices(own)
                sums[:, rows, cols] = part.cpu().numpy()
            yield sums, sample.target[own.slices(windows[k])]


def planes(spec: ModelSpec) -> int:
    """Probabilities that are summed per pixel: of every class, or of the second of two alone."""
    return 1 if len(spec.classes) == 2 else len(spec.classes)


def pieces(sizes: Sequence[Size], spec: ModelSpec) -> list[Piece]:
    """Parts that cover every scene once, whole where a scene is small enough."""
    edge = int((_SUMS / planes(spec)) ** 0.5)
    found = []
    for scene, (height, width) in enumerate(sizes):
        rows, cols = (np.linspace(0, n, -(-n // edge) + 1).astype(int).tolist() for n in (height, width))
        for top, bottom in itertools.pairwise(rows):
            for left, right in itertools.pairwise(cols):
                found.append(Piece(scene, Window.between(top, left, bottom, right)))
    return found


def _grid(plan: Plan, size: Size, window: Window) -> Grid:
    """The tiles of a scene that reach into the window, as one block: nothing is shared with another."""
    return Grid(size, plan.tile, plan.overlap, -(-max(size) // plan.stride), window)
