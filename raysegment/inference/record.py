"""What a segmented block leaves in the scratch: what is final of its core, weighted sums of its rims."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import imagecodecs
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from raysegment.geometry import Window
from raysegment.raster.salvage import Failure
from raysegment.storage import Location, Url
from raysegment.storage.url_file import UrlFile


@dataclass(frozen=True)
class Record:
    """One block, segmented."""

    own: Window
    core: dict[str, np.ndarray]
    """By the names of :func:`~raysegment.inference.outcome.outcome`, (…, own.height, own.width): final in the core,
    0 in the rims. Labels are nodata wherever there is nothing to label."""
    rims: dict[str, np.ndarray] = field(default_factory=dict)
    """By the names of :class:`~raysegment.inference.grid.Rims`: int32 (plan.sums, h, w), the sums of the block's own
    tiles in fixed point. Empty where no tile ran."""
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


#: The header of a record comes with the first so many bytes.
_HEADER_BYTES = 1 << 14
_DTYPES: dict[str, Any] = {"U8": np.dtype("u1"), "I32": np.dtype("<i4")}


class _Tensors:
    """A safetensors file at a URL, as `safe_open` gives one on a disk: a tensor is one request.

    https://github.com/huggingface/safetensors#format
    """

    def __init__(self, url: Url) -> None:
        self._file = UrlFile(url)
        self._file.expect([(0, min(_HEADER_BYTES, self._file.size))])
        length = int.from_bytes(self._file.read(0, 8), "little")
        self._header: dict[str, Any] = json.loads(self._file.read(8, length))
        self._metadata: dict[str, str] = self._header.pop("__metadata__")
        self._start = 8 + length

    def metadata(self) -> dict[str, str]:
        return self._metadata

    def keys(self) -> list[str]:
        return list(self._header)

    def get_tensor(self, name: str) -> np.ndarray:
        about = self._header[name]
        start, stop = about["data_offsets"]
        data = self._file.read(self._start + start, stop - start)
        return np.frombuffer(data, _DTYPES[about["dtype"]]).reshape(about["shape"])

    get_slice = get_tensor


class RecordFile:
    """A record, of which only what is asked for is read."""

    def __init__(self, path: Location) -> None:
        self._file: Any = _Tensors(path) if isinstance(path, Url) else safe_open(path, framework="np")
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
