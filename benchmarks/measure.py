"""One command in fresh processes, as the kernel sees it: wall clock, processor time, memory, and who else was busy."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import psutil

#: How often the marks are looked for.
POLL_S = 0.02
#: Reading a process's PSS holds its memory map: at most one part in this many of the time goes there.
_SAMPLING_SHARE = 30


@dataclass(frozen=True)
class Usage:
    """What one run of a command took."""

    stdout: str
    stderr: str
    exit_code: int | None
    """None: it was stopped at its time limit."""
    began_at: float
    """time.time() when it was started."""
    wall_s: float
    cpu_s: float
    """Of all its processes, as last seen alive."""
    peak_pss_bytes: int
    """Largest sum of all its processes' proportional set sizes: shared pages count once."""
    others_cores: float
    """Cores that everything else on the machine kept busy meanwhile: above 0.1 or so the run was disturbed."""
    marks: dict[str, float] = field(default_factory=dict)
    """Seconds from the start until each mark was first seen."""


def run(
    command: list[str],
    *,
    cores: Iterable[int],
    limit_s: float,
    marks: Mapping[str, Callable[[], bool]] | None = None,
) -> Usage:
    """Run a command on these cores alone, to its end or its time limit."""
    pinned = set(cores)
    waiting, seen = dict(marks or {}), {}
    tree = _Tree()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        busy_before, began, began_at = _others_s(), time.monotonic(), time.time()
        process = subprocess.Popen(
            command, stdout=out, stderr=err, preexec_fn=lambda: os.sched_setaffinity(0, pinned)
        )
        with _ended(process), tree.watched(process.pid):
            exit_code = process.poll()
            while exit_code is None and time.monotonic() - began < limit_s:
                for name in [n for n, there in waiting.items() if there()]:
                    seen[name] = time.monotonic() - began
                    del waiting[name]
                with contextlib.suppress(subprocess.TimeoutExpired):
                    exit_code = process.wait(POLL_S)
            wall_s = time.monotonic() - began
            busy = _others_s() - busy_before
        out.seek(0)
        err.seek(0)
        return Usage(
            stdout=out.read(),
            stderr=err.read(),
            exit_code=exit_code,
            began_at=began_at,
            wall_s=wall_s,
            cpu_s=tree.cpu_s,
            peak_pss_bytes=tree.peak_pss_bytes,
            others_cores=max(0.0, busy - tree.cpu_s) / wall_s,
            marks=seen,
        )


class _Tree:
    """A process and all its descendants, looked at from a thread."""

    def __init__(self) -> None:
        self.peak_pss_bytes = 0
        self._cpu_s: dict[tuple[int, float], float] = {}

    @property
    def cpu_s(self) -> float:
        return sum(self._cpu_s.values())

    @contextlib.contextmanager
    def watched(self, pid: int) -> Iterator[None]:
        done = threading.Event()

        def look() -> None:
            cost_s = 0.0
            while not done.wait(max(0.1, _SAMPLING_SHARE * cost_s)):
                started = time.perf_counter()
                self._look(pid)
                cost_s = time.perf_counter() - started

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _look(self, pid: int) -> None:
        try:
            root = psutil.Process(pid)
            family = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        total = 0
        for member in family:
            try:
                spent = member.cpu_times()
                self._cpu_s[member.pid, member.create_time()] = spent.user + spent.system
                with open(f"/proc/{member.pid}/smaps_rollup") as f:
                    total += sum(int(line.split()[1]) * 1024 for line in f if line.startswith("Pss:"))
            except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
        self.peak_pss_bytes = max(self.peak_pss_bytes, total)


def _others_s() -> float:
    """Processor seconds that the machine has worked, those its host took away included, this process left out."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0) + getattr(times, "guest", 0.0)
    return sum(times) - idle - time.process_time()


@contextlib.contextmanager
def _ended(process: subprocess.Popen) -> Iterator[None]:
    """Whatever comes between, the command and what it started do not outlive this."""
    try:
        yield
    finally:
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            process.kill()
            process.wait()
