"""What a segmented block leaves in the scratch: final labels of its core, weighted sums of its rims."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from raysegment.geometry import Window


@dataclass(frozen=True)
class Record:
    """One block, segmented."""

    own: Window
    labels: np.ndarray
    """(own.height, own.width): class index in the core, 0 in the rims, nodata wherever the source has none."""
    rims: dict[str, np.ndarray]
    """By the names of :class:`~raysegment.inference.grid.Rims`: int32 (classes, h, w), the sums of the block's own
    tiles in fixed point."""
    tiles: int
    """Forward passes it took."""

    def to_bytes(self) -> bytes:
        """As a safetensors file; the labels as one zstd stream. The same record gives the same bytes."""
        packed = imagecodecs.zstd_encode(self.labels.tobytes(), level=1)
        tensors = {"labels": np.frombuffer(packed, np.uint8), **self.rims}
        about = {"tiles": self.tiles, "dtype": self.labels.dtype.str, "own": _corners(self.own)}
        return save(tensors, metadata={"record": json.dumps(about)})


class RecordFile:
    """A record on disk, of which only what is asked for is read."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="np")
        about = json.loads(self._file.metadata()["record"])
        self.tiles: int = about["tiles"]
        self.own = Window.between(*about["own"])
        self._dtype = np.dtype(about["dtype"])

    def labels(self) -> np.ndarray:
        """See :class:`Record`."""
        packed = self._file.get_tensor("labels")
        flat = np.frombuffer(imagecodecs.zstd_decode(packed), self._dtype)
        return flat.reshape(self.own.height, self.own.width)

    def rim(self, name: str, window: Window, part: Window) -> np.ndarray:
        """The pixels `part` of the rim `name`, which covers `window`: int32 (classes, h, w)."""
        rows, cols = part.slices(origin=window)
        return self._file.get_slice(name)[:, rows, cols]


def _corners(window: Window) -> tuple[int, int, int, int]:
    return window.y, window.x, window.bottom, window.right
