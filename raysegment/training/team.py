"""Who trains: how many workers, with what each, and whether there is room for them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from raysegment import console
from raysegment.console import counted
from raysegment.errors import UsageError
from raysegment.hardware import available_cores
from raysegment.runtime import is_connected
from raysegment.training.settings import Settings

#: What a node has: "CPU", "GPU" and their numbers.
Node = Mapping[str, float]


@dataclass(frozen=True)
class Team:
    """Between `least` and `most` workers, as many as find room; the result does not depend on how many."""

    least: int
    most: int
    gpus: int
    """Of each worker: 0 or 1."""
    threads: int
    """Of each worker, and as many CPUs."""

    @property
    def resources(self) -> dict[str, float]:
        """Of one worker, in Ray's words."""
        return {"CPU": float(self.threads), **({"GPU": float(self.gpus)} if self.gpus else {})}

    def room(self, nodes: Sequence[Node]) -> int:
        """How many of these workers find room on the nodes."""
        wanted = self.resources.items()
        return sum(min(int(node.get(name, 0) // number) for name, number in wanted) for node in nodes)

    def __str__(self) -> str:
        count = str(self.most) if self.least == self.most else f"{self.least} to {self.most}"
        return f"{count} with {self.gpus} GPU each" if self.gpus else count


def assemble(wish: int | str, gpus_per_worker: int | None, settings: Settings) -> Team:
    """The team for ``--workers``: auto, a number, or "MIN:MAX". Raises UsageError where it has no room.

    On a CPU one worker per core, each with one thread: on two free cores as fast as one worker with two
    threads (1.2 s a step), and on busy ones, where OpenMP's barriers wait for a thread that has no core, 2.7
    times as fast (3.0 against 8.0 s).
    """
    if gpus_per_worker not in (None, 0, 1):
        raise UsageError(
            f"--gpus-per-worker {gpus_per_worker}: a worker trains on one device: give 0 or 1, and more --workers"
        )
    asked = _count(wish)
    is_ours = not is_connected()
    nodes = [_this_machine()] if is_ours else cluster_nodes()
    on_gpu, on_cpu = (Team(1, 1, gpus, threads=1).room(nodes) for gpus in (1, 0))
    uses_gpus = on_gpu >= (asked[0] if asked else 1) if gpus_per_worker is None else gpus_per_worker == 1
    if gpus_per_worker is None and asked and 0 < on_gpu < asked[0]:
        console.say(
            f"--workers {wish} on CPUs, for {counted(on_gpu, 'GPU')} {'is' if on_gpu == 1 else 'are'} here: "
            f"--workers {on_gpu} would use {'it' if on_gpu == 1 else 'them'}"
        )
    places = on_gpu if uses_gpus else on_cpu
    least, most = asked or (min(max(1, places), _parts(settings) or places),) * 2
    _check_samples(wish, most, settings)
    if (
        is_ours and not uses_gpus
    ):  # more workers than cores are slow but right; an elastic team has no use for them
        most = least if least == most else min(most, max(least, places))
        return Team(least, most, gpus=0, threads=max(1, places // most))
    return _fitted(Team(least, most, gpus=int(uses_gpus), threads=1), nodes, wish)


def cluster_nodes() -> list[Node]:
    """What the living nodes of the connected Ray have."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def say_if_busy(team: Team) -> None:
    """Ray waits for CPUs and GPUs that others hold; say so."""
    import ray

    free = ray.available_resources()
    for name, number in team.resources.items():
        if free.get(name, 0) < number * team.least:
            console.say(
                f"{free.get(name, 0):g} {name}s of this Ray are free, waiting for {number * team.least:g}"
            )


def _fitted(team: Team, nodes: Sequence[Node], wish: int | str) -> Team:
    """With as many threads as leave room for all, one beside a GPU. Raises UsageError when too few find room."""
    room = team.room(nodes)
    if room == 0 and team.gpus and not any(node.get("GPU", 0) >= 1 for node in nodes):
        raise UsageError(f"no GPU here for --workers {wish} of {team.gpus} each: give --gpus-per-worker 0")
    if room < team.least:
        needs = " and ".join(f"{number:g} {name}" for name, number in team.resources.items())
        raise UsageError(
            f"--workers {wish}: {counted(team.least, 'worker')} of {needs} each; "
            f"this Ray has room for {room}: give fewer"
        )
    while not team.gpus and replace(team, threads=team.threads + 1).room(nodes) >= team.most:
        team = replace(team, threads=team.threads + 1)
    return team


def _count(wish: int | str) -> tuple[int, int] | None:
    """(least, most), None for auto."""
    if wish == "auto":
        return None
    found = re.fullmatch(r"(\d+)(?::(\d+))?", str(wish))
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most:
        raise UsageError(f"--workers {wish}: give auto, a number of 1 or more, or MIN:MAX")
    return least, most


def _parts(settings: Settings) -> int | None:
    """Samples of the smallest part that goes through the network at once; None while that is open."""
    return None if settings.batch_size is None else settings.batch_size // settings.accumulate


def _check_samples(wish: int | str, most: int, settings: Settings) -> None:
    """Raise UsageError where a worker would have no sample."""
    parts = _parts(settings)
    if parts is None or settings.batch_size is None:
        return
    batch = f"--batch-size {settings.batch_size}"
    if settings.accumulate > settings.batch_size:
        raise UsageError(
            f"--accumulate {settings.accumulate} is more than {batch}: every part needs a sample"
        )
    if most > parts:
        cut = f" in --accumulate {settings.accumulate} parts" if settings.accumulate > 1 else ""
        raise UsageError(
            f"--workers {wish} is more than {batch}{cut} has for all: every worker needs a sample, so give at most "
            f"--workers {parts}, or --batch-size {most * settings.accumulate} or more"
        )


def _this_machine() -> Node:
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {"CPU": available_cores(), "GPU": gpus}
