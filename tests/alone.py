"""`infer` in this process alone: its plan, blocks, records and shards, without the seconds that Ray takes."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable
from typing import Any

import pytest
import ray

from raysegment.geometry import Block
from raysegment.inference import agenda, flow, many, run
from raysegment.inference.agenda import Agenda, BlockWork, Work
from raysegment.inference.answer import Row
from raysegment.inference.plan import Plan
from raysegment.inference.worker import InferenceWorker


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """Until `patch` is undone: one worker, the last block of an image first, each shard written at once."""
    for room in (run, many):
        patch.setattr(room, "cluster", lambda *_, **__: contextlib.nullcontext())
    patch.setattr(ray, "put", lambda value: value)
    patch.setattr(agenda, "runs", _backwards)
    patch.setattr(flow, "Crew", _Alone)


def _backwards(missing: Iterable[tuple[int, Block]], workers: int) -> list[deque[BlockWork]]:
    order = sorted(missing, key=lambda at: (at[0], -at[1].row, -at[1].col))
    return [deque([BlockWork(image, block)]) for image, block in order]


class _Alone:
    """A crew of one, in this very process: it has answered before it is asked."""

    is_busy = has_blocks = False

    def __init__(self, plan: Plan, workers: int, blocks: int, arguments: tuple[Any, ...]) -> None:
        self._worker = InferenceWorker(*arguments)
        self._done: list[tuple[Work, Row | None]] = []

    def take_from(self, agenda: Agenda) -> None:
        work: Work | None = agenda.next_shard() or agenda.next_block(self, is_free=True)
        if isinstance(work, BlockWork):
            row = self._worker.segment(work.image, work.block.row, work.block.col)
        elif work is not None:
            row = self._worker.write(work.shard, work.window, work.in_image)
        self._done = [(work, row)] if work is not None else []

    def answers(self, until: float | None = None) -> list[tuple[Work, Row | None]]:
        return self._done

    def close(self) -> None:
        """Nobody is there."""
