"""A lock file on this machine's disks, freed by the system when its holder dies. At a URL it is a lease (lease.py)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from raysegment.errors import LockedError

#: Lock files that may be deleted, one after the other, between our opening them and our locking them.
_TRIES = 100


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, which is made, with its folder, and names its holder.

    Whoever holds it may delete it: who opened it meanwhile finds that it has no name any more, and takes the new one.
    `wait`: until it is free. Raises LockedError naming the holder, OSError where nothing can be locked.
    """
    with contextlib.closing(_held(path, wait)) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _held(path: Path, wait: bool) -> IO[str]:
    """The lock file, open and locked. Raises as :func:`locked` does."""
    for _ in range(_TRIES):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            try:
                file = opened.enter_context(open(path, "a+", encoding="utf-8"))
            except FileNotFoundError:  # its folder went with the lock of who was here before
                continue
            _lock(file, path, wait)
            if _is_named(file, path):
                opened.pop_all()
                return file
    raise LockedError(f"{path} comes and goes: wait for who works there, or name another output")


def _lock(file: IO[str], path: Path, wait: bool) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as e:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise LockedError(f"{path} is held by {holder}: wait for it, or name another output") from e
    except OSError as e:  # some network file systems have no locks
        e.filename = str(path)
        raise


def _is_named(file: IO[str], path: Path) -> bool:
    """Whether the open file is the one of that name, and no one's that was deleted."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
