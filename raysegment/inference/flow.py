"""Both stages at once: blocks are segmented, what is whole is stitched, an image is finished with its last shard."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raysegment import console
from raysegment.geometry import Block, Size
from raysegment.inference.assembly import Assembly, Shard
from raysegment.inference.pipeline import BlockDone, ModelSource, segment
from raysegment.inference.policy import Policy
from raysegment.inference.writing import ShardDone, Writing
from raysegment.mask.outputs import Outputs
from raysegment.storage import location

if TYPE_CHECKING:
    from raysegment.inference.plan import Plan
    from raysegment.inference.scratch import Scratch


@dataclass
class Tally:
    """What one image's blocks and shards add up to, in this run."""

    resumed: int = 0
    tiles: int = 0
    class_pixels: Counter[int] = field(default_factory=Counter)


@dataclass
class Clock:
    """When what happened, over all images."""

    first_block: float | None = None
    last_shard: float = 0.0
    compute_s: float = 0.0
    stitch_s: float = 0.0
    peak_bytes: int = 0

    @property
    def work_s(self) -> float:
        return self.last_shard - self.first_block if self.first_block is not None else 0.0

    def wait(self, devices: int) -> float:
        """Share of the time that `devices` devices did not compute."""
        return max(0.0, 1 - self.compute_s / (devices * self.work_s)) if self.work_s else 0.0


class Flow:
    """One run over all images of a plan.

    `finish` is told of every image whose shards are all written, `fail` of every one that is set aside, why, and
    whether that may pass.
    """

    def __init__(
        self,
        plan: Plan,
        todo: set[int],
        scratch: Scratch,
        finish: Callable[[int, Outputs, Tally], None],
        fail: Callable[[int, str, bool], None] | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.plan, self.scratch, self._finish, self._fail = plan, scratch, finish, fail
        self.policy = policy or Policy()
        self._created: set[int] = set()
        self._failed: set[int] = set()
        self.clock = Clock()
        self.outputs = [_outputs(plan, index) for index in range(len(plan.images))]
        self.assemblies = {i: Assembly(plan, i, self.outputs[i].mask) for i in sorted(todo)}
        self.tallies = {i: Tally() for i in self.assemblies}

    def run(self, model: ModelSource, workers: int) -> None:
        """Do all that is missing. Raises WorkError."""
        mine = [(i, block) for i, block in self.plan.blocks if i in self.assemblies]
        has = self.scratch.recorded().intersection(mine)
        missing = [at for at in mine if at not in has]
        if has:
            console.say(f"going on: {len(has)} of {len(mine)} blocks are there already")
        writing = Writing(
            self.plan, self.outputs, self.scratch, at_once=workers, set_aside=self.policy.set_aside
        )
        try:
            for index, block in has:
                self.tallies[index].resumed += 1
                self._block_is_there(index, block, writing)
            self._segment(missing, len(has), model, workers, writing)
            self._write_the_rest(writing)
        finally:
            writing.stop()

    def _segment(
        self, missing: list[tuple[int, Block]], done: int, model: ModelSource, workers: int, writing: Writing
    ) -> None:
        blocks, plan, began = done + len(missing), self.plan, time.monotonic()
        total = sum(plan.grids[i].own(block).area for i, block in missing) / 1e6
        with (
            console.progress("segment", total, "MP") as bar,
            contextlib.closing(segment(plan, missing, model, self.scratch, workers, self.policy)) as rows,
        ):
            for row in rows:
                done += 1
                self._note(row)
                if row.error:
                    self._set_aside(row.image, row.error, row.passing)
                self._block_is_there(row.image, row.block, writing)
                for shard in writing.done(wait=False):
                    self._shard_is_there(shard, writing)
                waited = self.clock.wait(workers)
                area = plan.grids[row.image].own(row.block).area / 1e6
                bar.advance(area, f"block {done}/{blocks}  device waited {100 * waited:.0f}%")
        console.detail(f"segmenting took {time.monotonic() - began:.1f} s")

    def _note(self, row: BlockDone) -> None:
        clock = self.clock
        if row.error:
            return
        clock.first_block = min(clock.first_block or row.began_at, row.began_at)
        clock.last_shard = time.time()
        clock.compute_s += row.compute_s
        clock.peak_bytes = max(clock.peak_bytes, row.peak_bytes)
        self.tallies[row.image].tiles += row.tiles

    def _write_the_rest(self, writing: Writing) -> None:
        going = [assembly for i, assembly in self.assemblies.items() if i not in self._failed]
        left = sum(assembly.unwritten for assembly in going)
        with console.progress("stitch", left, "shards") as bar:
            while writing.is_busy:
                for shard in writing.done(wait=True):
                    self._shard_is_there(shard, writing)
                    bar.advance()

    def _block_is_there(self, index: int, block: Block, writing: Writing) -> None:
        if index in self._failed:
            return
        assembly = self.assemblies[index]
        for shard in assembly.done(block):
            if index not in self._created:  # not all at the start: nobody works while a thousand are made
                self._created.add(index)
                self.outputs[index].create()
            writing.submit(shard, assembly)

    def _shard_is_there(self, done: ShardDone, writing: Writing) -> None:
        shard: Shard = done.shard
        assembly, tally = self.assemblies[shard.image], self.tallies[shard.image]
        if done.error:
            self._set_aside(shard.image, done.error, done.passing)
        if shard.image in self._failed:
            return
        tally.class_pixels.update(dict(enumerate(done.class_pixels)))
        self.clock.stitch_s += done.work_s
        self.clock.last_shard = time.time()
        for ready in assembly.written(shard):
            writing.submit(ready, assembly)
        if assembly.is_finished:
            self._finish(shard.image, self.outputs[shard.image], tally)

    def _set_aside(self, index: int, reason: str, passing: bool) -> None:
        """The image failed: nothing more of it is wanted."""
        if index not in self._failed and self._fail is not None:
            self._failed.add(index)
            self.scratch.set_aside(index)
            self._fail(index, reason, passing)


def _outputs(plan: Plan, index: int) -> Outputs:
    image = plan.images[index]
    sides = tuple(name for name in ("probabilities", "uncertainty") if getattr(plan, name))
    return Outputs.at(
        location(image.output),
        Size(*image.region.size),
        plan.label_dtype,
        len(plan.classes),
        plan.block_edge(index),
        plan.stride,
        sides,
    )
