"""Which chunks of an image are in its file at all: sparse TIFFs and Zarrs leave out what is empty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from raysegment.geometry import Size


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """The chunks of one level that are in the file, told from metadata alone."""

    chunk: Size
    """Of one cell of the grid, in pixels of the level; the grid starts at pixel 0."""
    grid: np.ndarray
    """bool (rows, columns): True = there, in one channel at least. Not to be written to."""

    @classmethod
    def unless_whole(cls, chunk: Size, grid: np.ndarray) -> Stored | None:
        """None where every chunk is there."""
        if grid.all():
            return None
        grid.flags.writeable = False
        return cls(chunk, grid)
