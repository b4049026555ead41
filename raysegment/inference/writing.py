"""The second stage: shards of the masks, each written whole by one task, as soon as all it is made of is there."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from raysegment.geometry import Window
from raysegment.inference.answer import Row, fail_on_error, reported
from raysegment.inference.assembly import Shard
from raysegment.inference.plan import Plan
from raysegment.inference.scratch import Scratch
from raysegment.inference.stitch import stitch
from raysegment.mask.outputs import Outputs

if TYPE_CHECKING:
    from raysegment.inference.assembly import Assembly

#: A task whose worker died is begun again this often: a shard is written from its records, whole, every time.
_RETRIES = 3
#: Seconds of work that must wait for each process that is begun for it: a process takes one by itself to begin.
_WORTH_A_PROCESS_S = 2.0
#: Up to so many, comparing with each is faster than `bincount`, which first makes every label eight bytes wide.
_FEW_CLASSES = 64


@dataclass(frozen=True)
class ShardDone:
    """What a task says of one shard."""

    shard: Shard
    class_pixels: list[int]
    """Of level 0: pixels of each class; nodata is not counted. Empty above."""
    work_s: float
    error: str = ""
    """Why the image is to be set aside."""
    passing: bool = False
    """See :class:`raysegment.inference.pipeline.BlockDone`."""


class Writing:
    """Hands shards to Ray as they become ready, and tells of those that are written."""

    def __init__(
        self, plan: Plan, outputs: list[Outputs], scratch: Scratch, at_once: int, *, set_aside: bool = False
    ) -> None:
        self._context, self._set_aside = ray.put((plan, outputs, scratch)), set_aside
        self._task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_write)
        self._at_once = at_once
        """Most tasks given to Ray at a time. It starts a process for each."""
        self._ready: deque[tuple[Shard, Window, Window | None]] = deque()
        self._running: dict[Any, Shard] = {}
        self._written, self._work_s = 0, 0.0

    def submit(self, shard: Shard, assembly: Assembly) -> None:
        """Have a shard written: of level 0 from its blocks' records, above from the level before."""
        self._ready.append(
            (shard, assembly.window(shard), assembly.in_image(shard) if shard.level == 0 else None)
        )
        self._start()

    @property
    def is_busy(self) -> bool:
        return bool(self._running)

    def _start(self) -> None:
        waiting_s = len(self._ready) * self._work_s / max(1, self._written)
        wanted = min(self._at_once, 1 + int(waiting_s / _WORTH_A_PROCESS_S))
        while self._ready and len(self._running) < wanted:
            shard, window, in_image = self._ready.popleft()
            self._running[self._task.remote([self._context], shard, window, in_image)] = shard

    def done(self, *, wait: bool) -> Iterator[ShardDone]:
        """Shards that were written since the last call; with `wait`, at least one. Raises WorkError."""
        if not self._running:
            return
        ready, _ = ray.wait(
            list(self._running),
            num_returns=len(self._running) if not wait else 1,
            timeout=None if wait else 0,
        )
        for ref in ready:
            shard, answer = self._running.pop(ref), ray.get(ref)
            fail_on_error(answer, set_aside=self._set_aside)
            figures = answer.get("class_pixels", []), answer.get("work_s", 0.0)
            self._written += 1
            self._work_s += figures[1]
            self._start()
            yield ShardDone(shard, *figures, answer["error"], answer["passing"])

    def stop(self) -> None:
        """Nothing of what still waits or runs is wanted any more."""
        self._ready.clear()
        for ref in self._running:
            ray.cancel(ref, force=False)
        self._running.clear()


def _write(context: list[Any], shard: Shard, window: Window, in_image: Window | None) -> Row:
    plan, outputs, scratch = _fetched(context[0])
    return reported(lambda: _written(plan, outputs[shard.image], scratch, shard, window, in_image))


@functools.lru_cache(maxsize=1)
def _fetched(context: Any) -> tuple[Plan, list[Outputs], Scratch]:
    """Once in a process: unpacking the plan of a thousand images takes longer than writing a small one."""
    found: tuple[Plan, list[Outputs], Scratch] = ray.get(context)
    return found


def _written(
    plan: Plan, outputs: Outputs, scratch: Scratch, shard: Shard, window: Window, in_image: Window | None
) -> Row:
    started = time.process_time()  # zarr encodes in threads of its own
    counts: list[int] = []
    if in_image is None:
        outputs.mask.reduce(shard.level, window)
    else:
        if outputs.mask.has_shard(0, window):  # it is the last of its files that is written
            labels = outputs.mask.read(0, window)
        else:
            found = stitch(plan, shard.image, in_image, scratch)
            outputs.write(window, found)
            labels = found["labels"]
        counts = class_counts(labels, len(plan.classes)).tolist()
    return {"class_pixels": counts, "work_s": time.process_time() - started}


def class_counts(labels: np.ndarray, classes: int) -> np.ndarray:
    """Pixels of each class: int64 (classes,); nodata is not counted."""
    if classes > _FEW_CLASSES:
        return np.bincount(labels.reshape(-1), minlength=classes)[:classes].astype(np.int64)
    return np.array([np.count_nonzero(labels == i) for i in range(classes)], np.int64)
