"""Workers as threads of this process: a property test cannot start four processes for each example."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch

from raysegment.training.parallel import Workers

Answer = TypeVar("Answer")


class _Thread(Workers):
    """One of several workers whose sums meet in a list."""

    def __init__(self, rank: int, shares: list[torch.Tensor], barrier: Barrier) -> None:
        super().__init__()
        self.rank, self.size = rank, len(shares)
        self._shares, self._barrier = shares, barrier

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return torch.stack(self._all(values)).sum(dim=0)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._all(rows))

    def _all(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Every worker's values."""
        self._shares[self.rank] = values.detach().clone()
        self._barrier.wait(timeout=60)
        found = list(self._shares)
        self._barrier.wait(timeout=60)
        return found


def together(size: int, work: Callable[[Workers], Answer]) -> list[Answer]:
    """What `size` workers answer, in the order of their ranks."""
    shares, barrier = [torch.empty(0)] * size, Barrier(size)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, [_Thread(rank, shares, barrier) for rank in range(size)]))
