"""Windows of scenes, drawn by index and read lazily.

Sample i of a run is a function of (seed, i) alone. So the samples come in one global order however many
workers share them, and where a run stands is one integer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from raysegment.classes import ClassMap
from raysegment.errors import InputError
from raysegment.geometry import Size, Window, mirror
from raysegment.raster import Raster
from raysegment.raster.sampling import SampledRaster
from raysegment.raster.walk import windows
from raysegment.training.dataset import Scene, usable
from raysegment.training.forms import Source
from raysegment.training.resolution import Resampled
from raysegment.training.survey import mask_valid

#: Target of a pixel that is neither learned nor scored.
IGNORE = 255

#: What one worker keeps of scenes that are decoded whole, and as much again of the pieces that larger ones are read in.
_CACHE_BYTES = 512 << 20
_WHOLE_PX = 16 << 20
_OPEN_FILES = 64


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample: its place in the run and what it shows."""

    index: int
    scene: int
    window: Window
    """The pixels that are learned; it may stick out of the scene."""


class Sampler(Protocol):
    """What decides which windows a run shows."""

    def draw(self, index: int) -> Draw:
        """Sample `index` of the run."""
        ...


class WindowSampler:
    """Draws tiles uniformly over the pixels of all scenes, each in logarithmic time.

    A tile may stick out of its scene by an eighth: the mirrored rim that inference shows the network is
    then part of what it learned, and pixels at the edge are seen more often than never.
    """

    def __init__(self, sizes: Sequence[Size], tile: int, seed: int) -> None:
        self.sizes, self.tile, self.seed = tuple(sizes), tile, seed
        areas = np.array([s.area for s in sizes], dtype=np.float64)
        self._cumulative = np.cumsum(areas / areas.sum())

    def draw(self, index: int) -> Draw:
        """Sample `index` of the run."""
        rng = np.random.default_rng((self.seed, 0, index))
        scene = int(np.searchsorted(self._cumulative, rng.random(), side="right"))
        scene = min(scene, len(self.sizes) - 1)  # the last sum may fall short of 1 by rounding
        y, x = (int(rng.integers(*self.starts(n), endpoint=True)) for n in self.sizes[scene])
        return Draw(index, scene, Window(y=y, x=x, height=self.tile, width=self.tile))

    def starts(self, length: int) -> tuple[int, int]:
        """The first and the last place where a tile may start along an axis of `length` pixels."""
        low, high = sorted((-(self.tile // 8), length - self.tile + self.tile // 8))
        return low, high


@dataclass(frozen=True, slots=True)
class Sample:
    """Pixels and targets of one window."""

    pixels: np.ndarray
    """(h, w, channels), the network's channels, as stored or in the nearest dtype that torch takes."""
    target: np.ndarray
    """(h, w) uint8 class indices, IGNORE where nothing is learned."""
    valid: np.ndarray
    """(h, w) bool, False = the image has no data."""


class WindowReader:
    """Reads windows of scenes; small scenes are decoded once and kept, within a bound. For one thread."""

    def __init__(self, scenes: Sequence[Scene], channels: Sequence[int], classes: ClassMap) -> None:
        self.scenes, self.channels, self.classes = tuple(scenes), tuple(channels), classes
        self._cache: OrderedDict[int, Sample] = OrderedDict()
        self._cached_bytes = 0
        self._open: OrderedDict[Source, Raster] = OrderedDict()

    def read(self, scene: int, window: Window) -> Sample:
        """A window, mirrored where it sticks out of the scene. Raises ReadError, and InputError for a mask
        value that belongs to no class."""
        size = self.scenes[scene].size
        hull, index = mirror(window, size)
        whole = self._whole(scene) if size.area <= _WHOLE_PX else None
        found = self._decode(scene, hull) if whole is None else _cut(whole, hull.slices())
        return found if index is None else _cut(found, index)

    def targets(self, scene: int) -> Iterator[tuple[Window, np.ndarray]]:
        """All targets of a scene, (h, w) uint8 as :meth:`read` gives them, block by block, each pixel once.

        The image is read only where it can lack data. Raises as :meth:`read` does.
        """
        paths, size = self.scenes[scene], self.scenes[scene].size
        with closing(paths.image.open()) as image, closing(paths.mask.open()) as mask:
            gaps = _can_lack_data(image, paths)
            for window in windows(Window(y=0, x=0, height=size.height, width=size.width), mask.chunk):
                valid = image.valid(window, image.read(window)) if gaps else None
                yield window, self._target(paths, mask, window, valid)

    def _whole(self, scene: int) -> Sample:
        if scene in self._cache:
            self._cache.move_to_end(scene)
            return self._cache[scene]
        size = self.scenes[scene].size
        sample = self._decode(scene, Window(y=0, x=0, height=size.height, width=size.width))
        for source in {self.scenes[scene].image, self.scenes[scene].mask}:
            self._open.pop(source).close()
        self._cache[scene] = sample
        self._cached_bytes += _bytes(sample)
        while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
            self._cached_bytes -= _bytes(self._cache.popitem(last=False)[1])
        return sample

    def _decode(self, scene: int, window: Window) -> Sample:
        paths = self.scenes[scene]
        image, mask = self._opened(paths.image), self._opened(paths.mask)
        stored = image.read(window)
        valid = image.valid(window, stored)
        target = self._target(paths, mask, window, valid)
        pixels = stored if self.channels == tuple(range(stored.shape[2])) else stored[:, :, self.channels]
        pixels = usable(pixels, valid, str(paths.image))
        return Sample(pixels, target, np.ones(stored.shape[:2], bool) if valid is None else valid)

    def _target(self, scene: Scene, mask: Raster, window: Window, valid: np.ndarray | None) -> np.ndarray:
        """uint8 class indices, IGNORE where the mask says so or the image is not `valid`."""
        codes = mask.read(window)
        try:
            target = self.classes.map(codes, mask_valid(mask, window, codes, self.classes), mask.palette)
        except InputError as e:
            raise InputError(f"{scene.mask}, {window}: {e}") from e
        if valid is not None:
            target[~valid] = IGNORE
        return target.astype(np.uint8, copy=False)

    def _opened(self, source: Source) -> Raster:
        if source not in self._open:
            self._open[source] = source.open()
        self._open.move_to_end(source)
        while len(self._open) > _OPEN_FILES or (
            len(self._open) > 2  # image and mask of one scene
            and sum(map(_piece_bytes, self._open.values())) > _CACHE_BYTES
        ):
            self._open.popitem(last=False)[1].close()
        return self._open[source]


def says_gaps(image: Raster) -> bool:
    """Whether the header of an image says how pixels without data are marked: a value, NaN or alpha."""
    return image.nodata is not None or image.alpha is not None or image.dtype.kind == "f"


def _can_lack_data(image: Raster, scene: Scene) -> bool:
    """Whether an image has means to say that pixels hold no data: a nodata value, NaN, alpha or a mask page."""
    if says_gaps(image):
        return True
    corner = Window(y=0, x=0, height=1, width=1)
    source = scene.image.source if isinstance(scene.image, Resampled) else scene.image
    with closing(source.open()) as stored:  # a resampled one says None of a full window
        return stored.valid(corner, stored.read(corner)) is not None


def _cut(sample: Sample, where: tuple[object, ...]) -> Sample:
    return Sample(sample.pixels[where], sample.target[where], sample.valid[where])  # type: ignore[index]


def _piece_bytes(raster: Raster) -> int:
    """What an open file may keep decoded: the piece that it is read in, which is all of a picture."""
    stored = raster.raster if isinstance(raster, SampledRaster) else raster
    return max(chunk.area for chunk in stored.chunks) * stored.shape[2] * stored.dtype.itemsize


def _bytes(sample: Sample) -> int:
    return sample.pixels.nbytes + sample.target.nbytes + sample.valid.nbytes
