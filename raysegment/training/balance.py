"""Balanced sampling: a third of each batch's windows shows a rarer class, at a place that an index knows.

The index is made of the masks once, streaming. Of each class and scene it keeps the pixels whose keyed hash is
lowest: a sample that is uniform, bounded, and the same in whatever blocks and order the masks are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from raysegment import console
from raysegment.geometry import Window
from raysegment.training.windows import Draw, WindowReader, WindowSampler

#: Places that an index keeps in all, 8 bytes each: every worker holds them.
_KEPT = 1 << 20
#: One window in this many, rounded up in each batch, is drawn around a rarer class.
_ONE_IN = 3


@dataclass(frozen=True, eq=False)
class ClassIndex:
    """Where the rarer classes are."""

    groups: np.ndarray
    """int64 (groups, 4): class, scene, that class's pixels there, places kept; ascending by class and scene."""
    places: np.ndarray
    """int32 (places, 2): y, x of each group's pixels, one group after the other."""


class BalancedSampler:
    """Draws like a :class:`WindowSampler`, but for the first third of each batch.

    These windows show a rarer class: all that were found are equally likely, and of the chosen one every pixel,
    or each that was kept where there are too many. The pixel lies within a quarter of a tile from the window's
    centre: so near that no rotation, flip or scale of the augmentation moves it out of the window.
    """

    def __init__(self, uniform: WindowSampler, index: ClassIndex, batch_size: int) -> None:
        """`batch_size`: of all workers together, and so the samples of one step."""
        self.uniform, self.index, self.batch_size = uniform, index, batch_size
        self._first = np.concatenate([[0], np.cumsum(index.groups[:, 3])])
        changes = np.flatnonzero(np.diff(index.groups[:, 0])) + 1
        self._classes = list(pairwise([0, *changes.tolist(), len(index.groups)])) if len(index.groups) else []
        self._pixels = [np.cumsum(index.groups[first:last, 2]) for first, last in self._classes]

    def draw(self, index: int) -> Draw:
        """Sample `index` of the run."""
        if not (self._classes and self._is_balanced(index)):
            return self.uniform.draw(index)
        rng = np.random.default_rng((self.uniform.seed, 0, index))
        chosen = int(rng.integers(len(self._classes)))
        pixels = self._pixels[chosen]
        group = self._classes[chosen][0] + int(
            np.searchsorted(pixels, rng.integers(pixels[-1]), side="right")
        )
        scene = int(self.index.groups[group, 1])
        pixel = self.index.places[rng.integers(self._first[group], self._first[group + 1])]
        y, x = (self._around(rng, int(p), n) for p, n in zip(pixel, self.uniform.sizes[scene], strict=True))
        return Draw(index, scene, Window(y=y, x=x, height=self.uniform.tile, width=self.uniform.tile))

    def _is_balanced(self, index: int) -> bool:
        if self.batch_size == 1:
            return index % _ONE_IN == 0
        return index % self.batch_size * _ONE_IN < self.batch_size

    def _around(self, rng: np.random.Generator, pixel: int, length: int) -> int:
        """Where a tile starts that shows `pixel` and sticks out of the scene no further than any other."""
        tile = self.uniform.tile
        start = pixel - tile // 2 + int(rng.integers(-(tile // 4), tile // 4, endpoint=True))
        low, high = self.uniform.starts(length)
        return min(max(start, low), high)


def rarer(shares: Sequence[float]) -> tuple[int, ...]:
    """The classes that hold less than an equal share of the pixels, by `shares` of all classes."""
    return tuple(c for c, share in enumerate(shares) if share < 1 / len(shares))


def build_index(reader: WindowReader, classes: Sequence[int]) -> ClassIndex:
    """Where `classes` are in the reader's scenes. Raises ReadError, and InputError for a mask value of no class.

    Holds one block of a mask at a time, and at most about `_KEPT` places.
    """
    keep = max(1, _KEPT // max(1, len(reader.scenes) * len(classes)))
    found: list[tuple[int, int, _Places]] = []
    with console.progress("index", len(reader.scenes), "images") as bar:
        for scene in range(len(reader.scenes)):
            places = [(c, scene, _Places(scene, keep)) for c in classes]
            for window, target in reader.targets(scene):
                for c, _, of_class in places:
                    of_class.add(window, target == c)
            found += [p for p in places if p[2].pixels]
            bar.advance()
    found.sort(key=lambda f: f[:2])
    groups = [(c, scene, places.pixels, len(places.keys)) for c, scene, places in found]
    kept = [places.sorted() for _, _, places in found]
    return ClassIndex(
        np.array(groups, np.int64).reshape(-1, 4),
        np.concatenate([np.empty((0, 2), np.int32), *kept]),
    )


class _Places:
    """The pixels of one class in one scene with the lowest hashes, of all that were added in whatever order."""

    def __init__(self, scene: int, keep: int) -> None:
        self.pixels, self._keep = 0, keep
        self._salt = _hash(np.array([scene], np.uint64))
        self.keys = np.empty(0, np.uint64)
        self._at = np.empty(0, np.uint64)

    def add(self, window: Window, here: np.ndarray) -> None:
        """`here` (h, w) bool: the pixels of the class in the window."""
        flat = np.flatnonzero(here)
        if not len(flat):
            return
        self.pixels += len(flat)
        y, x = np.divmod(flat, window.width)
        at = (y + window.y).astype(np.uint64) << np.uint64(32) | (x + window.x).astype(np.uint64)
        keys = _hash(at ^ self._salt)
        if len(self.keys) == self._keep:
            low = keys < self.keys.max()
            keys, at = keys[low], at[low]
        keys, at = np.concatenate([self.keys, keys]), np.concatenate([self._at, at])
        if len(keys) > self._keep:
            lowest = np.argpartition(keys, self._keep - 1)[: self._keep]
            keys, at = keys[lowest], at[lowest]
        self.keys, self._at = keys, at

    def sorted(self) -> np.ndarray:
        """int32 (places, 2): y, x in the order of their hashes."""
        at = self._at[np.argsort(self.keys)]
        return np.stack([at >> np.uint64(32), at & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int32)


def _hash(values: np.ndarray) -> np.ndarray:
    """A permutation of uint64 whose values look random: the finaliser of SplitMix64 (Steele et al. 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
