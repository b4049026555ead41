"""Where work runs: a Ray that this process starts for itself, or one that the caller started."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from raysegment import console
from raysegment.hardware import available_cores

#: Logical CPUs beyond the workers' own, so that Ray's small tasks never wait for them.
EXTRA_CPUS = 2


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
def cluster(workers: int, *, dashboard: bool = False) -> Iterator[None]:
    """A Ray to work in: the one that is connected already, or an embedded one for the time of the block.

    `workers` one-CPU workers must find room. The embedded Ray is silent unless --verbose. Its dashboard binds to
    loopback; its other ports do not (Ray offers no way), so it answers only to the token of this user.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "ray" not in sys.modules:  # Ray settles these when it is imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if not console.is_verbose():  # it goes to stdout, where --json writes; whoever is hurt says so itself
            os.environ.setdefault(
                "RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed|was killed by `ray.kill`"
            )
    import ray

    if ray.is_initialized():
        yield
        return
    for key, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if "RAY_ADDRESS" in os.environ:
        console.warn(
            "RAY_ADDRESS is set, but running in that cluster is not built yet: working on this machine"
        )
    quiet = not console.is_verbose()
    if quiet:
        # Ray's C++ side logs an error for every pool of actors that has arguments; ours report their own failures.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with _held_stderr() if quiet else contextlib.nullcontext():
        ray.init(
            address="local",
            num_cpus=max(workers, available_cores()) + EXTRA_CPUS,
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            log_to_driver=not quiet,
            logging_level=logging.ERROR if quiet else logging.INFO,
        )
    _close_token_file()
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _held_stderr() -> Iterator[None]:
    """Hold back what libraries write to stderr, C++ included; let it out only if the block fails."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        real = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(real, held.read())
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)


def _close_token_file() -> None:
    """Ray writes its token readable for everyone; nobody else has any business with it."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    if (
        token.is_file()
        and token.owner() == Path.home().owner()
        and stat.S_IMODE(token.stat().st_mode) & 0o077
    ):
        token.chmod(0o600)
