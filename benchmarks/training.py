"""raysegment's trainer beside the same loop without Ray, plain PyTorch and MONAI: images per second.

    python benchmarks/training.py --quick      # a few steps each: does everything run?
    python benchmarks/training.py              # about half an hour on two quiet cores

README.md here says how to install the contestants. Every measurement is a whole command in fresh processes on the same
cores. The contestants take turns, round by round: a ratio compares runs of one round, and the median of the rounds is
shown. The rate is that of the steps after the first epoch: what is paid once, imports, workers, first batches, is over.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import measure
import training_report
from material import training_set

from raysegment import console
from raysegment.hardware import available_cores

VERSIONS = ("raysegment", "torch", "ray", "numpy", "monai")
TRAINERS = ("raysegment", "loop", "apart", "pytorch", "monai")
Entry = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One thing to be measured."""

    trainer: str
    processes: int
    threads: int


@dataclass(frozen=True)
class Settings:
    """The same for every trainer."""

    tile: int
    batch: int
    steps: int
    epochs: int
    norm: str
    """"batch", whose statistics cross the workers in every layer, or "group", which knows one window."""
    lr: float = 1e-3


def cases(cores: int) -> list[Case]:
    """One thread each, then every core: as processes of one thread, and as threads of one process."""
    single = [Case(name, 1, 1) for name in ("raysegment", "loop", "pytorch", "monai")]
    if cores == 1:
        return single
    spread = [Case(name, cores, 1) for name in ("raysegment", "apart", "pytorch")]
    return [*single, *spread, *(Case(name, 1, cores) for name in ("pytorch", "monai"))]


def main() -> None:
    args = arguments()
    console.configure("human")
    settings = Settings(args.tile, args.batch, args.steps, args.epochs, args.norm)
    args.cache.mkdir(parents=True, exist_ok=True)
    data = training_set(args.cache)
    about = machine.about(shlex.join(["python", "benchmarks/training.py", *sys.argv[1:]]), VERSIONS)
    book: Entry = {
        "about": {
            **about,
            "cores": args.cores,
            "settings": dataclasses.asdict(settings),
            "quick": args.quick,
        },
        "runs": [],
    }
    entered = [case for case in cases(args.cores) if case.trainer in args.trainers]
    for number in range(args.repeats):
        turn = number % len(entered)
        for case in entered[turn:] + entered[:turn]:
            entry = measured(case, settings, data, args)
            book["runs"].append({"round": number, **entry})
            console.say(training_report.line(entry))
            if entry["exit_code"] != 0:
                raise SystemExit(entry["complaint"])
            training_report.write(book, args.out)  # what is measured is kept, whatever comes
    console.say(str(args.out / f"{training_report.stem(book)}.md"))


def measured(case: Case, settings: Settings, data: Path, args: argparse.Namespace) -> Entry:
    """One run of a case, as an entry of the book."""
    with tempfile.TemporaryDirectory(prefix="training-", dir=args.cache) as work:
        options = {**dataclasses.asdict(settings), "data": data, "work": work}
        options |= {"threads": case.threads, "processes": case.processes}
        words = [f"--{name}={value}" for name, value in options.items()]
        usage = measure.run(
            [sys.executable, str(Path(__file__).with_name("trainers.py")), case.trainer, *words],
            cores=sorted(os.sched_getaffinity(0))[: args.cores],
            limit_s=args.limit_s,
        )
    entry = {**dataclasses.asdict(case), **dataclasses.asdict(usage)}
    told, complaint = entry.pop("stdout"), entry.pop("stderr")
    if usage.exit_code != 0:
        return {**entry, "complaint": complaint[-2000:] or "stopped at its time limit"}
    ends = json.loads(told.splitlines()[-1])["ends"]
    (step, began_s), (last, ended_s) = ends[0], ends[-1]
    return {**entry, "ends": ends, "images_per_s": (last - step) * settings.batch / (ended_s - began_s)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    home = Path(__file__).parents[1]
    parser.add_argument("--quick", action="store_true", help="one round of a few steps")
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8, help="of all processes together")
    parser.add_argument("--steps", type=int, help="of an epoch; default: 15, quick: 3")
    parser.add_argument("--epochs", type=int, help="the first is not counted; default: 3, quick: 2")
    parser.add_argument("--repeats", type=int, help="rounds; default: 5, quick: 1")
    parser.add_argument("--norm", choices=("batch", "group"), default="batch")
    parser.add_argument(
        "--trainers", type=lambda text: text.split(","), default=list(TRAINERS), help=",".join(TRAINERS)
    )
    parser.add_argument("--cores", type=int, default=available_cores(), help="all trainers are kept on these")
    parser.add_argument("--limit-s", type=float, default=1200, help="a run that takes longer is stopped")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "raysegment-benchmarks")
    parser.add_argument("--out", type=Path, default=home / "docs" / "benchmarks", help="folder of the report")
    args = parser.parse_args()
    for name, whole, quick in (("steps", 15, 3), ("epochs", 3, 2), ("repeats", 5, 1)):
        if getattr(args, name) is None:
            setattr(args, name, quick if args.quick else whole)
    if args.epochs < 2:
        parser.error(f"--epochs {args.epochs}: the first is not counted: give 2 or more")
    if "raysegment" not in args.trainers or set(args.trainers) - set(TRAINERS):
        parser.error(
            f"--trainers {','.join(args.trainers)}: some of {','.join(TRAINERS)}, the first among them"
        )
    args.cache = args.cache.absolute()
    return args


if __name__ == "__main__":
    main()
