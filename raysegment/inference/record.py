"""What a segmented block leaves in the scratch: what is final of its core, weighted sums of its rims."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import imagecodecs
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from raysegment.geometry import Window
from raysegment.raster.salvage import Failure


@dataclass(frozen=True)
class Record:
    """One block, segmented."""

    own: Window
    core: dict[str, np.ndarray]
    """By the names of :func:`~raysegment.inference.outcome.outcome`, (…, own.height, own.width): final in the core,
    0 in the rims. Labels are nodata wherever there is nothing to label."""
    rims: dict[str, np.ndarray] = field(default_factory=dict)
    """By the names of :class:`~raysegment.inference.grid.Rims`: int32 (planes, h, w), the sums of the block's own
    tiles in fixed point. None where no tile ran."""
    tiles: int = 0
    """Tiles that were forwarded."""
    failures: tuple[Failure, ...] = ()
    """What could not be read of what its tiles see, in image pixels: nodata."""
    failed: str = ""
    """Why the whole block is lost; its neighbours then lack its share of their pixels."""

    def to_bytes(self) -> bytes:
        """As a safetensors file; the core as zstd streams. The same record gives the same bytes."""
        packed = {
            f"core.{name}": np.frombuffer(imagecodecs.zstd_encode(values.tobytes(), level=1), np.uint8)
            for name, values in self.core.items()
        }
        about = {
            "tiles": self.tiles,
            "failures": [((w := f.window).y, w.x, w.bottom, w.right, f.reason) for f in self.failures],
            "failed": self.failed,
            "own": (self.own.y, self.own.x, self.own.bottom, self.own.right),
            "core": {name: (values.dtype.str, values.shape) for name, values in self.core.items()},
        }
        return save({**packed, **self.rims}, metadata={"record": json.dumps(about)})


class RecordFile:
    """A record on disk, of which only what is asked for is read."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="np")
        about = json.loads(self._file.metadata()["record"])
        self.tiles: int = about["tiles"]
        self.failures = [Failure(Window.between(*f[:4]), f[4]) for f in about["failures"]]
        self.failed: str = about["failed"]
        self.own = Window.between(*about["own"])
        self._core = about["core"]
        self._names = frozenset(self._file.keys())

    def core(self, name: str) -> np.ndarray:
        """See :class:`Record`."""
        dtype, shape = self._core[name]
        packed = self._file.get_tensor(f"core.{name}")
        return np.frombuffer(imagecodecs.zstd_decode(packed), np.dtype(dtype)).reshape(shape)

    def rim(self, name: str, window: Window, part: Window) -> np.ndarray | None:
        """The pixels `part` of the rim `name`, which covers `window`: int32 (planes, h, w); None = nothing summed."""
        if name not in self._names:
            return None
        rows, cols = part.slices(origin=window)
        return self._file.get_slice(name)[:, rows, cols]
