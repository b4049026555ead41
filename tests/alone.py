"""`infer` in this process alone: its plan, blocks, records and shards, without the seconds that Ray takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray

from raysegment.geometry import Block
from raysegment.inference import flow, many, run
from raysegment.inference.answer import fail_on_error
from raysegment.inference.assembly import Assembly, Shard
from raysegment.inference.pipeline import BlockDone, SegmentActor
from raysegment.inference.plan import Plan
from raysegment.inference.policy import Policy
from raysegment.inference.scratch import Scratch
from raysegment.inference.writing import ShardDone, _written
from raysegment.mask.outputs import Outputs


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """Until `patch` is undone: one worker, the last block of an image first, each shard written at once."""
    for room in (run, many):
        patch.setattr(room, "cluster", lambda _: contextlib.nullcontext())
    patch.setattr(ray, "put", lambda value: value)
    patch.setattr(ray, "get", lambda value: value)
    patch.setattr(flow, "segment", _segment)
    patch.setattr(flow, "Writing", _Writing)


def _segment(
    plan: Plan,
    missing: list[tuple[int, Block]],
    model: Any,
    scratch: Scratch,
    workers: int,
    policy: Policy,
) -> Iterator[BlockDone]:
    worker = SegmentActor(plan, model, scratch, policy)
    for index, block in sorted(missing, key=lambda at: (at[0], -at[1].row, -at[1].col)):
        for answer in worker({"blocks": np.array([[index, block.row, block.col]])}):
            said = {key: value[0] for key, value in answer.items()}
            fail_on_error(said, set_aside=policy.set_aside)
            keys = ("tiles", "compute_s", "began_at", "peak_bytes", "error", "passing")
            yield BlockDone(image=index, block=block, **{key: said[key] for key in keys})


class _Writing:
    """Writes what is handed to it before it answers."""

    def __init__(
        self, plan: Plan, outputs: list[Outputs], scratch: Scratch, at_once: int, *, set_aside: bool
    ) -> None:
        self._context, self._ready = (plan, outputs, scratch), list[ShardDone]()

    def submit(self, shard: Shard, assembly: Assembly) -> None:
        plan, outputs, scratch = self._context
        source = assembly.in_image(shard) if shard.level == 0 else None
        answer = _written(plan, outputs[shard.image], scratch, shard, assembly.window(shard), source)
        self._ready.append(ShardDone(shard, answer["class_pixels"], answer["work_s"]))

    @property
    def is_busy(self) -> bool:
        return bool(self._ready)

    def done(self, *, wait: bool) -> Iterator[ShardDone]:
        while self._ready:
            yield self._ready.pop()

    def stop(self) -> None:
        """Nothing runs."""
