"""What a reader needs to repeat a measurement: when, with what, on what."""

from __future__ import annotations

import datetime
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil


def about(command: str, versions: Iterable[str]) -> dict[str, Any]:
    """Date, commit and machine, and the versions of these packages."""
    with open("/proc/cpuinfo") as f:
        processor = next(
            (line.split(":")[1].strip() for line in f if line.startswith("model name")), "unknown"
        )
    where = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*where, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return {
        "date": datetime.date.today().isoformat(),
        "command": command,
        "commit": commit.stdout.strip() or "unknown",
        "processor": processor,
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": {name: metadata.version(name) for name in versions},
    }
