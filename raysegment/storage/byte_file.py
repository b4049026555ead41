"""The bytes of a file on this machine, by offset.

``pread`` has no file position, so several threads may read at once without a lock.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable


class ByteFile:
    """Bytes of a file by offset; safe from several threads. Closed at the latest when nobody refers to it any more."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd: int | None = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._close = weakref.finalize(self, os.close, self._fd)
        self.size = os.fstat(self._fd).st_size

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """See :meth:`raysegment.storage.url_file.UrlFile.expect`; a disk needs no warning."""

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes. Raises OSError, EOFError when the file ends before."""
        self.check(offset, count)
        assert self._fd is not None
        data = os.pread(self._fd, count, offset)
        while len(data) < count:  # pread gives at most 2 GiB at once
            more = os.pread(self._fd, count - len(data), offset + len(data))
            if not more:
                raise EOFError(f"the file ended at {offset + len(data)} while it was being read")
            data += more
        return data

    def check(self, offset: int, count: int) -> None:
        """Raise EOFError when the file ends before the last of those bytes, OSError when it was closed."""
        if self._fd is None:
            raise OSError(f"{self.path} is closed")
        if offset + count > self.size:
            raise EOFError(f"its bytes {offset}–{offset + count} lie beyond the file's end at {self.size}")

    def close(self) -> None:
        self._fd = None
        self._close()
