"""Who is measured, how each is started, and what each would need: one entry per contestant of `contestants.py`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

BASE_BYTES = 400 << 20
"""Of a Python process with torch, a network and one batch: with it, the estimates met what 4096² px took to 15 %."""


@dataclass(frozen=True)
class Contestant:
    """One way to segment an image."""

    title: str
    package: str | None
    """What is installed for it from PyPI; None: nothing beyond raysegment."""
    per_pixel: Callable[[int], int] = lambda classes: 0
    """Bytes of memory per pixel of the image, by the number of classes: what its program holds at its worst moment."""
    disk_per_pixel: Callable[[int], int] = lambda classes: 0
    has_mask: bool = True
    teams: Literal["processes", "threads", "both"] = "threads"
    """How it may be spread over the cores."""
    as_it_comes: bool = False
    """Whether it is called with its own defaults instead of what is the same for all; with the U-Net alone."""

    def needs_bytes(self, size: int, classes: int) -> int:
        """Estimated memory for an image of `size` × `size` px."""
        return BASE_BYTES + size**2 * self.per_pixel(classes)


LINEUP = {
    "raysegment": Contestant("raysegment", None, teams="processes"),
    # float image 12; float sums 4 a class; weights 4; labels 1
    "monai": Contestant("MONAI sliding_window_inference", "monai", lambda classes: 17 + 4 * classes),
    # the image 3 as stored and once more, padded; sums, averages and counts are on disk
    "monai_zarr": Contestant(
        "MONAI PatchInferer + ZarrAvgMerger", "monai", lambda classes: 6, lambda classes: 9 * classes
    ),
    # the image 3 as stored; float sums 4 a class; weights 4
    "toolbelt": Contestant(
        "pytorch-toolbelt ImageSlicer + TileMerger", "pytorch-toolbelt", lambda classes: 7 + 4 * classes
    ),
    "raysegment_auto": Contestant("raysegment, every auto", None, teams="processes", as_it_comes=True),
    # as above; the image once as stored and once as float
    "monai_default": Contestant(
        "MONAI as its tutorials call it", "monai", lambda classes: 17 + 4 * classes, as_it_comes=True
    ),
    "bare": Contestant("bare loop: the network alone", None, lambda classes: 3, has_mask=False, teams="both"),
    "folded": Contestant(
        "bare loop, BatchNorm folded", None, lambda classes: 3, has_mask=False, teams="processes"
    ),
}
YARDSTICK = "monai"
"""Whose labels the others' are compared with."""


@dataclass(frozen=True)
class Case:
    """One thing to be measured, in a fresh process each time."""

    program: str
    network: str
    size: int
    threads: int
    processes: int


@dataclass(frozen=True)
class Settings:
    """The same for every contestant."""

    tile: int
    overlap: int
    batch: int
    device: str
    precision: str


def cases(program: str, network: str, size: int, cores: int, device: str) -> Iterator[Case]:
    """The teams in which a contestant is tried: one thread, as many as there are cores, or as many processes."""
    teams = LINEUP[program].teams
    if LINEUP[program].as_it_comes:
        if network != "constant":
            yield Case(program, network, size, *((1, cores) if teams == "processes" else (cores, 1)))
        return
    if device == "cuda":
        yield Case(program, network, size, threads=cores, processes=1)
        return
    if teams in ("processes", "both"):
        yield Case(program, network, size, threads=1, processes=cores)
    if teams == "threads":
        yield Case(program, network, size, threads=1, processes=1)
    if teams in ("threads", "both") and cores > 1:
        yield Case(program, network, size, threads=cores, processes=1)


def command(
    case: Case, settings: Settings, source: Path, network: str, out: Path, *, error_only: bool = False
) -> list[str]:
    """How a case is started. `network`: "constant" or the path of a model file."""
    if case.program == "raysegment_auto":
        words = [
            sys.executable,
            "-m",
            "raysegment",
            "infer",
            source,
            "--model",
            network,
            "--json",
            "--out",
            out,
        ]
        return [str(w) for w in [*words, "--device", settings.device]]
    shared = ["--tile", settings.tile, "--overlap", settings.overlap, "--device", settings.device]
    shared += ["--precision", settings.precision, "--out", out]
    if case.program == "raysegment" and network != "constant":
        words = [sys.executable, "-m", "raysegment", "infer", source, "--model", network, *shared]
        words += ["--batch-size", settings.batch, "--workers", case.processes, "--json"]
        return [str(w) for w in words]
    words = [sys.executable, Path(__file__).with_name("contestants.py"), case.program, "--source", source]
    words += ["--network", network, *shared, "--batch", settings.batch]
    words += ["--threads", case.threads, "--processes", case.processes]
    return [str(w) for w in words] + ["--error-only"] * error_only
