"""A Ray that this process starts for itself; or the one there is already."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from raysegment import console
from raysegment.errors import RaysegmentError, UsageError, WorkError
from raysegment.hardware import available_cores
from raysegment.runtime.address import where
from raysegment.runtime.security import close_token_file, ensure_token
from raysegment.runtime.signals import same_sigterm

#: Logical CPUs beyond the workers' own, so that Ray's small tasks never wait for them.
EXTRA_CPUS = 2
#: What a Ray that a process has for itself alone says of itself, as a resource: it ends with that process.
PRIVATE = "raysegment-private"
#: Times that it is started before it is given up.
_STARTS = 3
#: Set while the Ray at hand is one that this process started.
OURS = threading.Event()
#: Calls that share it, each in a thread of its own or within another, and what guards their number.
_sharers = 0
_sharing = threading.Lock()

#: How the C library of a worker is to hold memory: in one arena, kept between the layers of a network. Otherwise it
#: maps and unmaps every activation, 12,000 page faults a tile; with it the U-Net is 10 % faster and peaks lower.
#: Only glibc looks at it, and only when a process starts.
WORKER_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:"
    "glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=67108864",
}
#: The same for workers that must be small: what a layer gives back goes back to the system at once. A tenth slower, and
#: the peak is what the layers need at one time, nothing more.
FRUGAL_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 20),
    "GLIBC_TUNABLES": "",
}


@contextlib.contextmanager
def cluster(
    workers: int, *, dashboard: bool = False, meanwhile: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """A Ray to work in: the one that is connected already, the one that RAY_ADDRESS names, or an embedded one.

    `workers` one-CPU workers must find room in the embedded one. It is silent unless --verbose. Its dashboard binds to
    loopback; its other ports do not (Ray offers no way), so it answers only to a token, of this user or its own. An
    embedded one takes seconds to start, most of which are waiting: `meanwhile` is done beside it, in a thread.
    """
    with joined():
        with _sharing:  # one that is just being started is waited for
            is_borrowed = is_connected() and not OURS.is_set()
        if is_borrowed:
            yield
        else:
            with _embedded(workers, dashboard, meanwhile):
                yield


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """The cluster that RAY_ADDRESS names, where it names one and no Ray is connected yet. Starts none.

    Before anything is planned: what a cluster's nodes have decides the plan.
    """
    if is_connected():
        yield
        return
    address = where(None)
    if address.kind == "jobs":
        raise UsageError(
            f"{address} takes whole commands: submit one with `raysegment … --address`, or unset it"
        )
    if address.kind == "cluster":
        from raysegment.runtime.connected import connected

        with connected(address):
            yield
        return
    yield


def is_connected() -> bool:
    """Whether this process is a driver of a Ray, its own or another."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


@contextlib.contextmanager
def _embedded(workers: int, dashboard: bool, meanwhile: Callable[[], object]) -> Iterator[None]:
    """Ray has one connection in a process: who comes first starts it, threads that come later share it and its room for
    workers, who goes last ends it."""
    global _sharers
    with _sharing:
        other = None
        if not OURS.is_set():
            other = _begin(workers, dashboard, meanwhile)
            OURS.set()
        _sharers += 1
    try:
        if other is not None:
            other.result()
        yield
    finally:
        with _sharing:
            _sharers -= 1
            if not _sharers:
                import ray

                OURS.clear()
                with same_sigterm():
                    ray.shutdown()


def _begin(workers: int, dashboard: bool, meanwhile: Callable[[], object]) -> Future[object]:
    """Start it; `meanwhile` is done when this returns."""
    if "ray" not in sys.modules:  # Ray settles this when it is imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        ensure_token()
    for key, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    with hushed() as quiet, same_sigterm():
        import ray  # noqa: F401

        with ThreadPoolExecutor(1) as beside:
            other = beside.submit(meanwhile)
            _start(
                address="local",
                num_cpus=max(workers, available_cores()) + EXTRA_CPUS,
                resources={PRIVATE: 1},
                include_dashboard=dashboard,
                dashboard_host="127.0.0.1",
                log_to_driver=not quiet,
                logging_level=logging.ERROR if quiet else logging.INFO,
            )
    close_token_file()
    return other


def _ray_folder() -> str:
    """Where Ray keeps its sockets, logs and spilled objects."""
    return os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()


def _start(**how: Any) -> None:
    """`ray.init`, tried again: Ray gives its own processes half a minute to come up, which is little on a machine that
    is busy with other nightly work. Raises WorkError."""
    import psutil
    import ray

    before = set(psutil.Process().children(recursive=True))
    for left in reversed(range(_STARTS)):
        try:
            ray.init(**how)
            return
        except Exception as e:  # of any kind: Ray raises plain ones
            if isinstance(e, OSError) and "AF_UNIX" in str(e):
                raise UsageError(
                    f"the sockets of Ray in {_ray_folder()} have longer names than the system takes: set RAY_TMPDIR to "
                    "a shorter folder, such as /tmp"
                ) from e
            home = os.path.dirname(ray.__file__)
            for process in set(psutil.Process().children(recursive=True)) - before:
                with contextlib.suppress(psutil.NoSuchProcess):
                    if any(home in word for word in process.cmdline()):
                        process.kill()
            if not left:
                cause = " ".join(str(e).split()) or type(e).__name__
                raise WorkError(
                    f"Ray does not start on this machine, in {_STARTS} tries: {cause} "
                    "(is the machine overloaded, or out of memory?)"
                ) from e


@contextlib.contextmanager
def hushed() -> Iterator[bool]:
    """Ray's start, without its words unless --verbose (or it fails); whether Ray is to be quiet from here on."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = not console.is_verbose()
    if quiet:
        # Ray's C++ side logs an error for every pool of actors that has arguments; ours report their own failures.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        if "ray" not in sys.modules:  # it goes to stdout, where --json writes; whoever is hurt says so itself
            os.environ.setdefault(
                "RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed|was killed by `ray.kill`"
            )
    with _held_stderr() if quiet else contextlib.nullcontext():
        yield quiet


@contextlib.contextmanager
def _held_stderr() -> Iterator[None]:
    """Hold back what libraries write to stderr, C++ included; let it out only if the block fails."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        real = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except RaysegmentError:  # says all that there is to say
            raise
        except BaseException:
            held.seek(0)
            os.write(real, held.read())
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)
