"""`infer` in this process alone: its plan, blocks, records and shards, without the seconds that Ray takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from raysegment.geometry import Block
from raysegment.inference import flow, run
from raysegment.inference.answer import fail_on_error, reported
from raysegment.inference.assembly import Assembly, Shard
from raysegment.inference.pipeline import BlockDone, SegmentActor
from raysegment.inference.plan import Plan
from raysegment.inference.scratch import Scratch
from raysegment.inference.writing import ShardDone, _written
from raysegment.mask.outputs import Outputs


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """Until `patch` is undone: one worker, the last block of an image first, each shard written at once."""
    patch.setattr(run, "cluster", lambda _: contextlib.nullcontext())
    patch.setattr(ray, "put", lambda value: value)
    patch.setattr(ray, "get", lambda value: value)
    patch.setattr(flow, "segment", _segment)
    patch.setattr(flow, "Writing", _Writing)


def _segment(
    plan: Plan, missing: list[tuple[int, Block]], model: Any, scratch: Scratch, workers: int
) -> Iterator[BlockDone]:
    worker = SegmentActor(plan, model, scratch)
    for index, block in sorted(missing, key=lambda at: (at[0], -at[1].row, -at[1].col)):
        answer = reported(worker._segment, image=index, row=block.row, col=block.col)
        fail_on_error(answer)
        said = {key: answer[key] for key in ("tiles", "compute_s", "began_at", "peak_bytes")}
        yield BlockDone(image=index, block=block, **said)


class _Writing:
    """Writes what is handed to it before it answers."""

    def __init__(self, plan: Plan, outputs: list[Outputs], scratch: Scratch, at_once: int) -> None:
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
