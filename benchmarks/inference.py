"""raysegment beside MONAI, pytorch-toolbelt and the bare loop: speed, memory, exactness, on the same image and network.

    python benchmarks/inference.py --quick                        # 4096² only
    python benchmarks/inference.py --sizes 4096,8192,16384,32768  # the whole table
    python benchmarks/inference.py --device cuda                  # bf16, all contestants on the GPU

README.md here says how to install the contestants. Every measurement is a whole command in a fresh process; all of
them run on the same cores, read the same file (from the page cache) and write their mask to the same disk. The
contestants take turns, round by round: a ratio compares runs of one round, and the median of the rounds is shown.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine
import measure
import psutil
import report
import rounds
from agreement import compare
from lineup import LINEUP, Case, Settings, cases, command
from material import ODD_PX, into_page_cache, scene, trained_unet

from raysegment import console
from raysegment.hardware import available_cores, available_memory

CLASSES = 2
QUICK, FULL = (4096,), (4096, 8192, 16384, 32768)
VERSIONS = ("raysegment", "torch", "ray", "numpy", "zarr", "tifffile", "monai", "pytorch-toolbelt")
Entry = dict[str, Any]


def main() -> None:
    args = arguments()
    console.configure("human")
    settings = Settings(args.tile, args.overlap, args.batch, args.device, args.precision)
    args.cache.mkdir(parents=True, exist_ok=True)
    networks = {n: "constant" if n == "constant" else str(trained_unet(args.cache)) for n in args.network}
    book = {"about": about(args, settings), "runs": [], "left_out": [], "masks": [], "errors": {}}
    with tempfile.TemporaryDirectory(prefix="raysegment-benchmark-", dir=args.cache) as work:
        book["errors"] = constant_errors(args, settings, Path(work))
        for name, network in networks.items():
            for size in args.sizes:
                contest(book, args, settings, name, network, size, Path(work))
                report.write(book, args.out)
    console.say(f"{args.out / report.stem(book)}.md")


def contest(
    book: Entry, args: argparse.Namespace, settings: Settings, name: str, network: str, size: int, work: Path
) -> None:
    """All contestants, round by round, on one scene with one network; their last masks are compared."""
    source = scene(args.cache, size)
    into_page_cache(source)
    entered: list[Case] = []
    for program in args.contestants:
        reason = too_big(program, size, work)
        if reason:
            book["left_out"].append({"program": program, "network": name, "size": size, **reason})
        else:
            teams = list(cases(program, name, size, args.cores, settings.device))
            entered += [case for case in teams if case not in slower(book, teams)]
    masks: dict[str, Path] = {}
    for number in range(args.repeats or (3 if size <= 8192 else 1)):
        turn = number % max(1, len(entered))
        for case in entered[turn:] + entered[:turn]:
            out = fresh(work / f"{case.program}.zarr")
            entry = measured(case, settings, source, network, out, args)
            book["runs"].append({"round": number, **entry})
            console.say(report.line(entry))
            if entry["exit_code"] == 0 and LINEUP[case.program].has_mask:
                masks[case.program] = out
            elif entry["exit_code"] != 0:
                entered.remove(case)  # once is enough
                masks.pop(case.program, None)
                fresh(out)
        report.write(book, args.out)  # what is measured is kept, whatever comes
    book["masks"] += [{"network": name, "size": size, **found} for found in compare(masks, source, name)]
    for mask in masks.values():
        fresh(mask)


def measured(
    case: Case, settings: Settings, source: Path, network: str, out: Path, args: argparse.Namespace
) -> Entry:
    """One run of a case, as an entry of the book."""
    attempts = out.with_name(out.name + ".scratch") / "attempts"
    marks = {
        "first_block": lambda: attempts.is_dir() and any(attempts.iterdir()),
        "mask": (out / "zarr.json").exists,
    }
    words = command(case, settings, source, network, out)
    usage = measure.run(
        words,
        cores=sorted(os.sched_getaffinity(0))[: args.cores],
        limit_s=args.limit_s,
        marks=marks if is_ours(case.program) else None,
    )
    entry = {**dataclasses.asdict(case), **dataclasses.asdict(usage), "parts": {}}
    told, complaint = entry.pop("stdout"), entry.pop("stderr")
    if usage.exit_code:
        entry["complaint"] = complaint[-2000:]
    if "--json" in words and usage.exit_code == 0:
        entry["result"] = json.loads(told.splitlines()[-1])
    if usage.exit_code == 0:
        moments = usage.marks if is_ours(case.program) else moments_of(told, usage.began_at)
        if not moments.keys() & {"first_block", "ready"}:
            raise SystemExit(f"{case}: its first block was not seen under {attempts}")
        entry["parts"] = parts(moments, usage.wall_s)
        rated_s = usage.wall_s - entry["parts"]["start-up"]
        if not LINEUP[case.program].has_mask:
            rated_s = entry["parts"]["work"]
        entry["megapixels_per_s"] = case.size**2 / 1e6 / rated_s
    return entry


def is_ours(program: str) -> bool:
    """Whether its moments are seen by what it writes, since it says none."""
    return program.startswith("raysegment")


def slower(book: Entry, teams: list[Case]) -> list[Case]:
    """The teams that a smaller image has shown to be slower than another of the same contestant."""
    if not teams:
        return []
    smaller = [
        r["size"] for r in book["runs"] if r["network"] == teams[0].network and r["size"] < teams[0].size
    ]
    if not smaller:
        return []
    best = rounds.best_team(book, teams[0].network, min(smaller), teams[0].program)
    if not best:
        return []
    return [c for c in teams if (c.threads, c.processes) != (best[0]["threads"], best[0]["processes"])]


def moments_of(told: str, began_at: float) -> dict[str, float]:
    """Seconds from the start to what a contestant says it reached."""
    moments = json.loads(told.splitlines()[-1])["moments"]
    return {name: at - began_at for name, at in moments.items() if name != "began"}


def parts(moments: dict[str, float], wall_s: float) -> dict[str, float]:
    """Seconds between the moments, by what was done in them. raysegment reads, works and writes at the same time."""
    names = {"first_block": "start-up", "mask": "work", "ready": "start-up", "read": "read", "worked": "work"}
    spent, before = {}, 0.0
    for moment, at in sorted(moments.items(), key=lambda item: item[1]):
        spent[names.get(moment, "write")] = at - before
        before = at
    return {**spent, "end": wall_s - before}


def constant_errors(args: argparse.Namespace, settings: Settings, work: Path) -> dict[str, float]:
    """How far each contestant's probabilities are off with the constant network, on a scene that no tile divides."""
    source = scene(args.cache, ODD_PX)
    errors = {}
    for program in args.contestants:
        if LINEUP[program].has_mask and not LINEUP[program].as_it_comes:
            case = Case(program, "constant", ODD_PX, threads=1, processes=1)
            words = command(case, settings, source, "constant", work / "error.zarr", error_only=True)
            told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            errors[program] = json.loads(told.splitlines()[-1])["error"]
            for left in work.glob("error.zarr*"):
                fresh(left)
    return errors


def too_big(program: str, size: int, work: Path) -> Entry | None:
    """Why a contestant is not started: it would need more than the machine has."""
    contestant = LINEUP[program]
    there = min(available_memory(), psutil.virtual_memory().available)
    needs = contestant.needs_bytes(size, CLASSES)
    if needs > there:
        return {"what": "memory", "needs_bytes": needs, "there_bytes": there}
    needs, there = size**2 * contestant.disk_per_pixel(CLASSES), shutil.disk_usage(work).free
    return {"what": "disk", "needs_bytes": needs, "there_bytes": there} if needs > there else None


def fresh(path: Path) -> Path:
    """The path, with nothing there, nor beside it under its name."""
    for old in path.parent.glob(f"{path.name}*"):
        shutil.rmtree(old)
    return path


def about(args: argparse.Namespace, settings: Settings) -> Entry:
    """Everything that a reader needs to repeat this."""
    gpu = None
    if settings.device == "cuda":
        import torch

        gpu = torch.cuda.get_device_name()
    return {
        **machine.about(shlex.join(["python", "benchmarks/inference.py", *sys.argv[1:]]), VERSIONS),
        "cores": args.cores,
        "gpu": gpu,
        "settings": dataclasses.asdict(settings),
        "quick": args.quick,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    home = Path(__file__).parents[1]

    def counts(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    def words(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--quick", action="store_true", help="4096² only")
    parser.add_argument("--sizes", type=counts, help="edges in px, such as 4096,8192")
    parser.add_argument("--network", type=words, default=["constant", "unet"], help="constant,unet")
    parser.add_argument("--contestants", type=words, default=list(LINEUP), help=",".join(LINEUP))
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--cores", type=int, default=available_cores(), help="all contestants are kept on these"
    )
    parser.add_argument("--repeats", type=int, help="rounds; default: 3 up to 8192², then 1")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: fp32, on cuda bf16")
    parser.add_argument("--limit-s", type=float, default=3600, help="a run that takes longer is stopped")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "raysegment-benchmarks")
    parser.add_argument("--out", type=Path, default=home / "docs" / "benchmarks", help="folder of the report")
    args = parser.parse_args()
    for option, known in (("network", ("constant", "unet")), ("contestants", tuple(LINEUP))):
        unknown = set(getattr(args, option)) - set(known)
        if unknown:
            parser.error(f"--{option} {','.join(sorted(unknown))}: known are {','.join(known)}")
    args.sizes = args.sizes or list(QUICK if args.quick else FULL)
    args.precision = args.precision or ("bf16" if args.device == "cuda" else "fp32")
    args.cache = args.cache.absolute()
    return args


if __name__ == "__main__":
    main()
