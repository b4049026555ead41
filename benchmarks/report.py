"""The measurements as JSON, as a Markdown page and as a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import picture
import rounds
from lineup import LINEUP, YARDSTICK

Entry = dict[str, Any]
GB = 1e9
_PARTS = ("start-up", "read", "work", "write", "end")
#: A run beside which others kept this many cores busy was disturbed.
_QUIET_CORES = 0.1


def stem(book: Entry) -> str:
    """Of the files' names: a GPU's report does not replace a CPU's, nor a quick one the whole."""
    about = book["about"]
    return "inference" + ("-gpu" if about["gpu"] else "") + ("-quick" if about["quick"] else "")


def write(book: Entry, folder: Path) -> None:
    """NAME.json, NAME.md and NAME.png of what was measured so far."""
    folder.mkdir(parents=True, exist_ok=True)
    name = stem(book)
    (folder / f"{name}.json").write_text(json.dumps(book, indent=1) + "\n")
    picture.draw(book, folder / f"{name}.png")
    (folder / f"{name}.md").write_text(page(book, f"{name}.png"))


def line(run: Entry) -> str:
    """One run, as it is told while the others are still to come."""
    team = f"{run['network']} {run['size']}² {run['program']} {_team(run)}"
    if run["exit_code"] != 0:
        return f"{team}: {_ending(run)}\n{run.get('complaint', '')}".rstrip()
    return (
        f"{team}: {run['wall_s']:.1f} s, {run['megapixels_per_s']:.2f} MP/s after start-up, "
        f"{run['peak_pss_bytes'] / GB:.2f} GB, others kept {run['others_cores']:.1f} cores busy"
    )


def page(book: Entry, image: str) -> str:
    about, settings = book["about"], book["about"]["settings"]
    device = about["gpu"] or "CPU"
    disturbed = sum(run["others_cores"] > _QUIET_CORES for run in book["runs"])
    lines = [
        "# Inference: raysegment beside others",
        "",
        f"![Speed and memory]({image})",
        "",
        f"`{about['command']}`, {about['date']}, raysegment {about['commit']}",
        "",
        f"{about['processor']}, {about['cores']} cores, {about['memory_bytes'] / GB:.1f} GB, {about['system']}, "
        f"{device}. {', '.join(f'{name} {version}' for name, version in about['versions'].items())}.",
        "",
        f"Tile {settings['tile']}, overlap {settings['overlap']}, batch {settings['batch']}, {settings['precision']}, "
        f"channels_last, two classes, three bands of uint8 in a tiled, deflated TIFF. "
        f"{_disturbance(disturbed, len(book['runs']))}",
        "",
    ]
    for network in dict.fromkeys(run["network"] for run in book["runs"]):
        lines += [f"## {_TITLES[network]}", "", *_table(book, network), "", *_as_they_come(book, network)]
    lines += ["## How to read this", "", *_HOW_TO_READ, ""]
    lines += ["## A constant network", "", *_errors(book), ""]
    lines += ["## Where the time went", "", *_every_team(book), ""]
    return "\n".join(lines)


_HOW_TO_READ = (
    "- In each round all contestants took turns, every one a whole command in fresh processes. A figure is the median "
    "of the rounds, of the team (processes × threads) that served the contestant best; larger images are left to the "
    "team that was best at the smallest.",
    "- “÷ raysegment” compares times of the same round, of the whole command and of a pixel after start-up: above 1, "
    "raysegment was faster.",
    "- Start-up ends when the network is loaded; of raysegment when the first block is taken in hand, "
    "which is before its worker loads the network. “MP/s more” is the rate of the pixels beyond those of the next "
    "smaller image: what is paid once cancels out.",
    "- Two contestants are called as they come: raysegment with every `auto`, MONAI as its tutorials have it (four "
    "tiles at once, overlap 0.25, equal weights, the network as it is, fp32, torch's own threads).",
    "- The bare loop writes no mask; its rate is the network alone, without reading.",
    "- Memory is the largest sum of the proportional set sizes of all processes, looked at up to ten times a second.",
    "- Labels right: of the constant network, class 1 everywhere; of the U-Net, the synthetic scene's true forest.",
)
_TITLES = {
    "constant": "A network that costs nothing: everything but the network",
    "unet": "The default U-Net (base width 16, depth 4, batch norm), trained",
}


def _disturbance(disturbed: int, runs: int) -> str:
    if not disturbed:
        return "Nothing else ran on the machine."
    return (
        f"**In {disturbed} of {runs} runs other programs kept more than {_QUIET_CORES} cores busy**: "
        f"believe the ratios rather than the seconds, and neither very far."
    )


def _table(book: Entry, network: str) -> Iterator[str]:
    yield (
        "| image | contestant | team | whole command s | ÷ raysegment | start-up s | MP/s after start-up "
        f"| ÷ raysegment | MP/s more | CPU s | memory GB | labels as {YARDSTICK} | labels right |"
    )
    yield "|---|---|---|" + "--:|" * 10
    for size in dict.fromkeys(run["size"] for run in book["runs"] if run["network"] == network):
        for program, contestant in LINEUP.items():
            head = f"| {size}² | {contestant.title} "
            runs = rounds.best_team(book, network, size, program)
            if runs:
                yield head + _row(book, runs)
            for out in rounds.left_out(book, network, size, program):
                yield (
                    f"{head}| not run: would need about {out['needs_bytes'] / GB:.1f} GB of {out['what']} (estimate), "
                    f"{out['there_bytes'] / GB:.1f} GB are there " + "|" * 11
                )


def _as_they_come(book: Entry, network: str) -> Iterator[str]:
    for size in dict.fromkeys(run["size"] for run in book["runs"] if run["network"] == network):
        runs = rounds.best_team(book, network, size, "monai_default")
        if runs and runs[-1]["exit_code"] == 0:
            whole, after = rounds.ratios(book, runs, "raysegment_auto")
            yield (
                f"Every `auto` beside MONAI as its tutorials call it, {size}²: the whole command {whole:.1f} times as "
                f"fast, {after:.1f} times after start-up."
            )
            yield ""


def _row(book: Entry, runs: list[Entry]) -> str:
    first = runs[0]
    if runs[-1]["exit_code"] != 0:
        return f"| {_team(first)} | {_ending(runs[-1])} " + "|" * 10
    whole, after = rounds.ratios(book, runs)
    more = rounds.marginal(book, runs)
    mask = next(
        (m for m in book["masks"] if all(m[k] == first[k] for k in ("program", "network", "size"))), None
    )
    has_mask = LINEUP[first["program"]].has_mask
    cells = [
        _team(first),
        f"{rounds.median_of(runs, 'wall_s'):.1f}" if has_mask else "writes no mask",
        f"{whole:.2f}" if has_mask else "",
        f"{median(run['parts']['start-up'] for run in runs):.1f}",
        f"{rounds.median_of(runs, 'megapixels_per_s'):.2f}",
        f"{after:.2f}",
        "" if more is None else f"{more:.2f}",
        f"{rounds.median_of(runs, 'cpu_s'):.0f}",
        f"{rounds.median_of(runs, 'peak_pss_bytes') / GB:.2f}",
        _percent(mask["as_yardstick"]) if mask else "",
        _percent(mask["right"]) if mask else "",
    ]
    return "| " + " | ".join(cells) + " |"


def _errors(book: Entry) -> Iterator[str]:
    yield "Largest error of a class probability, on a scene that no tile divides:"
    yield ""
    yield "| contestant | error |"
    yield "|---|--:|"
    for program, error in book["errors"].items():
        yield f"| {LINEUP[program].title} | {error:.1e} |"


def _every_team(book: Entry) -> Iterator[str]:
    yield "Medians in seconds, every team. raysegment reads, works and writes at the same time."
    yield ""
    yield (
        "| network | image | contestant | team | "
        + " | ".join(_PARTS)
        + " | CPU s | others' cores | rounds |"
    )
    yield "|---|---|---|---|" + "--:|" * (len(_PARTS) + 3)
    teams: dict[tuple, list[Entry]] = {}
    for run in book["runs"]:
        if run["exit_code"] == 0:
            teams.setdefault(tuple(run[key] for key in rounds.CASE_KEYS), []).append(run)
    for runs in teams.values():
        first = runs[0]
        spent = [
            f"{median(run['parts'].get(part, 0.0) for run in runs):.1f}" if part in first["parts"] else ""
            for part in _PARTS
        ]
        yield (
            f"| {first['network']} | {first['size']}² | {first['program']} | {_team(first)} | "
            + " | ".join(spent)
            + f" | {rounds.median_of(runs, 'cpu_s'):.0f} | {rounds.median_of(runs, 'others_cores'):.1f} | {len(runs)} |"
        )


def _ending(run: Entry) -> str:
    """How a run that came to nothing ended."""
    if run["exit_code"] is None:
        return f"stopped after {run['wall_s']:.0f} s"
    return f"failed after {run['wall_s']:.0f} s (exit code {run['exit_code']})"


def _team(run: Entry) -> str:
    return f"{run['processes']} × {run['threads']} thread{'s' * (run['threads'] > 1)}"


def _percent(share: float | None) -> str:
    return "" if share is None else "100 %" if share == 1 else f"{100 * share:.3f} %"
