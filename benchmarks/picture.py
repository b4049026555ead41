"""Speed and memory as bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rounds
from lineup import LINEUP

Entry = dict[str, Any]
GB = 1e9
_COLOURS = {
    "raysegment": "#d55e00",
    "raysegment_auto": "#e69f00",
    "monai": "#0072b2",
    "monai_default": "#332288",
    "monai_zarr": "#56b4e9",
    "toolbelt": "#009e73",
    "bare": "#777777",
    "folded": "#bbbbbb",
}
_BAR_IN = 0.28


def draw(book: Entry, path: Path) -> None:
    """Speed and memory by image size, one row per network; hollow: an estimate, not run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    networks = list(dict.fromkeys(run["network"] for run in book["runs"]))
    sizes = {network: _sizes(book, network) for network in networks}
    heights = [0.8 + _BAR_IN * (len(_entered(book, n)) + 1) * len(sizes[n]) for n in networks]
    figure, axes = pyplot.subplots(
        len(networks),
        2,
        figsize=(11, sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for (speed, memory), network in zip(axes, networks, strict=True):
        _panel(speed, book, network, "megapixels_per_s", 1.0)
        speed.set_title(f"{network}: megapixels per second, after start-up", loc="left", fontsize=10)
        _panel(memory, book, network, "peak_pss_bytes", GB)
        memory.set_title(f"{network}: peak memory, GB", loc="left", fontsize=10)
        there = book["about"]["memory_bytes"] / GB
        memory.axvline(there, color="black", linestyle=":", linewidth=1)
        place = {"transform": memory.get_xaxis_transform(), "ha": "right", "va": "top"}
        memory.text(there, 1, "all there is ", fontsize=7, **place)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _panel(axis: Any, book: Entry, network: str, key: str, unit: float) -> None:
    """Bars: one group per image size, one bar per contestant."""
    place, places, names = 0.0, [], []
    for size in _sizes(book, network):
        for program in _entered(book, network):
            runs = [run for run in rounds.best_team(book, network, size, program) if run["exit_code"] == 0]
            unrun = rounds.left_out(book, network, size, program)
            if runs:
                value = rounds.median_of(runs, key) / unit
                axis.barh(place, value, color=_COLOURS[program])
                axis.text(value, place, f" {value:.3g}", va="center", fontsize=7)
            elif unrun and key == "peak_pss_bytes":
                value = unrun[0]["needs_bytes"] / unit
                axis.barh(place, value, color="none", edgecolor=_COLOURS[program], linestyle="--")
                axis.text(value, place, f" {value:.3g}, not run", va="center", fontsize=7)
            else:
                place += 1
                continue
            places.append(place)
            names.append(f"{size}²  {LINEUP[program].title.split(':')[0]}")
            place += 1
        place += 0.7
    axis.set_yticks(places, names, fontsize=7)
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.12)


def _sizes(book: Entry, network: str) -> list[int]:
    return list(dict.fromkeys(run["size"] for run in book["runs"] if run["network"] == network))


def _entered(book: Entry, network: str) -> list[str]:
    """The contestants that were measured with a network, or were to be."""
    there = {entry["program"] for entry in (*book["runs"], *book["left_out"]) if entry["network"] == network}
    return [program for program in LINEUP if program in there]
