"""The bytes of one object by offset, in few requests.

A request takes some 50 ms whatever it brings, as long as several megabytes do. So whoever is about to read says what
(:meth:`UrlFile.expect`); the first read then brings it and what comes after it, neighbours in one request, up to
`AHEAD_BYTES` at once. Nothing is kept beyond that: what is decoded is kept by others.
"""

from __future__ import annotations

import io
import threading
from bisect import bisect_right
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from raysegment.errors import StorageError
from raysegment.storage.remote import remote

if TYPE_CHECKING:
    from raysegment.storage.location import Url

#: Brought at once, at most, for each thread that reads.
AHEAD_BYTES = 16 << 20
#: Bytes between two pieces that are rather read along than left out by a second request.
GAP_BYTES = 1 << 18
#: Of one request: several bring as much in less time.
_REQUEST_BYTES = 4 << 20
_BLOCK_BYTES, _BLOCKS = 1 << 18, 32


class UrlFile:
    """Bytes of an object by offset; safe from several threads. Raises StorageError when it cannot be asked."""

    def __init__(self, url: Url) -> None:
        self.path = str(url)
        self._url = url
        info: dict[str, Any] = remote(url).call("open", url, lambda fs, path: fs.info(path))
        if not isinstance(info.get("size"), int):
            raise StorageError(f"cannot open {url}: the server does not say how large it is")
        self.size: int = info["size"]
        self._mine = _Mine()

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Say what this thread will read next: (offset, count), in that order."""
        self._mine.expected = [(offset, offset + count) for offset, count in ranges if count]

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes. Raises StorageError, EOFError when the object ends before."""
        self.check(offset, count)
        if not count:
            return b""
        found = self._mine.held(offset, count)
        if found is None:
            self._mine.starts, self._mine.pieces = self._fetched(self._wanted(offset, offset + count))
            found = self._mine.held(offset, count)
            assert found is not None
        return found

    def check(self, offset: int, count: int) -> None:
        """Raise EOFError when the object ends before the last of those bytes."""
        if offset + count > self.size:
            raise EOFError(f"its bytes {offset}–{offset + count} lie beyond the file's end at {self.size}")

    def close(self) -> None:
        """Nothing is held open; what was brought along goes."""
        self._mine = _Mine()

    def stream(self) -> io.BufferedIOBase:
        """The same as a file with a position, for readers of headers."""
        return _Stream(self)

    def _wanted(self, start: int, stop: int) -> list[tuple[int, int]]:
        """What to bring for a read of start … stop: at least that, and what is expected after it."""
        wanted, total = [(start, stop)], stop - start
        expected = self._mine.expected
        at = next((i for i, (low, high) in enumerate(expected) if low <= start and stop <= high), None)
        if at is None:
            return wanted
        ahead = [(stop, expected[at][1]), *expected[at + 1 :]]
        taken = 0
        for low, high in ahead:
            room = AHEAD_BYTES - total
            if room <= 0:
                break
            wanted.append((low, min(high, low + room)))
            total += wanted[-1][1] - low
            taken += 1
        self._mine.expected = expected[at + max(0, taken - 1) :]
        return wanted

    def _fetched(self, wanted: list[tuple[int, int]]) -> tuple[list[int], list[bytes]]:
        runs = _joined(wanted)
        # Cut up, and asked for all at once; joined again, so that what is read lies in one piece.
        cuts = [
            [(low, min(low + _REQUEST_BYTES, stop)) for low in range(start, stop, _REQUEST_BYTES)]
            for start, stop in runs
        ]
        flat = [cut for run in cuts for cut in run]
        starts, stops = [low for low, _ in flat], [high for _, high in flat]
        parts: list[bytes] = remote(self._url).call(
            "read",
            self._url,
            lambda fs, path: fs.cat_ranges([path] * len(flat), starts, stops, on_error="raise"),
        )
        for (low, high), part in zip(flat, parts, strict=True):
            if len(part) != high - low:
                raise StorageError(
                    f"cannot read {self._url}: the server sent {len(part)} bytes where {high - low} were "
                    "asked for: it must answer range requests"
                )
        left = iter(parts)
        return [start for start, _ in runs], [b"".join(next(left) for _ in run) for run in cuts]


class _Mine(threading.local):
    """What one thread expects, and what was brought for it."""

    def __init__(self) -> None:
        self.expected: list[tuple[int, int]] = []
        self.starts: list[int] = []
        self.pieces: list[bytes] = []

    def held(self, offset: int, count: int) -> bytes | None:
        at = bisect_right(self.starts, offset) - 1
        if at < 0:
            return None
        skip = offset - self.starts[at]
        piece = self.pieces[at]
        return piece[skip : skip + count] if skip + count <= len(piece) else None


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes and small gaps between them, as few runs in order."""
    runs: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if runs and start <= runs[-1][1] + GAP_BYTES:
            runs[-1] = (runs[-1][0], max(stop, runs[-1][1]))
        else:
            runs.append((start, stop))
    return runs


class _Stream(io.BufferedIOBase):
    """Reads through fsspec's cache of blocks: headers are read in small pieces, here and there."""

    def __init__(self, file: UrlFile) -> None:
        from fsspec.caching import BlockCache

        self.name = file.path
        self._cache = BlockCache(
            _BLOCK_BYTES,
            lambda start, stop: file.read(start, min(stop, file.size) - start),
            file.size,
            _BLOCKS,
        )
        self._at, self._size = 0, file.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        stop = self._size if size is None or size < 0 else min(self._size, self._at + size)
        data = bytes(self._cache._fetch(self._at, stop)) if stop > self._at else b""
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
