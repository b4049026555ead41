"""The trainers' measurements as JSON, as a Markdown page and as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

Entry = dict[str, Any]
GB = 1e9
_TITLES = {
    "raysegment": "raysegment on Ray Train",
    "loop": "the same loop without Ray",
    "apart": "such loops that exchange nothing",
    "pytorch": "plain PyTorch",
    "monai": "MONAI",
}
_COLOURS = {
    "raysegment": "#d55e00",
    "loop": "#e69f00",
    "apart": "#999999",
    "pytorch": "#0072b2",
    "monai": "#009e73",
}
#: A run beside which others kept this many cores busy was disturbed.
_QUIET_CORES = 0.1


def stem(book: Entry) -> str:
    """Of the files' names: one norm's report does not replace the other's, nor a quick one the whole."""
    about = book["about"]
    norm = about["settings"]["norm"]
    return "training" + (f"-{norm}" if norm != "batch" else "") + ("-quick" if about["quick"] else "")


def write(book: Entry, folder: Path) -> None:
    """NAME.json, NAME.md and NAME.png of what was measured so far."""
    folder.mkdir(parents=True, exist_ok=True)
    name = stem(book)
    (folder / f"{name}.json").write_text(json.dumps(book, indent=1) + "\n")
    _draw(book, folder / f"{name}.png")
    (folder / f"{name}.md").write_text(_page(book, f"{name}.png"))


def line(run: Entry) -> str:
    """One run, as it is told while the others are still to come."""
    name = f"{run['trainer']} {_team(run)}"
    if run["exit_code"] != 0:
        return f"{name}: failed"
    return f"{name}: {run['images_per_s']:.2f} images/s, others kept {run['others_cores']:.1f} cores busy"


def _page(book: Entry, image: str) -> str:
    about, settings = book["about"], book["about"]["settings"]
    disturbed = sum(run["others_cores"] > _QUIET_CORES for run in book["runs"])
    lines = [
        "# Training: raysegment beside others",
        "",
        f"![Images per second]({image})",
        "",
        f"`{about['command']}`, {about['date']}, raysegment {about['commit']}",
        "",
        f"{about['processor']}, {about['cores']} cores, {about['memory_bytes'] / GB:.1f} GB, {about['system']}. "
        f"{', '.join(f'{name} {version}' for name, version in about['versions'].items())}.",
        "",
        f"U-Net of base width 16 and depth 4 with {settings['norm']} norm, fp32, channels_last; windows of "
        f"{settings['tile']} px, {settings['batch']} a step for all processes together; "
        f"{settings['epochs']} epochs of {settings['steps']} steps, the first not counted. "
        + (
            f"Other work kept more than {_QUIET_CORES} cores busy beside {disturbed} of {len(book['runs'])} runs."
            if disturbed
            else "Nothing else ran on the machine."
        ),
        "",
        "| trainer | processes × threads | images/s | from … to | ÷ raysegment, 1 × 1 | CPU s | memory GB | rounds |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for runs in _teams(book):
        rates = [run["images_per_s"] for run in runs]
        first = runs[0]
        lines.append(
            f"| {_TITLES[first['trainer']]} | {_team(first)} | {median(rates):.2f} "
            f"| {min(rates):.2f} … {max(rates):.2f} | {_ratio(book, first, _ours(1)):.3f} "
            f"| {median(r['cpu_s'] for r in runs):.0f} "
            f"| {median(r['peak_pss_bytes'] for r in runs) / GB:.2f} | {len(runs)} |"
        )
    return "\n".join([*lines, "", *_claims(book), "", "## How to read this", "", *_HOW_TO_READ, ""])


_HOW_TO_READ = (
    "- In each round all trainers took turns, every one a whole command in fresh processes. A figure is the median of "
    "the rounds, a ratio the median of the ratios within a round.",
    "- The same for all: network, its layout, window, batch, BCE + Dice, AdamW, quarter turns, flips, brightness and "
    "contrast, no moving average. Plain PyTorch decodes an image for every crop, as most scripts do; MONAI "
    "(CacheDataset) and raysegment keep decoded images. Both libraries read in one process beside each that trains, "
    "raysegment in one thread.",
    "- Plain PyTorch on several processes is DistributedDataParallel: its BatchNorm sees each process alone and its "
    "loss is a mean of means. raysegment sums both over the workers, which costs communication in every layer.",
    "- Loops that exchange nothing learn each from its share of the batch alone: no training, but the most that as "
    "many processes on these cores could do.",
    "- raysegment and the same loop without Ray run with raysegment's settings for the C library's memory; the others "
    "with none, as they come.",
)


def _claims(book: Entry) -> list[str]:
    """The ratios that the trainer is judged by, and the most that the machine allows."""
    said = [
        f"- Ray Train, 1 worker of 1 thread ÷ the same loop without Ray: {_ratio(book, _ours(1), _LOOP):.3f}"
    ]
    many = max(run["processes"] for run in book["runs"])
    if many > 1 and _rates(book, _ours(many)):
        apart = {"trainer": "apart", "processes": many, "threads": 1}
        said += [
            f"- {many} workers of 1 thread ÷ 1 worker of 1 thread: {_ratio(book, _ours(many), _ours(1)):.3f}",
            f"- {many} loops at once that exchange nothing ÷ 1 loop, what these cores can do at best: "
            f"{_ratio(book, apart, _LOOP):.3f}",
            f"- {many} workers of 1 thread ÷ as many loops that exchange nothing: "
            f"{_ratio(book, _ours(many), apart):.3f}",
        ]
    return said


_LOOP = {"trainer": "loop", "processes": 1, "threads": 1}


def _ours(workers: int) -> Entry:
    return {"trainer": "raysegment", "processes": workers, "threads": 1}


def _ratio(book: Entry, case: Entry, other: Entry) -> float:
    """Median over the rounds of the first's rate by the second's; NaN before both were measured in one."""
    ours, theirs = _rates(book, case), _rates(book, other)
    found = [ours[number] / theirs[number] for number in ours.keys() & theirs.keys()]
    return median(found) if found else float("nan")


def _rates(book: Entry, case: Entry) -> dict[int, float]:
    keys = ("trainer", "processes", "threads")
    runs = [run for run in book["runs"] if all(run[key] == case[key] for key in keys)]
    return {run["round"]: run["images_per_s"] for run in runs}


def _teams(book: Entry) -> list[list[Entry]]:
    """The runs of each trainer and team, few cores first."""
    found: dict[tuple[Any, ...], list[Entry]] = {}
    for run in book["runs"]:
        key = (run["processes"] * run["threads"], list(_TITLES).index(run["trainer"]), run["threads"])
        found.setdefault(key, []).append(run)
    return [found[key] for key in sorted(found)]


def _team(run: Entry) -> str:
    return f"{run['processes']} × {run['threads']} thread{'s' * (run['threads'] > 1)}"


def _draw(book: Entry, path: Path) -> None:
    """Median rates as bars, the rounds as dots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    teams = _teams(book)
    figure, axis = pyplot.subplots(figsize=(9, 0.8 + 0.4 * len(teams)), layout="constrained")
    for place, runs in enumerate(teams):
        rates = [run["images_per_s"] for run in runs]
        axis.barh(place, median(rates), color=_COLOURS[runs[0]["trainer"]])
        axis.plot(rates, [place] * len(rates), "|", color="black", markersize=8)
        axis.text(max(rates), place, f"  {median(rates):.2f}", va="center", fontsize=8)
    names = [f"{_TITLES[runs[0]['trainer']]}, {_team(runs[0])}" for runs in teams]
    axis.set_yticks(range(len(teams)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("images of the training step per second, fp32", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.1)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
