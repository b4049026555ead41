"""`raysegment schedule`: the files that make a scheduler run a batch job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from raysegment.cli.common import Result, command


@command(
    "schedule",
    epilog="""
    Examples:
      raysegment schedule nightly.toml --on systemd
      raysegment schedule nightly.toml --on kubernetes --out deploy

    Nothing is handed to the scheduler: read the files, each says at its top what it needs and how to apply it.
    """,
)
def schedule(
    job: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job that `raysegment batch` runs.")],
    on: Annotated[
        Literal["cron", "systemd", "slurm", "kubernetes"], typer.Option("--on", help="The scheduler.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write them; NAME-SCHEDULER by default.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that differ.")] = False,
    ray_cron_job: Annotated[
        bool,
        typer.Option("--ray-cron-job", help="On Kubernetes: a RayCronJob (alpha) instead of a CronJob."),
    ] = False,
) -> Result:
    """Write the files that make a scheduler run a batch job by its cron line, checked before they are written.

    Each run is `raysegment batch JOB.toml`: only what is new or changed.
    """
    from raysegment.scheduling.write import schedule as run

    return run(job, on=on, out=out, overwrite=overwrite, ray_cron_job_instead=ray_cron_job)
