"""What may be written when: a shard once every block that reaches into it is done, then what is made from it.

blocks ─► shards of level 0 ─► shards of level 1 ─► …        each waits for those it is made of, and for no other
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raysegment.geometry import Block, Window

if TYPE_CHECKING:
    from raysegment.inference.plan import Plan
    from raysegment.mask.store import MaskStore


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the mask, and what one task writes."""

    image: int
    level: int
    row: int
    col: int


class Assembly:
    """The shards of one image that still wait for something. Holds a few hundred bytes for each."""

    def __init__(self, plan: Plan, index: int, store: MaskStore) -> None:
        self.index, self.edge, self._region = index, store.shard, plan.images[index].region
        self._sizes = store.level_shapes
        self._waiting: dict[Shard, int] = {}
        self._reached: dict[Block, list[Shard]] = defaultdict(list)
        for level in range(len(self._sizes)):
            for shard in self._shards(level):
                if level:
                    self._waiting[shard] = len(self._parts(shard))
                else:
                    reaching = plan.grids[index].blocks_reaching(self.in_image(shard))
                    self._waiting[shard] = len(reaching)
                    for block in reaching:
                        self._reached[block].append(shard)
        self.unwritten = len(self._waiting)

    @property
    def is_finished(self) -> bool:
        return self.unwritten == 0

    def window(self, shard: Shard) -> Window:
        """The pixels of a shard, in its level of the mask."""
        height, width = self._sizes[shard.level]
        y, x = shard.row * self.edge, shard.col * self.edge
        return Window.between(y, x, min(y + self.edge, height), min(x + self.edge, width))

    def in_image(self, shard: Shard) -> Window:
        """The pixels of a shard of level 0, in the image."""
        at, region = self.window(shard), self._region
        return Window(y=at.y + region.y, x=at.x + region.x, height=at.height, width=at.width)

    def done(self, block: Block) -> list[Shard]:
        """A block is segmented; returns the shards that can now be stitched."""
        return self._release(self._reached.pop(block, []))

    def written(self, shard: Shard) -> list[Shard]:
        """A shard is written; returns those of the next level that can now be made."""
        self.unwritten -= 1
        if shard.level + 1 == len(self._sizes):
            return []
        return self._release([Shard(self.index, shard.level + 1, shard.row // 2, shard.col // 2)])

    def _release(self, shards: Iterable[Shard]) -> list[Shard]:
        ready = []
        for shard in shards:
            self._waiting[shard] -= 1
            if self._waiting[shard] == 0:
                del self._waiting[shard]
                ready.append(shard)
        return ready

    def _shards(self, level: int) -> list[Shard]:
        rows, cols = (-(-length // self.edge) for length in self._sizes[level])
        return [Shard(self.index, level, row, col) for row in range(rows) for col in range(cols)]

    def _parts(self, shard: Shard) -> list[tuple[int, int]]:
        """Places of the shards of the level above that a shard is made from."""
        rows, cols = (-(-length // self.edge) for length in self._sizes[shard.level - 1])
        return [
            (row, col)
            for row in range(2 * shard.row, min(2 * shard.row + 2, rows))
            for col in range(2 * shard.col, min(2 * shard.col + 2, cols))
        ]
