"""What this machine can do, what a cluster shows, what would get in the way. Nothing is started: no Ray, no worker."""

from __future__ import annotations

import os
import platform
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from raysegment.hardware import available_cores, available_memory, has_fast_bf16
from raysegment.runtime.security import token_file
from raysegment.runtime.survey import Survey, survey

_NEEDED = (
    *("ray", "torch", "numpy", "tifffile", "imagecodecs", "zarr", "fsspec", "pillow", "safetensors"),
    *("pydantic", "typer", "rich", "psutil", "jinja2"),
)
_OPTIONAL = {"rasterio": "geo"}
_GIB = 1 << 30
#: Ray stops writing objects to a disk that is fuller than this (RAY_local_fs_capacity_threshold).
_FULL_SHARE = 0.95
#: Below this share of memory, Ray's object store does not fit into shared memory and moves to disk.
_SHM_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Space:
    """Room in a folder."""

    path: str
    total_bytes: int
    free_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {"path": self.path, "total_bytes": self.total_bytes, "free_bytes": self.free_bytes}

    def __str__(self) -> str:
        return f"{self.free_bytes / _GIB:.1f} GiB free of {self.total_bytes / _GIB:.1f}  ({self.path})"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One CUDA device."""

    name: str
    memory_bytes: int
    fast_bf16: bool

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "memory_bytes": self.memory_bytes, "fast_bf16": self.fast_bf16}


@dataclass(frozen=True, slots=True)
class DoctorResult:
    """What was found on this machine."""

    versions: dict[str, str | None]
    """None: not installed."""
    cores: int
    """That this process may keep busy: affinity and container quota counted in."""
    logical_cpus: int
    memory_bytes: int
    """That this process may use: the container's limit counted in."""
    shared_memory: Space | None
    gpus: tuple[Gpu, ...]
    cpu_bf16: bool
    """Whether `--precision auto` takes bf16 on the CPU."""
    disks: dict[str, Space]
    """Where outputs go by default, and where Ray keeps its files."""
    ray_address: str | None
    warnings: tuple[str, ...]
    cluster: Survey | None = None
    """Of the address that was asked for."""

    @property
    def exit_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, Any]:
        return {
            "versions": self.versions,
            "cores": self.cores,
            "logical_cpus": self.logical_cpus,
            "memory_bytes": self.memory_bytes,
            "shared_memory": self.shared_memory.to_json() if self.shared_memory else None,
            "gpus": [gpu.to_json() for gpu in self.gpus],
            "cpu_bf16": self.cpu_bf16,
            "disks": {name: space.to_json() for name, space in self.disks.items()},
            "ray_address": self.ray_address,
            "warnings": list(self.warnings),
            **({"cluster": self.cluster.to_json()} if self.cluster is not None else {}),
        }

    def summary(self) -> str:
        gpus = [f"{g.name}, {g.memory_bytes / _GIB:.0f} GiB, bf16 {_fast(g.fast_bf16)}" for g in self.gpus]
        lines = [
            *(f"{name:<14} {found or 'not installed'}" for name, found in self.versions.items()),
            "",
            f"{'cores':<14} {self.cores} of {self.logical_cpus}, bf16 {_fast(self.cpu_bf16)}",
            f"{'memory':<14} {self.memory_bytes / _GIB:.1f} GiB",
            f"{'shared memory':<14} {self.shared_memory or 'none'}",
            *(f"{'GPU':<14} {gpu}" for gpu in gpus or ["none"]),
            *(f"{name + ' disk':<14} {space}" for name, space in self.disks.items()),
            f"{'Ray':<14} {f'RAY_ADDRESS={self.ray_address}' if self.ray_address else 'embedded, on this machine'}",
            *(f"{name:<14} {value}" for name, value in (self.cluster.rows() if self.cluster else ())),
            "",
            *(f"warning: {text}" for text in self.warnings or ()),
        ]
        return "\n".join(lines if self.warnings else [*lines, "nothing stands in the way"])


def doctor(
    address: str | None = None, *, environment: Mapping[str, str] = os.environ, home: Path | None = None
) -> DoctorResult:
    """Look at versions, cores, memory, GPUs, disks and Ray's surroundings.

    `environment` and `home` are where Ray's settings are looked for. `address` is that of a cluster to look at too.
    Raises UsageError when nothing answers there.
    """
    memory, shared = available_memory(), _space(Path("/dev/shm"))
    ray_temp = Path(environment.get("RAY_TMPDIR", "/tmp")) / "ray"
    found = DoctorResult(
        versions={
            "python": platform.python_version(),
            **{name: _version(name) for name in ("raysegment", *_NEEDED, *_OPTIONAL)},
        },
        cores=available_cores(),
        logical_cpus=os.cpu_count() or 1,
        memory_bytes=memory,
        shared_memory=shared,
        gpus=_gpus(),
        cpu_bf16=has_fast_bf16("cpu"),
        disks={
            name: space
            for name, path in (("output", Path.cwd()), ("Ray", ray_temp))
            if (space := _space(path)) is not None
        },
        ray_address=environment.get("RAY_ADDRESS") or None,
        warnings=(),
        cluster=survey(address) if address is not None else None,
    )
    about_cluster = found.cluster.warnings if found.cluster is not None else ()
    return replace(found, warnings=(*_warnings(found, token_file(environment, home)), *about_cluster))


def _warnings(found: DoctorResult, token: Path) -> Iterator[str]:
    for name in _NEEDED:
        if found.versions[name] is None:
            yield f"{name} is not installed: pip install raysegment"
    for name, extra in _OPTIONAL.items():
        if found.versions[name] is None:
            yield (
                f"{name} is not installed, which coordinate systems without an EPSG code and polygons as masks need: "
                f"pip install 'raysegment[{extra}]'"
            )
    if found.ray_address is not None:
        yield (
            f"RAY_ADDRESS is set to {found.ray_address}: Ray would go to that cluster; "
            "unset it to work on this machine"
        )
    if token.is_file() and stat.S_IMODE(token.stat().st_mode) & 0o077:
        mode = stat.S_IMODE(token.stat().st_mode)
        yield f"{token} can be read by others (mode {mode:04o}): chmod 600 {token}"
    shared = found.shared_memory
    if shared is not None and shared.total_bytes < _SHM_SHARE * found.memory_bytes:
        yield (
            f"/dev/shm has {shared.total_bytes / _GIB:.1f} GiB, less than {_SHM_SHARE:.0%} of memory: Ray's objects "
            "go to disk and are slow; give the container more (docker run --shm-size)"
        )
    for name, space in found.disks.items():
        used = 1 - space.free_bytes / space.total_bytes
        if used > _FULL_SHARE:
            yield f"the {name} disk ({space.path}) is {used:.0%} full; Ray writes nothing above {_FULL_SHARE:.0%}"
    if found.gpus == () and Path("/proc/driver/nvidia/version").exists():
        yield "there is an NVIDIA driver, but torch finds no GPU: install a CUDA build of torch"


def _version(package: str) -> str | None:
    if package == "raysegment":
        from raysegment import __version__

        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpus() -> tuple[Gpu, ...]:
    import torch

    found = []
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        found.append(Gpu(properties.name, properties.total_memory, has_fast_bf16(f"cuda:{i}")))
    return tuple(found)


def _space(path: Path) -> Space | None:
    """Of the folder or the nearest parent that exists."""
    place = next((p for p in (path, *path.parents) if p.is_dir()), None)
    if place is None:
        return None
    usage = shutil.disk_usage(place)
    return Space(str(path), usage.total, usage.free)


def _fast(yes: bool) -> str:
    return "fast" if yes else "not fast"
