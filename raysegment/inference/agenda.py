"""What is still to be given out: shards that can be written, and blocks to be segmented, in runs of neighbours.

Free of Ray: it holds no worker, only which run each of them is on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace

from raysegment.geometry import Block, Window
from raysegment.inference.assembly import Shard


@dataclass(frozen=True, slots=True)
class BlockWork:
    """A block to be segmented."""

    image: int
    block: Block
    is_suspect: bool = False
    """It was in hand when a worker died, and may be why: nothing else is to be at work beside it."""


@dataclass(frozen=True, slots=True)
class ShardWork:
    """A shard to be written: of level 0 from its blocks' records, above from the level before."""

    shard: Shard
    window: Window
    """Its pixels, in its level of the mask."""
    in_image: Window | None
    """Of level 0: its pixels in the image."""

    @property
    def image(self) -> int:
        return self.shard.image


Work = BlockWork | ShardWork


class Agenda:
    """Hands out each piece of work once; what a lost worker had in hand is put back."""

    def __init__(self, missing: Iterable[tuple[int, Block]], workers: int) -> None:
        self._runs = deque(runs(missing, workers))
        self._on: dict[Hashable, deque[BlockWork]] = {}
        """The run that each worker goes along."""
        self._shards: deque[ShardWork] = deque()
        self._suspects: deque[BlockWork] = deque()
        self.blocks = sum(map(len, self._runs))
        """Blocks that were not given out yet."""

    @property
    def shards(self) -> int:
        """Shards that can be written and were not given out yet."""
        return len(self._shards)

    def waiting_blocks(self) -> Iterator[BlockWork]:
        """Those that were not given out yet."""
        for run in (self._suspects, *self._runs, *self._on.values()):
            yield from run

    def next_shard(self) -> ShardWork | None:
        """The shard that could be written first."""
        return self._shards.popleft() if self._shards else None

    def next_block(self, worker: Hashable, *, is_free: bool) -> BlockWork | None:
        """The next block of the run that `worker` is on, or of a new one; for one that has nothing in hand, first what
        is suspect."""
        if self._suspects and is_free:
            self.blocks -= 1
            return self._suspects.popleft()
        if not self._on.get(worker):
            if not self._runs:
                return self._of_another()
            self._on[worker] = self._runs.popleft()
        self.blocks -= 1
        return self._on[worker].popleft()

    def _of_another(self) -> BlockWork | None:
        """The last block of the longest run that another worker is on: it may be long in coming back."""
        longest = max(self._on.values(), key=len, default=None)
        if not longest:
            return None
        self.blocks -= 1
        return longest.pop()

    def put(self, work: Work) -> None:
        """A shard that can be written; or work that a worker was lost with."""
        if isinstance(work, ShardWork):
            self._shards.append(work)
        else:
            self._suspects.append(replace(work, is_suspect=True))
            self.blocks += 1

    def drop(self, image: int) -> None:
        """Nothing more of an image is wanted."""
        self._shards = deque(work for work in self._shards if work.image != image)
        self._keep_blocks_unless(lambda work: work.image == image)

    def drop_blocks(self) -> None:
        """No further block is to be taken in hand."""
        self._keep_blocks_unless(lambda _: True)

    def _keep_blocks_unless(self, unwanted: Callable[[BlockWork], bool]) -> None:
        self._suspects = deque(work for work in self._suspects if not unwanted(work))
        kept = [deque(work for work in run if not unwanted(work)) for run in self._runs]
        self._runs = deque(run for run in kept if run)
        self._on = {
            worker: deque(work for work in run if not unwanted(work)) for worker, run in self._on.items()
        }
        self.blocks = sum(1 for _ in self.waiting_blocks())


def runs(missing: Iterable[tuple[int, Block]], workers: int) -> list[deque[BlockWork]]:
    """The blocks cut into runs of neighbours, long ones first and single blocks at the end.

    A run goes along two rows of blocks at once, up and down: a worker that goes on with the next block has up to half
    of its border decoded already. And when little is left, nobody must wait for one who still has much.
    """
    order = sorted(missing, key=lambda at: (at[0], at[1].row // 2, at[1].col, at[1].row))
    found: list[deque[BlockWork]] = []
    at, room = (-1, -1), 0
    for done, (image, block) in enumerate(order):
        if at != (image, block.row // 2) or room == 0:
            room = max(1, (len(order) - done) // (4 * workers))
            found.append(deque())
        at = (image, block.row // 2)
        found[-1].append(BlockWork(image, block))
        room -= 1
    return found
