"""Decoded pieces of images (tiles, strips, chunks) of which the last window took only a part.

Windows come from left to right, and from the top down. A piece that goes on to the right of a window is wanted by
the next one; a piece that goes on below it alone is wanted by the next row of windows, if it can wait that long: so
those go first when room is needed. What goes on to neither side is not kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from raysegment.geometry import Window

    #: Whose piece it is (see :meth:`SegmentCache.forget`), and which one of its.
    Key = tuple[object, Hashable]


class SegmentCache:
    """Keeps at most `most_bytes` of them; safe from several threads.

    A piece that is taken is no longer here: whoever took it keeps it again if more of it will be wanted.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        """Of what is kept."""
        self._lock = threading.Lock()
        self._next: OrderedDict[Key, np.ndarray] = OrderedDict()
        self._later: OrderedDict[Key, np.ndarray] = OrderedDict()

    def take(self, key: Key) -> np.ndarray | None:
        """The piece, which is forgotten here; None if it is not kept. Not to be written to."""
        with self._lock:
            return self._remove(key)

    def keep(self, key: Key, pixels: np.ndarray, place: Window, part: Window) -> None:
        """Keep the piece that covers `place` if it goes on to the right of `part` or below it.

        `place` ends where the image ends. Whoever keeps several for one window sees to it that all of them fit.
        """
        goes_on_right, goes_on_below = part.right < place.right, part.bottom < place.bottom
        if not (goes_on_right or goes_on_below) or pixels.nbytes > self.most_bytes:
            return
        with self._lock:
            self._remove(key)
            (self._next if goes_on_right else self._later)[key] = pixels
            self.bytes += pixels.nbytes
            while self.bytes > self.most_bytes:
                _, oldest = (self._later or self._next).popitem(last=False)
                self.bytes -= oldest.nbytes

    def __contains__(self, key: Key) -> bool:
        with self._lock:
            return key in self._next or key in self._later

    def forget(self, owner: object) -> None:
        """Let go of every piece of `owner`."""
        with self._lock:
            for key in [*self._next, *self._later]:
                if key[0] is owner:
                    self._remove(key)

    def _remove(self, key: Key) -> np.ndarray | None:
        pixels = self._next.pop(key, None)
        if pixels is None:
            pixels = self._later.pop(key, None)
        if pixels is not None:
            self.bytes -= pixels.nbytes
        return pixels


#: Of all images that this process has open: a run of blocks needs one column of pieces (5 MB for RGB tiles of 512² and
#: blocks of 2300 px, 13 MB for tiles of 1024²), and training keeps dozens of images open. More saves no time that
#: shows, and a large image fills it where a small one does not.
DECODED = SegmentCache(16 << 20)
