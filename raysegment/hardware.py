"""What this machine has: cores that are really ours, a device, fast bfloat16."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from raysegment.errors import UsageError

if TYPE_CHECKING:
    import torch

_CGROUP = Path("/sys/fs/cgroup")
#: From glibc's malloc.h: the option, and where the threshold drifts to by itself in a process that frees large pieces.
_M_MMAP_THRESHOLD = -3
_MMAP_THRESHOLD_MAX = 32 << 20
#: bfloat16 changes rounding, so it is taken only where it is this many times as fast: a busy machine alone is no gain.
WORTH_BF16 = 1.3


def available_cores(cgroup: Path = _CGROUP) -> int:
    """Cores that this process may keep busy: its CPU affinity, cut down to the container's quota (v2, v1)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, min(cores, math.floor(quota + 0.01))) if quota is not None else cores


def _quota(cgroup: Path) -> float | None:
    """CPUs per second that the container is given, or None when it is not limited."""
    unified = cgroup / "cpu.max"
    if unified.is_file():
        limit, period = unified.read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    old = cgroup / "cpu" / "cpu.cfs_quota_us"
    if old.is_file():
        limit_us = int(old.read_text())
        period_us = int((cgroup / "cpu" / "cpu.cfs_period_us").read_text())
        return limit_us / period_us if limit_us > 0 else None
    return None


def available_memory(cgroup: Path = _CGROUP) -> int:
    """Bytes of memory that this process may use: the machine's, cut down to the container's limit (v2, v1)."""
    import psutil

    total: int = psutil.virtual_memory().total
    for place in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        if place.is_file() and (limit := place.read_text().strip()) != "max":
            return min(total, int(limit))
    return total


def peak_memory(status: Path = Path("/proc/self/status")) -> int:
    """The most bytes of memory that this process has held. Not by getrusage alone: on Linux its figure outlives exec
    and may be the parent's."""
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def large_pieces_mapped() -> Iterator[None]:
    """Inside, memory of a mebibyte or more comes from the system and goes back to it, so that the process's size tells
    what is in use. With glibc; elsewhere nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_MAX)


def pick_device(wish: str = "auto") -> torch.device:
    """`auto`: a GPU when there is one. Raises UsageError for "cuda" without a usable GPU."""
    import torch

    if wish not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device {wish!r} is not known: give auto, cpu or cuda")
    has_gpu = torch.cuda.is_available()
    if wish == "cuda" and not has_gpu:
        raise UsageError("device cuda was asked for, but torch finds no usable GPU here: give cpu or auto")
    return torch.device("cuda" if has_gpu and wish != "cpu" else "cpu")


def has_fast_bf16(device: torch.device | str) -> bool:
    """Whether bfloat16 is worth turning on: CUDA from Ampere on, CPUs with AMX, and others that are seen to gain by it.

    AVX512-BF16 alone says little: a U-Net was 1.9 times as fast in bf16 on AMD's Zen 4, and no faster on an Intel CPU
    whose AMX was hidden from it. So there convolutions are timed, once in a process.
    """
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    flags = _cpu_flags()
    if {"amx_bf16", "amx_tile"} <= flags:
        return True
    return "avx512_bf16" in flags and _bf16_speedup() >= WORTH_BF16


@functools.cache
def _bf16_speedup() -> float:
    """How many times as fast some layers of a U-Net are in bf16 as in fp32, on one thread; in a fifth of a second."""
    import torch
    from torch import nn

    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=()):  # the weights are drawn, but not from the caller's numbers
        for before, after in ((16, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    network: nn.Module = nn.Sequential(*layers).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    x = torch.zeros(1, 16, 128, 128).contiguous(memory_format=torch.channels_last)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = {False: math.inf, True: math.inf}
    try:
        with torch.inference_mode():
            for _ in range(8):  # by turns, and the fastest of each: whatever else runs slows both
                for bf16 in best:
                    started = time.perf_counter()
                    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                        network(x)
                    best[bf16] = min(best[bf16], time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return best[False] / best[True]


def _cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction set flags of the first core; empty where the system does not say."""
    if not cpuinfo.is_file():
        return frozenset()
    for line in cpuinfo.read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()
