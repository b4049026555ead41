"""`raysegment jobs`: what runs on a cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raysegment import console
from raysegment.cli.common import Result, app, command
from raysegment.cli.remote import ALLOW_INSECURE, Answered, attend, outcome
from raysegment.cli.root import Root

if TYPE_CHECKING:
    from raysegment.runtime.dashboard import JobState

group = typer.Typer(cls=Root, help="List, follow and stop jobs on a cluster.", rich_markup_mode=None)
app.add_typer(group, name="jobs")

ADDRESS = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="http(s)://HOST:8265, the cluster's dashboard.  [default: $RAY_ADDRESS]"
    ),
]
_Id = Annotated[str, typer.Argument(metavar="ID", help="As submitting or `raysegment jobs list` shows it.")]


@dataclass(frozen=True)
class Table:
    """Some jobs, for people as lines."""

    jobs: Sequence[JobState]
    is_list: bool = True
    exit_code: int = 0

    def summary(self) -> str:
        if not self.jobs:
            return "no jobs"
        rows = [("id", "status", "exit", "started", "took"), *(_row(job) for job in self.jobs)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows
        ]
        if not self.is_list:
            lines += ["", self.jobs[0].command, self.jobs[0].message]
        return "\n".join(line.rstrip() for line in lines)

    def to_json(self) -> dict[str, Any]:
        found = [job.to_json() for job in self.jobs]
        return {"jobs": found} if self.is_list else found[0]


@command(
    "list",
    group=group,
    epilog="""
    Examples:
      raysegment jobs list --address http://127.0.0.1:8265
      RAY_ADDRESS=https://ray.example.org raysegment jobs list --json
    """,
)
def list_jobs(address: ADDRESS = None, allow_insecure: ALLOW_INSECURE = False) -> Result:
    """All jobs that were submitted to the cluster, the newest first."""
    from raysegment.runtime import jobs

    return Table(jobs.list(address=address, allow_insecure=allow_insecure))


@command("status", group=group)
def status(job: _Id, address: ADDRESS = None, allow_insecure: ALLOW_INSECURE = False) -> Result:
    """How one job stands, and how it ended."""
    from raysegment.runtime import jobs

    return Table([jobs.status(job, address=address, allow_insecure=allow_insecure)], is_list=False)


@command("logs", group=group)
def logs(
    job: _Id,
    follow: Annotated[
        bool, typer.Option("--follow", help="Until it ends; answers with its exit code.")
    ] = False,
    address: ADDRESS = None,
    allow_insecure: ALLOW_INSECURE = False,
) -> Result:
    """What one job has said."""
    if follow:
        from raysegment.runtime.dashboard import Jobs

        return outcome(*attend(Jobs.at(address, allow_insecure=allow_insecure), job))
    from raysegment.runtime import jobs

    text = jobs.logs(job, address=address, allow_insecure=allow_insecure)
    for line in text.splitlines():
        console.relay(line)
    return Answered({"id": job, "log": text}, 0)


@command("stop", group=group)
def stop(job: _Id, address: ADDRESS = None, allow_insecure: ALLOW_INSECURE = False) -> Result:
    """Stop one job; the same command, submitted again, goes on where it stopped."""
    from raysegment.runtime import jobs

    return Table([jobs.stop(job, address=address, allow_insecure=allow_insecure)], is_list=False)


def _row(job: JobState) -> tuple[str, ...]:
    took = "" if job.started is None else f"{(job.ended or time.time()) - job.started:.0f} s"
    started = "" if job.started is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started))
    return (job.id, job.status, "" if job.exit_code is None else str(job.exit_code), started, took)
