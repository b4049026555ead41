"""Who is told of SIGTERM while Ray runs in this process."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def same_sigterm() -> Iterator[None]:
    """Within, Ray may start or end: it puts its own handler over ours, which aborts a process that waits in Ray's C++,
    and takes away whatever there is when it ends."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before not in (None, signal.SIG_DFL) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
