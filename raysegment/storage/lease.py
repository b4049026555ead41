"""A lock with an owner and an expiry, for places where no system frees it when its holder dies.

One small file: who holds it, and until when. The holder renews it while it lives. Whoever finds it goes on at once
where it has run out or its holder, a process of this very machine, is dead; otherwise waits for it to run out, and
gives up as soon as it is renewed. Taking over what has run out is delete and create: of several who do so at the same
moment, the one whose file stays holds it, and the others find out, at the latest when they would renew it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from raysegment import console
from raysegment.errors import LockedError, StorageError, WorkError
from raysegment.storage.location import Location
from raysegment.storage.objects import put, put_new, remove

#: Renewed three times in that long: two renewals may fail.
LASTS_S = 60.0
_POLL_S = 2.0
#: How long after a takeover we look whose file stayed.
_SETTLES_S = 1.0


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds it."""

    host: str
    pid: int
    token: str
    """Of this very holding."""
    expires_at: float
    """Seconds since the epoch, by the holder's clock."""
    kernel: str = ""
    """See :func:`_kernel`: where its pid means this process."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_dead(self) -> bool:
        """Whether it has run out, or was a process that this one could see, and is no more."""
        return time.time() > self.expires_at or self.is_seen is False

    @property
    def is_seen(self) -> bool | None:
        """Whether the process is there; None where this one could not see it."""
        # a container may have the name of its host, and its own pids
        if not self.kernel or self.kernel != _kernel():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


class Lease:
    """A lock that is held; see :func:`hold`."""

    def __init__(self, place: Location, lasts_s: float) -> None:
        self.place, self._lasts_s, self._token = place, lasts_s, secrets.token_hex(8)
        self._over = threading.Event()
        self._lost_to: str | None = None
        self._expires_at = 0.0
        """What the file says, if it is still ours. By the clock that goes on while the machine sleeps."""
        self._renewing = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    @property
    def is_lost(self) -> bool:
        """Whether another run took it; or may have, for it ran out and cannot be renewed."""
        if time.time() > self._expires_at:  # who was asleep that long asks before the thread that renews does
            self._renew()
        return self._lost_to is not None or time.time() > self._expires_at

    def check(self) -> None:
        """Raise WorkError when another run took it, or may have, because it could not be renewed in time."""
        if not self.is_lost:
            return
        if self._lost_to is None:
            raise WorkError(f"{self.place} ran out and cannot be renewed: repeat the call")
        raise WorkError(f"{self.place} was lost to {self._lost_to}: repeat the call when that run is over")

    def take(self) -> None:
        """Raise LockedError naming the holder, StorageError."""
        while not self._written(put_new):
            holder = _holder(self.place)
            if holder is not None and not holder.is_dead:
                _wait_for(self.place, holder)
            remove(self.place)
            if self._written(put_new):
                time.sleep(_SETTLES_S)
                if (now := _holder(self.place)) is None or now.token == self._token:
                    break
        self._thread.start()

    def give_up(self) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(StorageError):  # it runs out
            holder = _holder(self.place)
            if holder is not None and holder.token == self._token:
                remove(self.place)

    def _written(self, write: Callable[[Location, bytes], bool | None]) -> bool | None:
        """What `write` says, given the file that says how long it is ours from now on."""
        expires_at = time.time() + self._lasts_s
        holder = Holder(socket.gethostname(), os.getpid(), self._token, expires_at, _kernel())
        said = write(self.place, json.dumps(asdict(holder)).encode())
        self._expires_at = expires_at
        return said

    def _keep(self) -> None:
        while not self._over.wait(self._lasts_s / 3) and self._lost_to is None:
            self._renew()

    def _renew(self) -> None:
        """Say for how long it is ours from now on, or find out who took it."""
        with self._renewing:
            try:
                holder = _holder(self.place)
                if holder is not None and holder.token != self._token:
                    self._lost_to = str(holder)
                elif self._lost_to is None:
                    self._written(put)
            except (OSError, StorageError) as e:
                console.detail(f"{self.place} could not be renewed: {e}")


@contextlib.contextmanager
def hold(place: Location, *, lasts_s: float = LASTS_S) -> Iterator[Lease]:
    """Hold the lock file `place`, renewing it until the end.

    Waits as long as a holder that may be dead is given. Raises LockedError naming a living holder; OSError or
    StorageError where nothing can be written.
    """
    lease = Lease(place, lasts_s)
    lease.take()
    try:
        yield lease
    finally:
        lease.give_up()


def _kernel() -> str:
    """Which boot of which machine, and which of its process namespaces; "" where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _holder(place: Location) -> Holder | None:
    """What the file says; None where there is none, or none of ours."""
    try:
        return Holder(**json.loads(place.read_bytes()))
    except (FileNotFoundError, TypeError, ValueError):
        return None


def _wait_for(place: Location, holder: Holder) -> None:
    """Return when the lock has run out or is gone. Raises LockedError as soon as its holder is known to live: where it
    cannot be seen, by its renewing the lock."""
    if holder.is_seen:
        raise _locked(place, holder)
    console.say(
        f"{place} is held by {holder}: waiting {holder.expires_at - time.time():.0f} s whether it is alive"
    )
    while not holder.is_dead:
        time.sleep(_POLL_S)
        now = _holder(place)
        if now is None:
            return
        if now != holder:
            raise _locked(place, now)


def _locked(place: Location, holder: Holder) -> LockedError:
    return LockedError(f"{place} is held by {holder}: wait for it, or name another output")
