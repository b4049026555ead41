"""The memory of a command and of everything it starts, as the kernel counts it."""

from __future__ import annotations

import subprocess
import tempfile
import time
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Usage:
    """What one run of a command took."""

    stdout: str
    wall_s: float
    peak_pss_bytes: int
    """Largest sum of all its processes' proportional set sizes, seen ten times a second."""


def run(command: list[str], every_s: float = 0.1) -> Usage:
    """Run a command to its end; raises CalledProcessError when it fails."""
    started, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as out, subprocess.Popen(command, stdout=out) as process:
        while process.poll() is None:
            peak = max(peak, _pss(process.pid))
            time.sleep(every_s)
        out.seek(0)
        stdout = out.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stdout)
    return Usage(stdout, time.monotonic() - started, peak)


def _pss(pid: int) -> int:
    """Sum over the process and all its descendants; shared pages count once."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for member in family:
        try:
            with open(f"/proc/{member.pid}/smaps_rollup") as f:
                total += sum(int(line.split()[1]) * 1024 for line in f if line.startswith("Pss:"))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended while we looked
    return total
