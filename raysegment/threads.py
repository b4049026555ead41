"""Work on a stream of items by several threads, in order and in bounded memory."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from raysegment.hardware import available_cores

T = TypeVar("T")
U = TypeVar("U")

#: Threads that open files: at a URL each is a few round trips, and almost nothing is computed.
OPENERS = 16
#: Threads that read pixels, a few megabytes each: one per core, and enough to wait for a URL together.
READERS = min(8, max(4, available_cores()))


def in_order(
    make: Callable[[T], U], items: Iterable[T], threads: int | None = None
) -> Generator[U, None, None]:
    """``map(make, items)`` by `threads`, one per core by default; at most two results per thread wait to be fetched.

    Raises what `make` raises, for the first item that fails. The first item is done by the caller's thread: what it has
    imported is not imported by several at once, which packages with circular imports do not stand.
    """
    threads = threads or available_cores()
    rest = iter(items)
    for item in itertools.islice(rest, 1):
        yield make(item)
    waiting: deque[Future[U]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in rest:
            waiting.append(pool.submit(make, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
