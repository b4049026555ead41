"""Rows of one compressed tile or strip, from top to bottom, without ever holding all of it.

Deflate, LZMA and Zstandard unpack as they are read, and both of TIFF's predictors work within a row: so a strip of
any size is decoded in a few megabytes. LZW, PackBits and the picture codecs have no such reader here.
"""

from __future__ import annotations

import io
import lzma
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from tifffile import TiffPage

    from raysegment.geometry import Size
    from raysegment.storage.byte_file import ByteFile
    from raysegment.storage.url_file import UrlFile

#: Compressed bytes that are read at once, and unpacked ones that are in hand at once.
_READ_BYTES = 1 << 17
_PIECE_BYTES = 1 << 22


class SegmentStream:
    """The decoded rows of one segment (y, x, sample); each call goes on below the one before."""

    def __init__(self, key: TiffPage, packed: Section, segment: Size, last_row: int, samples: int) -> None:
        """`packed`: the compressed segment, of which no row from `last_row` on will be asked for."""
        import tifffile

        self.next_row = 0
        self._segment, self._last_row, self._samples = segment, last_row, samples
        self._bytes = _UNPACK[key.compression](packed)
        self._stored = _stored_dtype(key)
        self._unpredict = None if key.predictor == 1 else tifffile.TIFF.UNPREDICTORS[key.predictor]

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Those pixels (rows, columns, samples) in native byte order; `rows` must not begin above `next_row`.

        Raises ValueError when the segment ends too early, and whatever the codec raises on damaged data.
        """
        at_once = max(1, _PIECE_BYTES // self._row_bytes)
        while self.next_row < rows.start:
            self._unpacked(min(at_once, rows.start - self.next_row))
        size = (rows.stop - rows.start, columns.stop - columns.start, self._samples)
        out = np.empty(size, self._stored.newbyteorder("="))
        for row in range(0, len(out), at_once):
            piece = self._decoded(min(at_once, len(out) - row))
            out[row : row + len(piece)] = piece[:, columns]
        if self.next_row == self._last_row:
            self._finish()
        return out

    def check(self) -> None:
        """Raise what :meth:`read` would raise at any row that is left."""
        self.read(slice(self._last_row, self._last_row), slice(0, 0))

    @property
    def _row_bytes(self) -> int:
        return self._segment.width * self._samples * self._stored.itemsize

    def _decoded(self, count: int) -> np.ndarray:
        stored = self._unpacked(count).view(self._stored).reshape(count, self._segment.width, self._samples)
        native = stored.astype(self._stored.newbyteorder("="), copy=False)
        return native if self._unpredict is None else self._unpredict(native, axis=-2)

    def _unpacked(self, count: int) -> np.ndarray:
        """The bytes of the next `count` rows."""
        data = bytearray(count * self._row_bytes)
        if self._unpack_into(memoryview(data)) < len(data):
            rows = self.next_row + count
            raise ValueError(f"it unpacks to less than {rows} rows of {self._segment.width} px")
        self.next_row += count
        return np.frombuffer(data, np.uint8)

    def _unpack_into(self, buffer: memoryview) -> int:
        """Fill `buffer`; the answer is less than its length where the segment ends before."""
        done = 0
        while done < len(buffer) and (got := self._bytes.readinto(buffer[done:])):
            done += got
        return done

    def _finish(self) -> None:
        """Go on to the segment's end, where its checksum lies: over the padding of a tile, which may be missing."""
        scrap = memoryview(bytearray(self._row_bytes))
        for _ in range(self.next_row, self._segment.height + 1):
            if self._unpack_into(scrap) < len(scrap):
                return


def can_stream(key: TiffPage) -> bool:
    """Whether a :class:`SegmentStream` understands the page's tiles or strips."""
    return (
        key.compression in _UNPACK
        and key.predictor in (1, 2, 3)
        and key.fillorder == 1
        and key.bitspersample in (8, 16, 32, 64)
        and not key.is_subsampled
    )


def _stored_dtype(key: TiffPage) -> np.dtype:
    """Of a sample once unpacked; the floating-point predictor (TIFF Technical Note 3) has a byte order of its own."""
    if key.dtype is None:
        raise ValueError("its samples are of no known type")
    return key.dtype.newbyteorder("=" if key.predictor == 3 else key.parent.byteorder)


class Section(io.RawIOBase):
    """Some bytes of a file as a file."""

    def __init__(self, file: ByteFile | UrlFile, offset: int, count: int) -> None:
        self._file, self._at, self._left = file, offset, count

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(self._at, min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._at += len(data)
        self._left -= len(data)
        return len(data)


class _Inflate(io.RawIOBase):
    """What a zlib stream unpacks to."""

    def __init__(self, packed: Section) -> None:
        self._packed, self._codec = packed, zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data and not self._codec.eof:
            packed = self._codec.unconsumed_tail or self._packed.read(_READ_BYTES)
            data = self._codec.decompress(packed, len(buffer))
            if not packed and not data:
                break
        buffer[: len(data)] = data
        return len(data)


def _unzstd(packed: Section) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(packed, mode="r"), "zstd")


def _unlzma(packed: Section) -> Any:
    return lzma.LZMAFile(io.BufferedReader(packed))


#: Something with ``readinto`` for each TIFF compression that can be read piece by piece.
_UNPACK: dict[int, Callable[[Section], Any]] = {
    8: _Inflate,
    32946: _Inflate,
    34925: _unlzma,
    50000: _unzstd,
}
