"""What is written beside a mask at full resolution: class probabilities, uncertainty; uint8 OME-Zarr 0.5 images."""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from raysegment.geometry import Size, Window
from raysegment.mask.coding import FIELD_KEY, KEY
from raysegment.mask.header import MaskHeader, multiscale, placement
from raysegment.mask.store import chunk_edge, sweep, write_whole
from raysegment.storage import Location
from raysegment.storage.objects import zarr_store


class FieldStore:
    """A uint8 field (y, x), or (c, y, x) with `channels`, that is being written; `shard`: the edge of a shard."""

    def __init__(self, path: Location, shape: Size, channels: int | None, shard: int) -> None:
        self.path, self.shape, self.channels = path, shape, channels
        self.shard, self.chunk = shard, chunk_edge(shard)

    def create(self) -> None:
        """Make the array, empty (= 0)."""
        if (self.path / "0" / "zarr.json").exists():
            return
        leading = () if self.channels is None else (self.channels,)
        zarr.create_array(
            # as a store of its own: Zarr would write the root's zarr.json otherwise
            zarr_store(self.path / "0"),
            shape=(*leading, *self.shape),
            chunks=(*(1 for _ in leading), self.chunk, self.chunk),
            shards=(*leading, self.shard, self.shard),
            dtype=np.uint8,
            compressors=ZstdCodec(level=3),
            fill_value=0,
            # whose it is, while there is no root
            attributes={KEY: {}},
            dimension_names=(*("c" for _ in leading), "y", "x"),
        )

    def write(self, window: Window, values: np.ndarray) -> None:
        """Write one whole shard: `values` uint8 ([channels,] height, width). One that is all 0 is not stored."""
        if values.any():
            write_whole(self.path / "0", window, values)

    def finish(self, header: MaskHeader, about: dict[str, Any]) -> None:
        """Write the root metadata: from now on there is a field."""
        sweep(self.path)
        ome = {
            "version": "0.5",
            "multiscales": [multiscale(header, 1, has_channels=self.channels is not None)],
        }
        zarr.create_group(
            zarr_store(self.path),
            attributes={
                "ome": ome,
                FIELD_KEY: {**about, "recipe": header.recipe},
                **placement(header),
            },
        )
