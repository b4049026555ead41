"""--address: the same command here, as a driver of a running cluster, or submitted to one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raysegment import console
from raysegment.cli.config import own_parameters
from raysegment.errors import JobError, UsageError

if TYPE_CHECKING:
    from raysegment.cli.common import Result
    from raysegment.runtime.address import Address
    from raysegment.runtime.dashboard import Jobs, JobState
    from raysegment.runtime.follow import Log
    from raysegment.runtime.parcel import Parcel

ADDRESS = Annotated[
    str | None,
    typer.Option(
        metavar="WHERE",
        help="auto or HOST:6379: in that running cluster; http://HOST:8265: as a Ray Job.  [default: "
        "$RAY_ADDRESS, else this machine]",
    ),
]
ALLOW_INSECURE = Annotated[
    bool,
    typer.Option("--allow-insecure", help="Also to a cluster where others could read along or run code."),
]
#: What a command that can run elsewhere takes besides its own options: (type, default).
OPTIONS: dict[str, tuple[Any, Any]] = {
    "address": (ADDRESS, None),
    "detach": (
        Annotated[bool, typer.Option("--detach", help="Submit, print the job's id, and leave.")],
        False,
    ),
    "allow_insecure": (ALLOW_INSECURE, False),
}
#: Values of options for paths that are no paths.
_NO_PATHS = ("all", "auto")


@dataclass(frozen=True)
class Places:
    """Which parameters of a command name files, and how they get to a cluster."""

    carried: tuple[str, ...] = ()
    """Small files, which travel with a job."""
    read: tuple[str, ...] = ()
    """Data, which the cluster must see; a number among them is a number."""
    written: tuple[str, ...] = ()
    job_file: str | None = None
    """A file that names further places."""
    uses_ray: bool = True
    """Whether a running cluster is of any use to the command."""


@dataclass(frozen=True)
class Submitted:
    """A job that goes on by itself."""

    id: str
    address: str
    exit_code: int = 0

    def summary(self) -> str:
        return self.id

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "address": self.address}


@dataclass(frozen=True)
class Answered:
    """What a job answered; people have read it in its log."""

    data: dict[str, Any]
    exit_code: int

    def summary(self) -> str:
        return ""

    def to_json(self) -> dict[str, Any]:
        return self.data


def perform(
    ctx: typer.Context,
    function: Callable[..., Any],
    values: dict[str, Any],
    shared: dict[str, Any],
    places: Places,
) -> Result:
    """Run the command where --address says. Raises UsageError, and JobError for a job that failed."""
    from raysegment.runtime.address import undisturbed, where

    address = where(shared["address"] or _address_in_file(values, places))
    if address.kind == "jobs":
        return _as_job(ctx, address, shared, places)
    if shared["detach"]:
        raise UsageError("--detach needs a job to leave: give --address http://HOST:8265")
    if address.kind == "local":
        with undisturbed():
            return function(**values)
    if not places.uses_ray:
        return function(**values)
    from raysegment.runtime.connected import check_shared, connected

    with connected(address, allow_insecure=shared["allow_insecure"]):
        inner = places_in(values[places.job_file]) if places.job_file is not None else []
        read = [path for name in (*places.carried, *places.read) for path in _paths(values[name])]
        written = [path for name in places.written for path in _paths(values[name])]
        check_shared(
            [*read, *(path for _, path, is_new in inner if not is_new)],
            [*written, *(path for _, path, is_new in inner if is_new)],
        )
        return function(**values)


def _as_job(ctx: typer.Context, address: Address, shared: dict[str, Any], places: Places) -> Result:
    from raysegment.runtime.dashboard import Jobs
    from raysegment.runtime.parcel import Parcel
    from raysegment.runtime.submission import submit

    command = str(ctx.info_name)
    jobs = Jobs(address, allow_insecure=shared["allow_insecure"], sends_code=True)
    parcel = Parcel(address, jobs.token)
    talk = [
        f"--{name}" for name in ("json", "quiet", "verbose") if shared["json_" if name == "json" else name]
    ]
    words = [*talk, *_words(ctx, parcel, places)]
    job = submit(jobs, command, words, parcel)
    if shared["detach"]:
        console.say(f"follow it with `raysegment jobs logs {job} --follow --address {address.text}`")
        return Submitted(job, address.text)
    return outcome(*attend(jobs, job))


def attend(jobs: Jobs, job: str) -> tuple[JobState, Log]:
    """Follow the job to its end; on Ctrl-C leave it, or, if a person says so, stop it. Raises JobError then."""
    from raysegment.runtime.follow import follow

    try:
        return follow(jobs, job, console.relay)
    except KeyboardInterrupt:
        if sys.stdin.isatty() and sys.stderr.isatty() and typer.confirm("\nStop the job?", err=True):
            raise JobError(f"{job} {jobs.stop(job).status.lower()}; the same command goes on", 130) from None
        raise JobError(
            f"{job} goes on at {jobs.address.text}: the same command follows it again, `raysegment jobs stop {job} "
            f"--address {jobs.address.text}` stops it",
            130,
        ) from None


def outcome(state: JobState, log: Log) -> Answered:
    """The answer of a job that has ended, as if it had run here. Raises JobError."""
    code = 1 if state.exit_code is None else state.exit_code
    if state.status == "STOPPED":
        raise JobError(f"{state.id} was stopped: the same command goes on", code)
    error = log.error or (log.answer or {}).get("error")
    if code in (0, 3) and not error:
        return Answered(log.answer or {"id": state.id, "status": state.status}, code)
    raise JobError(str(error or f"{state.id} failed: {state.message}"), code or 1)


def _words(ctx: typer.Context, parcel: Parcel, places: Places) -> Iterator[str]:
    """The command's own words, as one would type them in the job: from flags and --config alike, files renamed."""
    after: list[str] = []
    for parameter in own_parameters(ctx):
        source = getattr(ctx.get_parameter_source(parameter.name), "name", "")
        value = ctx.params[parameter.name]
        if source not in ("COMMANDLINE", "ENVIRONMENT", "DEFAULT_MAP") or value is None:
            continue
        name = max(parameter.opts, key=len)
        several = list(value) if isinstance(value, (list, tuple)) else [value]
        if parameter.name in (*places.carried, *places.read, *places.written):
            several = [_moved(parameter, str(one), parcel, places) for one in several]
        texts = [str(one.value if isinstance(one, Enum) else one) for one in several]
        if parameter.param_type_name == "argument":
            after += texts
        elif getattr(parameter, "is_flag", False):
            yield name if value else parameter.secondary_opts[0]
        elif parameter.nargs > 1:
            yield from (name, *texts)
        else:
            yield from (f"{name}={text}" for text in texts)
    if after:
        yield from ("--", *after)


def _address_in_file(values: dict[str, Any], places: Places) -> str | None:
    """What a job file says; within a job, the file that came along is not to submit it again."""
    if places.job_file is None or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return None
    from raysegment.nightly.job import load_job

    return load_job(values[places.job_file]).cluster.address


def places_in(file: str) -> list[tuple[str, str, bool]]:
    """(key, absolute path, is it written) of all that a job file names on file systems; the fixed part of patterns."""
    from raysegment.nightly.job import load_job

    job = load_job(file)
    named = [
        *(("[input] paths", path, False) for path in job.input.paths),
        ("[model] path", job.model.path, False),
        ("[output] path", job.output.path, True),
        ("[ledger] path", job.ledger_path, True),
        *([("[report] path", job.report.path, True)] if job.report.path is not None else []),
        *([("[infer] scratch", job.infer.scratch, True)] if job.infer.scratch is not None else []),
    ]
    return [(key, _fixed(job.place(path)), is_new) for key, path, is_new in named if "://" not in path]


def _fixed(pattern: str) -> str:
    """The path up to the first part with a placeholder or a wildcard."""
    parts = pattern.split("/")
    varying = (i for i, part in enumerate(parts) if any(c in part for c in "{*?["))
    return "/".join(parts[: next(varying, len(parts))]) or "/"


def _with_places(file: str, parcel: Parcel) -> str:
    """The job file for the job: itself where the nodes see it, else a copy. Raises UsageError for what it names."""
    from raysegment.runtime.parcel import is_shared

    for key, path, is_new in places_in(file):
        parcel.sees(key, path, is_new=is_new)
    if parcel.is_here or is_shared(Path(file).absolute()):
        return str(Path(file).absolute())
    return parcel.carry("job", file)


def _moved(parameter: Any, text: str, parcel: Parcel, places: Places) -> str:
    """What to say in the job for a value that may be a path."""
    if not _paths(text):
        return text
    if parameter.name == places.job_file:
        return _with_places(text, parcel)
    if parameter.name in places.carried:
        return parcel.carry(parameter.name, text)
    option = (
        parameter.name.upper() if parameter.param_type_name == "argument" else max(parameter.opts, key=len)
    )
    return parcel.sees(option, text, is_new=parameter.name in places.written)


def _paths(value: Any) -> list[str]:
    """Those of a parameter's values that are paths of this machine."""
    texts = [str(one) for one in (value if isinstance(value, (list, tuple)) else [value]) if one is not None]
    return [text for text in texts if text not in _NO_PATHS and "://" not in text and not _is_number(text)]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
