"""What the runs in the book come to: best teams, ratios within a round, rates between two sizes."""

from __future__ import annotations

from statistics import median
from typing import Any

Entry = dict[str, Any]
#: What one case is told from another by.
CASE_KEYS = ("program", "network", "size", "threads", "processes")


def best_team(book: Entry, network: str, size: int, program: str) -> list[Entry]:
    """The runs of the contestant's fastest team of threads or processes, one per round; empty if it was not run."""
    teams: dict[tuple, list[Entry]] = {}
    for run in book["runs"]:
        if (run["network"], run["size"], run["program"]) == (network, size, program):
            teams.setdefault((run["threads"], run["processes"]), []).append(run)
    finished = [runs for runs in teams.values() if all(run["exit_code"] == 0 for run in runs)]
    if not finished:
        return next(iter(teams.values()), [])
    return max(finished, key=lambda runs: median_of(runs, "megapixels_per_s"))


def ratios(book: Entry, runs: list[Entry], to: str = "raysegment") -> tuple[float, float]:
    """Medians of the times over those of `to` in the same round: whole commands, and a pixel after start-up."""
    ours = {
        run["round"]: run
        for run in best_team(book, runs[0]["network"], runs[0]["size"], to)
        if run["exit_code"] == 0
    }
    pairs = [(run, ours[run["round"]]) for run in runs if run["round"] in ours]
    if not pairs:
        return float("nan"), float("nan")
    whole = median(run["wall_s"] / our["wall_s"] for run, our in pairs)
    return whole, median(our["megapixels_per_s"] / run["megapixels_per_s"] for run, our in pairs)


def marginal(book: Entry, runs: list[Entry]) -> float | None:
    """Megapixels per second of what these runs have to do beyond those of the next smaller image, same team."""
    first = runs[0]
    smaller = [
        run
        for run in book["runs"]
        if run["exit_code"] == 0
        and run["size"] < first["size"]
        and all(run[key] == first[key] for key in CASE_KEYS if key != "size")
    ]
    if not smaller:
        return None
    size = max(run["size"] for run in smaller)
    longer_s = median_of(runs, "wall_s") - median_of(
        [run for run in smaller if run["size"] == size], "wall_s"
    )
    return (first["size"] ** 2 - size**2) / 1e6 / longer_s if longer_s > 0 else None


def left_out(book: Entry, network: str, size: int, program: str) -> list[Entry]:
    return [
        out
        for out in book["left_out"]
        if (out["network"], out["size"], out["program"]) == (network, size, program)
    ]


def median_of(runs: list[Entry], key: str) -> float:
    return median(run[key] for run in runs)
