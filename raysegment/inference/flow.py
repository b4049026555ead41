"""All of a run at once: blocks are segmented, what is whole is stitched, an image is finished with its last shard."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray

from raysegment import console
from raysegment.console import counted
from raysegment.errors import WorkError
from raysegment.geometry import Block
from raysegment.inference.agenda import Agenda, BlockWork, ShardWork, Work
from raysegment.inference.answer import Row, fail_on_error
from raysegment.inference.assembly import Assembly, Shard
from raysegment.inference.crew import Crew
from raysegment.inference.policy import Policy
from raysegment.inference.scratch import MAX_ATTEMPTS
from raysegment.inference.writing import outputs_of
from raysegment.mask.outputs import Outputs
from raysegment.raster.salvage import Failure

if TYPE_CHECKING:
    from raysegment.inference.grid import Grid
    from raysegment.inference.plan import Plan
    from raysegment.inference.scratch import Scratch


@dataclass
class Tally:
    """What one image's blocks and shards add up to, in this run."""

    resumed: int = 0
    tiles: int = 0
    class_pixels: Counter[int] = field(default_factory=Counter)
    tiles_skipped: int = 0
    """In this run or the ones before it, as the next."""
    failures: list[Failure] = field(default_factory=list)
    """What could not be read, and blocks that are lost; in image pixels."""

    def note(self, grid: Grid, block: Block, tiles: int, failures: Iterable[Failure], failed: str) -> None:
        """What a block's record says."""
        self.failures += failures
        if failed:
            self.failures.append(Failure(grid.extent(block), failed))
        else:
            rows, cols = grid.block_tiles(block)
            self.tiles_skipped += len(rows) * len(cols) - tiles


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
        self._lost: Counter[Shard] = Counter()
        """How often a worker died with each."""
        self.clock = Clock()
        self.outputs = [outputs_of(plan, index) for index in range(len(plan.images))]
        self.assemblies = {i: Assembly(plan, i, self.outputs[i].mask) for i in sorted(todo)}
        self.tallies = {i: Tally() for i in self.assemblies}

    def run(self, model: Any, workers: int) -> None:
        """Do all that is missing. `model`: a ModelSource, or Ray's reference to one. Raises WorkError."""
        mine = [(i, block) for i, block in self.plan.blocks if i in self.assemblies]
        recorded = self.scratch.recorded()
        has = {(i, block) for i, block in mine if (self.plan.images[i].key, block) in recorded}
        missing = [at for at in mine if at not in has]
        if has:
            console.say(f"going on: of {counted(len(mine), 'block')} {len(has)} there already")
        agenda = Agenda(missing, workers)
        for index, block in has:
            self.tallies[index].resumed += 1
            if self.plan.images[index].skip or self.plan.on_error == "skip":
                record = self.scratch.open_record(self.plan.images[index].key, block)
                self._note(index, block, record.tiles, record.failures, record.failed)
            self._block_is_there(index, block, agenda)
        with contextlib.closing(
            Crew(self.plan, workers, len(missing), (ray.put(self.plan), model, self.scratch, self.policy))
        ) as crew:
            self._segment(agenda, crew, len(has), workers)
            self._write_the_rest(agenda, crew)

    def _segment(self, agenda: Agenda, crew: Crew, done: int, workers: int) -> None:
        """Until every block is segmented; what becomes whole on the way is written."""
        plan, blocks, began = self.plan, done + agenda.blocks, time.monotonic()
        total = sum(plan.grids[work.image].own(work.block).area for work in agenda.waiting_blocks()) / 1e6
        with console.progress("segment", total, "MP") as bar:
            while agenda.blocks or crew.has_blocks:
                for work in self._turn(agenda, crew):
                    if isinstance(work, BlockWork):
                        done += 1
                        waited = f"device waited {100 * self.clock.wait(workers):.0f}%"
                        area = plan.grids[work.image].own(work.block).area / 1e6
                        bar.advance(area, f"block {done}/{blocks}  {waited}")
        console.detail(f"segmenting took {time.monotonic() - began:.1f} s")

    def _write_the_rest(self, agenda: Agenda, crew: Crew) -> None:
        going = [assembly for i, assembly in self.assemblies.items() if i not in self._failed]
        left = sum(assembly.unwritten for assembly in going)
        with console.progress("stitch", left, "shards") as bar:
            while agenda.shards or crew.is_busy:
                for _ in self._turn(agenda, crew):
                    bar.advance()

    def _turn(self, agenda: Agenda, crew: Crew) -> Iterator[Work]:
        """Give out what can be given out, and wait until something is done; tells of it."""
        if self.policy.until is not None and time.time() >= self.policy.until:
            agenda.drop_blocks()
        crew.take_from(agenda)
        for work, row in crew.answers(self.policy.until):
            if row is None:
                self._put_back(work, agenda)
                continue
            fail_on_error(row, set_aside=self.policy.set_aside)
            self.clock.peak_bytes = max(self.clock.peak_bytes, row["peak_bytes"])
            if row["error"]:
                self._set_aside(work.image, row, agenda)
            elif isinstance(work, BlockWork):
                self._block_is_done(work, row, agenda)
            else:
                self._shard_is_done(work.shard, row, agenda)
            yield work

    def _put_back(self, work: Work, agenda: Agenda) -> None:
        """Its worker died: somebody else does it. Of blocks the attempts are counted where they are taken in hand."""
        if work.image in self._failed:
            return
        if isinstance(work, ShardWork):
            self._lost[work.shard] += 1
            if self._lost[work.shard] == MAX_ATTEMPTS:
                source = self.plan.images[work.image].source
                error = f"writing {work.window} of {source} took its worker down {MAX_ATTEMPTS} times"
                if not self.policy.set_aside:
                    raise WorkError(error)
                self._set_aside(work.image, {"error": error, "passing": False}, agenda)
                return
        agenda.put(work)

    def _block_is_done(self, work: BlockWork, row: Row, agenda: Agenda) -> None:
        clock = self.clock
        clock.first_block = min(clock.first_block or row["began_at"], row["began_at"])
        clock.last_shard = time.time()
        clock.compute_s += row["compute_s"]
        self.tallies[work.image].tiles += row["tiles"]
        self._note(work.image, work.block, row["tiles"], row["failures"], row["failed"])
        self._block_is_there(work.image, work.block, agenda)

    def _note(self, index: int, block: Block, tiles: int, failures: Iterable[Failure], failed: str) -> None:
        self.tallies[index].note(self.plan.grids[index], block, tiles, failures, failed)

    def _block_is_there(self, index: int, block: Block, agenda: Agenda) -> None:
        if index in self._failed:
            return
        for shard in self.assemblies[index].done(block):
            if index not in self._created:  # not all at the start: nobody works while a thousand are made
                self._created.add(index)
                self.outputs[index].create()
            self._is_ready(shard, agenda)

    def _is_ready(self, shard: Shard, agenda: Agenda) -> None:
        assembly = self.assemblies[shard.image]
        in_image = assembly.in_image(shard) if shard.level == 0 else None
        agenda.put(ShardWork(shard, assembly.window(shard), in_image))

    def _shard_is_done(self, shard: Shard, row: Row, agenda: Agenda) -> None:
        if shard.image in self._failed:
            return
        assembly, tally = self.assemblies[shard.image], self.tallies[shard.image]
        tally.class_pixels.update(dict(enumerate(row["class_pixels"])))
        self.clock.stitch_s += row["work_s"]
        self.clock.last_shard = time.time()
        for ready in assembly.written(shard):
            self._is_ready(ready, agenda)
        if assembly.is_finished:
            self._finish(shard.image, self.outputs[shard.image], tally)

    def _set_aside(self, index: int, row: Row, agenda: Agenda) -> None:
        """The image failed: nothing more of it is wanted."""
        if index not in self._failed and self._fail is not None:
            self._failed.add(index)
            agenda.drop(index)
            self._fail(index, row["error"], row["passing"])
