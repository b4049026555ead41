"""Copy one level of an image, once, into a store from which windows are read cheaply.

For sources whose layout makes windows dear: one huge strip, tiles far larger than a window, slow storage. Every
chunk of the source is decoded once, in bounded memory, and lands in a sharded Zarr v3 array; where validity
cannot be told from the pixels, a second array holds it. What reads the store is transcoded.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from raysegment.geometry import Window
from raysegment.hardware import available_cores
from raysegment.raster.large_segment import LARGE_BYTES
from raysegment.raster.layout import HELD_BYTES, Layout
from raysegment.raster.picture import PictureRaster
from raysegment.raster.tiff import TiffRaster
from raysegment.raster.validity import valid_pixels
from raysegment.storage import Location, Url
from raysegment.storage.file_lock import locked
from raysegment.storage.objects import remove, zarr_store

if TYPE_CHECKING:
    from raysegment.raster.protocol import Raster

#: Written into every store: one of another version is not taken for ours.
VERSION = 1
#: Reads 2.4 times as fast as level 1, and takes 2 % more space (a slide) to 18 % (Sentinel-2); LZ4, 10 % faster,
#: takes 14 % to 77 %.
_CODEC = ZstdCodec(level=-1)
#: More threads than this only wait for the disk.
_MOST_THREADS = 8


def transcode(
    raster: Raster,
    folder: Location,
    *,
    identity: str,
    level: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Location:
    """Copy a level of `raster` into a store in `folder`; the answer is the store's path.

    The same call again answers at once: the store's name stands for `identity` (the source's), its `select` and
    `level`. Whoever calls while another process makes the store waits for it. `progress` is told of pixels done.

    Raises ReadError naming the pixels that cannot be read, OSError naming the file that cannot be written; neither
    leaves a store behind.
    """
    about = {"version": VERSION, "identity": identity, "select": raster.select, "level": level}
    name = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=12).hexdigest()
    store = folder / f"{name}.zarr"
    if isinstance(store, Url) or isinstance(folder, Url):
        return _made_at_url(raster, store, about, level, progress)
    if store.exists():
        return store
    with locked(folder / f"{name}.lock", wait=True):
        if not store.exists():
            _make(raster, store, about, level, progress)
    return store


def _made_at_url(
    raster: Raster, store: Location, about: dict[str, Any], level: int, progress: Callable[[int], None] | None
) -> Location:
    """The same where nothing can be renamed: with its root, written last, it is there. Its folder must be locked."""
    if not (store / "zarr.json").is_file():
        remove(store)
        copy = _Copy(raster, level, store)
        copy.run(progress)
        zarr.create_group(
            zarr_store(store), attributes={"raysegment": {**about, "has_validity": copy.has_validity}}
        )
    return store


def _make(
    raster: Raster, store: Path, about: dict[str, Any], level: int, progress: Callable[[int], None] | None
) -> None:
    """Write into a folder with another name, which becomes the store when all of it is on the disk."""
    partial = store.with_suffix(".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
        copy = _Copy(raster, level, partial)  # nothing of it says that it is a store before all is there
        copy.run(progress)
        zarr.create_group(partial, attributes={"raysegment": {**about, "has_validity": copy.has_validity}})
        _sync(partial)
        os.replace(partial, store)
    except BaseException as e:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(e, OSError) and e.filename is None:  # a full disk does not say which
            e.filename = str(store)
        raise


@dataclass
class _Shard:
    """A shard that is being filled: pixels (h, w, channels), and bool (h, w) once some of it cannot tell by itself."""

    window: Window
    pixels: np.ndarray
    valid: np.ndarray | None
    missing: int
    """Pixels yet to come."""


class _Copy:
    """The copying of one level: windows of the source come in, whole shards go out."""

    def __init__(self, raster: Raster, level: int, path: Location) -> None:
        self.raster, self.level, self.size = raster, level, raster.levels[level]
        channels = raster.shape[2]
        self.pixel_bytes = channels * raster.dtype.itemsize
        self.layout = Layout.of(self.size, raster.chunks[level], self.pixel_bytes)
        self.has_validity = False
        self._begun: dict[Window, _Shard] = {}
        self._lock = threading.Lock()
        chunk, shard = self.layout.chunk, self.layout.shard
        self._pixels = zarr.create_array(
            zarr_store(path / "pixels"),
            shape=(*self.size, channels),
            chunks=(*chunk, channels),
            shards=(*shard, channels),
            dtype=raster.dtype,
            compressors=_CODEC,
            fill_value=0,
        )
        self._valid = zarr.create_array(
            zarr_store(path / "valid"),
            shape=self.size,
            chunks=chunk,
            shards=shard,
            dtype=bool,
            compressors=_CODEC,
            fill_value=True,
        )

    def run(self, progress: Callable[[int], None] | None) -> None:
        """Small windows are copied by several threads; large ones are read one by one, in order."""
        threads = min(available_cores(), _MOST_THREADS)
        step_bytes = self.layout.step.area * self.pixel_bytes
        under_way: deque[Future[None]] = deque()
        in_order = self.raster.in_order() if isinstance(self.raster, TiffRaster) else contextlib.nullcontext()
        with in_order, ThreadPoolExecutor(threads) as pool:
            try:
                for window in self._windows():
                    if step_bytes <= HELD_BYTES:
                        under_way.append(pool.submit(self._copy, window))
                    else:
                        under_way.extend(pool.submit(self._write, shard) for shard in self._read(window))
                    most = threads if window.area * self.pixel_bytes <= HELD_BYTES else 0
                    while len(under_way) > most:
                        under_way.popleft().result()
                    if progress is not None:
                        progress(window.area)
                while under_way:
                    under_way.popleft().result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _windows(self) -> Iterator[Window]:
        """The source in the order of reading. A large TIFF segment, or a picture, comes in parts from the top."""
        plane_bytes = self.raster.chunks[self.level].area * self.raster.dtype.itemsize
        in_parts = plane_bytes > LARGE_BYTES and isinstance(self.raster, TiffRaster | PictureRaster)
        return self.layout.windows(self.size, self.pixel_bytes, in_parts)

    def _copy(self, window: Window) -> None:
        for shard in self._read(window):
            self._write(shard)

    def _read(self, window: Window) -> Iterator[_Shard]:
        """Read a window; gives the shards that are complete now."""
        pixels = self.raster.read(window, self.level)
        valid = self._special_validity(window, pixels)
        for place in self.layout.shards(window, self.size):
            part = place.intersect(window)
            source = part.slices(window)
            if part == place:
                yield _Shard(place, pixels[source], None if valid is None else valid[source], 0)
                continue
            with self._lock:
                shard = self._begun.pop(place, None) or self._empty(place)
                target = part.slices(place)
                shard.pixels[target] = pixels[source]
                if valid is not None:
                    if shard.valid is None:
                        shard.valid = np.ones(place.size, bool)
                    shard.valid[target] = valid[source]
                shard.missing -= part.area
                if shard.missing:
                    self._begun[place] = shard
                    continue
            yield shard

    def _empty(self, place: Window) -> _Shard:
        pixels = np.empty((*place.size, self.raster.shape[2]), self.raster.dtype)
        return _Shard(place, pixels, None, place.area)

    def _special_validity(self, window: Window, pixels: np.ndarray) -> np.ndarray | None:
        """Where there is data; None where the pixels themselves tell as much."""
        valid = self.raster.valid(window, pixels, self.level)
        told = valid_pixels(pixels, self.raster.nodata, self.raster.alpha)
        if valid is None or (told is not None and np.array_equal(valid, told)):
            return None
        return valid

    def _write(self, shard: _Shard) -> None:
        self._pixels[shard.window.slices()] = shard.pixels
        if shard.valid is not None and not shard.valid.all():
            self.has_validity = True
            self._valid[shard.window.slices()] = shard.valid


def _sync(folder: Path) -> None:
    """Have everything in `folder` on the disk: a rename may survive a power cut that what it names does not."""
    for path in (*folder.rglob("*"), folder):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
