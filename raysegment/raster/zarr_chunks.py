"""Which chunks a Zarr array holds, without reading one of them.

A folder is listed once; a shard, which is one file, says in its index which of its chunks it holds
(https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/).
"""

from __future__ import annotations

import contextlib
from itertools import product
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from raysegment.errors import ReadError
from raysegment.geometry import Size
from raysegment.raster.stored import Stored
from raysegment.storage import Location, Url
from raysegment.storage.objects import open_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysegment.raster.axes import Axes

#: Offset and length of a chunk that a shard does not hold.
_MISSING = 2**64 - 1
#: Bytes that the codecs add to a shard's index, by the codecs' names; others could change the index itself.
_INDEX_CODECS = {("bytes",): 0, ("bytes", "crc32c"): 4}


def stored_chunks(array: Any, axes: Axes, folder: Location) -> Stored | None:
    """The chunks of the plane that the zarr `array` holds in `folder`; None where all of them are there, or nobody
    can say: a web server has no listings.

    Raises ReadError when a folder cannot be listed, StorageError.
    """
    if isinstance(folder, Url) and not folder.is_writable:
        return None
    chunks = tuple(array.chunks)
    files = tuple(array.shards or chunks)  # what one file covers
    inside = tuple(f // c for f, c in zip(files, chunks, strict=True))
    counts = [ceil(n / f) for n, f in zip(array.shape, files, strict=True)]
    ranges: list[Sequence[int]] = [range(n) for n in counts]
    within: list[int | slice] = [slice(None)] * len(counts)
    for axis, index in axes.fixed.items():
        ranges[axis] = (index // files[axis],)
        within[axis] = index % files[axis] // chunks[axis]
    grid = np.zeros((counts[axes.y] * inside[axes.y], counts[axes.x] * inside[axes.x]), bool)
    folders = _Folders(folder)
    for place in product(*ranges):
        name = array.metadata.encode_chunk_key(place)
        if folders.hold(name):
            y, x = place[axes.y] * inside[axes.y], place[axes.x] * inside[axes.x]
            there: np.ndarray | bool = True
            if array.shards:
                held = _held_by_shard(folder / name, array.metadata.codecs[0], inside)[tuple(within)]
                plane = held.transpose(axes.kept_order())
                there = plane.reshape(*plane.shape[:2], -1).max(axis=2)
            grid[y : y + inside[axes.y], x : x + inside[axes.x]] |= there
    chunk = Size(chunks[axes.y], chunks[axes.x])
    rows, columns = ceil(array.shape[axes.y] / chunk.height), ceil(array.shape[axes.x] / chunk.width)
    return Stored.unless_whole(chunk, np.ascontiguousarray(grid[:rows, :columns]))


class _Folders:
    """The names in the folders of a store, each folder listed once."""

    def __init__(self, root: Location) -> None:
        self._root = root
        self._names: dict[str, frozenset[str]] = {}

    def hold(self, key: str) -> bool:
        folder, _, name = key.rpartition("/")
        if folder not in self._names:
            self._names[folder] = self._listed(folder)
        return name in self._names[folder]

    def _listed(self, folder: str) -> frozenset[str]:
        try:
            return frozenset(entry.name for entry in (self._root / folder).iterdir())
        except FileNotFoundError:  # no chunk was ever written there
            return frozenset()
        except OSError as e:
            raise ReadError(f"cannot list {self._root / folder}: {e.strerror or e}") from e


def _held_by_shard(path: Location, codec: Any, inside: tuple[int, ...]) -> np.ndarray:
    """bool, one for each inner chunk. All of them where the index cannot be read: reading the chunks says why."""
    extra = _INDEX_CODECS.get(tuple(c.to_dict()["name"] for c in codec.index_codecs))
    if extra is None:
        return np.ones(inside, bool)
    size = 16 * prod(inside)
    try:
        with contextlib.closing(open_bytes(path)) as file:
            at_end = codec.index_location.value == "end"
            data = file.read(max(0, file.size - size - extra) if at_end else 0, size)
    except (OSError, EOFError):
        return np.ones(inside, bool)
    # Entries of a missing chunk are all ones, in either byte order.
    return (np.frombuffer(data, "<u8").reshape(*inside, 2) != _MISSING).any(axis=-1)
