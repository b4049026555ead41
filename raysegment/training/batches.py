"""Batches for the device: windows read ahead by one thread while the network computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from raysegment.geometry import Window
from raysegment.training.windows import Sample, Sampler, WindowReader

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True)
class Batch:
    """This worker's share of one global batch, on the host."""

    pixels: torch.Tensor
    """(n, h, w, channels) as stored."""
    target: torch.Tensor
    """(n, h, w) uint8 class indices or IGNORE."""
    valid: torch.Tensor
    """(n, h, w) bool, False = the image has no data."""
    indices: tuple[int, ...]
    """The samples' places in the run."""


def collate(samples: Sequence[Sample], indices: Sequence[int]) -> Batch:
    """Stack windows of one size."""
    return Batch(
        torch.from_numpy(np.stack([s.pixels for s in samples])),
        torch.from_numpy(np.stack([s.target for s in samples])),
        torch.from_numpy(np.stack([s.valid for s in samples])),
        tuple(indices),
    )


def load_batch(reader: WindowReader, sampler: Sampler, around: int, indices: Sequence[int]) -> Batch:
    """Samples of the run, each window with `around` pixels more on every side."""
    draws = [sampler.draw(i) for i in indices]
    return collate([reader.read(d.scene, widen(d.window, around)) for d in draws], indices)


def widen(window: Window, by: int) -> Window:
    """`by` pixels more on every side."""
    return Window(
        y=window.y - by, x=window.x - by, height=window.height + 2 * by, width=window.width + 2 * by
    )


def read_ahead(load: Callable[[Item], Loaded], items: Sequence[Item]) -> Iterator[Loaded]:
    """``load(item)`` of each item in order; the next one loads in a thread while the caller works on the last."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
        pending = [thread.submit(load, item) for item in items[:1]]
        for item in [*items[1:], None]:
            if not pending:
                return
            loaded = pending.pop().result()
            if item is not None:
                pending.append(thread.submit(load, item))
            yield loaded
