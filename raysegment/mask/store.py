"""The mask as an OME-Zarr 0.5 label image: sharded Zarr v3, full resolution first, half at every further level.

The root ``zarr.json`` (header.py) is written last: while it is missing, there is no mask. Whose it is then, level 0
says: its array has an attribute ``raysegment``, which says what it was begun with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from raysegment.geometry import Size, Window
from raysegment.mask.coding import FIELD_KEY, KEY
from raysegment.mask.header import MaskHeader, mask_attributes
from raysegment.storage import Location
from raysegment.storage.objects import children, remove, zarr_store

#: The smallest level of the pyramid is not larger than this.
TOP_LEVEL_PX = 1024
CHUNK_PX = 1024


class MaskStore:
    """An OME-Zarr mask that is being written. `shard` is the edge of a shard: one writer each. `begun`: what a run
    must have in common with the one that began it, to go on with it."""

    def __init__(
        self, path: Location, shape: Size, dtype: np.dtype, shard: int, begun: dict[str, Any] | None = None
    ) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        self.shard, self.chunk = shard, chunk_edge(shard)
        self.attributes: dict[str, Any] = {KEY: begun or {}}
        """Of the array of level 0."""

    @property
    def level_shapes(self) -> list[Size]:
        """Sizes of all levels, full resolution first, down to TOP_LEVEL_PX."""
        shapes = [self.shape]
        while max(shapes[-1]) > TOP_LEVEL_PX:
            shapes.append(Size(-(-shapes[-1].height // 2), -(-shapes[-1].width // 2)))
        return shapes

    def create(self) -> None:
        """Make every level's array, empty (= nodata)."""
        for level, shape in enumerate(self.level_shapes):
            if (self.path / str(level) / "zarr.json").exists():
                continue
            zarr.create_array(
                # as a store of its own: Zarr would write the root's zarr.json otherwise
                zarr_store(self.path / str(level)),
                shape=shape,
                chunks=(self.chunk, self.chunk),
                shards=(self.shard, self.shard),
                dtype=self.dtype,
                compressors=ZstdCodec(level=3),
                fill_value=int(np.iinfo(self.dtype).max),
                attributes=self.attributes if level == 0 else None,
                dimension_names=("y", "x"),
            )

    def is_begun_so(self) -> bool:
        """Whether what lies there is an unfinished mask, begun with the same in the same shards."""
        stored = _metadata(self.path / "0")
        grid = {"name": "regular", "configuration": {"chunk_shape": [self.shard, self.shard]}}
        is_alike = (stored.get("attributes"), stored.get("chunk_grid")) == (self.attributes, grid)
        return is_alike and not (self.path / "zarr.json").is_file()

    def shards(self, level: int) -> list[Window]:
        """The pixels of every shard of a level."""
        height, width = self.level_shapes[level]
        return [
            Window.between(y, x, min(y + self.shard, height), min(x + self.shard, width))
            for y in range(0, height, self.shard)
            for x in range(0, width, self.shard)
        ]

    def has_shard(self, level: int, window: Window) -> bool:
        """Whether the shard was written. (One that holds only nodata is never stored.)"""
        return (
            self.path / str(level) / "c" / str(window.y // self.shard) / str(window.x // self.shard)
        ).exists()

    def read(self, level: int, window: Window) -> np.ndarray:
        """Labels (window.height, window.width) of a level."""
        store = zarr_store(self.path / str(level), read_only=True)
        return np.asarray(zarr.open_array(store, mode="r")[window.slices()])

    def write(self, level: int, window: Window, labels: np.ndarray) -> None:
        """Write one whole shard: `labels` (window.height, window.width). One that is all nodata is not stored."""
        if (labels != np.iinfo(self.dtype).max).any():
            write_whole(self.path / str(level), window, labels)

    def finish(self, header: MaskHeader) -> None:
        """Write the root metadata: from now on there is a mask."""
        sweep(self.path)
        zarr.create_group(zarr_store(self.path), attributes=mask_attributes(header, len(self.level_shapes)))


def sweep(path: Location) -> None:
    """Delete what zarr leaves on a disk of a shard whose writer was killed."""
    if isinstance(path, Path):
        for leftover in path.rglob("*.partial"):
            leftover.unlink()


def remove_store(path: Location) -> None:
    """Delete a mask or what lies beside one: what is left of it, if that is cut short, is no mask, and still ours."""
    remove(path / "zarr.json")
    if path.exists():
        for name in children(path):
            # the metadata of level 0 says whose it is
            remove(path / name / "c" if name == "0" else path / name)
    remove(path)


def write_whole(array: Location, window: Window, values: np.ndarray) -> None:
    """Write a whole shard of the last two axes as it is. Zarr would compare every chunk with the fill value first,
    which takes as long as all the rest."""
    with zarr.config.set({"array.write_empty_chunks": True}):
        zarr.open_array(zarr_store(array), mode="r+")[..., *window.slices()] = values


def chunk_edge(shard: int) -> int:
    """The edge of a chunk: one that divides a shard's, as near to CHUNK_PX as they come."""
    divisors = [d for d in range(1, shard + 1) if shard % d == 0]
    return min(divisors, key=lambda d: abs(np.log(d / CHUNK_PX)))


def mode_2x2(labels: np.ndarray) -> np.ndarray:
    """The most frequent of each 2 × 2 pixels, (h, w) → (⌈h/2⌉, ⌈w/2⌉); ties go to the earlier pixel, row by row.

    An odd last row or column counts twice.
    """
    height, width = labels.shape
    padded = (
        np.pad(labels, ((0, height % 2), (0, width % 2)), mode="edge") if height % 2 or width % 2 else labels
    )
    a, b, c, d = (np.ascontiguousarray(padded[y::2, x::2]) for y in (0, 1) for x in (0, 1))
    a_is_alone = (a != b) & (a != c) & (a != d)
    if a_is_alone.any():
        np.copyto(a, c, where=a_is_alone & (c == d))
        np.copyto(a, b, where=a_is_alone & ((b == c) | (b == d)))
    return a


def finished(path: Location) -> dict[str, Any] | None:
    """What a finished mask of ours at `path` says of itself (its ``raysegment`` attributes), or None: also where
    somebody else's, or damaged, metadata lies."""
    about = _stored_attributes(path).get(KEY)
    return about if _is_complete(about) else None


def is_ours(path: Location) -> bool:
    """Whether a mask of ours lies there, or what is written beside one: finished, or begun and never finished."""
    if not (path / "zarr.json").is_file():
        return KEY in _stored_attributes(path / "0")
    return finished(path) is not None or FIELD_KEY in _stored_attributes(path)


def _stored_attributes(path: Location) -> dict[str, Any]:
    """Attributes of the Zarr at `path`; none where its metadata is missing or cannot be understood."""
    attributes = _metadata(path).get("attributes")
    return attributes if isinstance(attributes, dict) else {}


def _metadata(path: Location) -> dict[str, Any]:
    """The same of all of its metadata."""
    if not (path / "zarr.json").is_file():
        return {}
    try:
        stored = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return stored if isinstance(stored, dict) else {}


def _is_complete(about: Any) -> bool:
    """Whether these attributes say what a call that finds its mask finished answers."""
    try:
        _, _, height, width = map(int, about["recipe"]["region"])
        counts = [int(about["tiles"]), *map(int, about["class_pixels"].values())]
        return min(height, width, *counts) >= 0 and isinstance(about.get("failed_regions", []), list)
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
