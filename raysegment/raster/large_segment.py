"""Tiles and strips so large that no window should have to decode one again.

A segment is kept decoded, as long as it fits. Where windows are known to go down through it, they are cut from one
pass over its rows (segment_stream.py): a few megabytes, whatever its size. So is, from its top for every window,
one that is too large to be kept; it is checked first, for a segment is readable as a whole or not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from raysegment.raster.segment_stream import SegmentStream

#: A segment that unpacks to more than this counts as large.
LARGE_BYTES = 1 << 24
#: Decoded segments that are kept take at most this much together; a larger one can only be streamed.
MOST_KEPT_BYTES = 1 << 30


class LargeSegments:
    """What has been decoded of the large segments of one page; safe from several threads, one at a time.

    `segment_bytes`: of one, unpacked; `planes`: how many segments lie at one place.
    `decode(index)` gives a whole segment (y, x, sample); `stream(index)` a new pass over its rows, None where its
    codec cannot do that.
    """

    def __init__(
        self,
        segment_bytes: int,
        planes: int,
        decode: Callable[[int], np.ndarray | None],
        stream: Callable[[int], SegmentStream] | None,
    ) -> None:
        self._decode, self._stream, self._planes = decode, stream, planes
        self._most_kept = min(planes, MOST_KEPT_BYTES // segment_bytes)
        self._lock = threading.Lock()
        self.in_order = False
        """Whether windows go down through the segments: whoever set it gives up at the first that is broken."""
        self._sound: set[int] = set()
        self._kept: dict[int, np.ndarray | None] = {}
        self._streams: dict[int, SegmentStream] = {}

    def read(self, index: int, rows: slice, columns: slice, whole_rows: bool) -> np.ndarray | None:
        """Those pixels of a segment (rows, columns, samples); None where it holds none. Raises what codecs raise.

        `whole_rows`: whether no other window can want more of these rows.
        """
        with self._lock:  # one at a time, or every thread would hold one
            if index not in self._kept:
                if not self._most_kept or (self.in_order and whole_rows and self._is_below(index, rows)):
                    return self._streamed(index, rows, columns)
                self._keep(index)
            segment = self._kept[index]
        return None if segment is None else segment[rows, columns]

    def _is_below(self, index: int, rows: slice) -> bool:
        """Whether a pass over the segment can go on, or begin, with these rows."""
        under_way = self._streams.get(index)
        below = rows.start == 0 if under_way is None else rows.start >= under_way.next_row
        return self._stream is not None and below

    def _streamed(self, index: int, rows: slice, columns: slice) -> np.ndarray:
        stream = self._streams.pop(index, None)  # a pass that fails is not gone on with
        assert self._stream is not None
        if not self.in_order and index not in self._sound:
            self._stream(index).check()
            self._sound.add(index)
        if stream is None or stream.next_row > rows.start:
            stream = self._stream(index)
        pixels = stream.read(rows, columns)
        self._streams[index] = stream
        _keep_last(self._streams, self._planes)
        return pixels

    def _keep(self, index: int) -> None:
        self._streams.pop(index, None)
        _keep_last(self._kept, self._most_kept - 1)  # room first: the new one is not small
        self._kept[index] = self._decode(index)


def _keep_last(things: dict[int, Any], count: int) -> None:
    """Forget all but the `count` newest."""
    for index in list(things)[: max(0, len(things) - count)]:
        del things[index]
