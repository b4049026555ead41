"""`raysegment batch`: all that is new since last night."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raysegment.cli.common import Places, Result, command


@command(
    "batch",
    places=Places(carried=("job",), job_file="job"),
    epilog="""
    Examples:
      raysegment batch nightly.toml
      raysegment batch nightly.toml --status
      raysegment batch nightly.toml --retry

    Interrupted, or past its deadline? The same command goes on where it stopped.
    """,
)
def batch(
    job: Annotated[Path, typer.Argument(metavar="JOB.toml", help="What to segment, with what, into what.")],
    status: Annotated[
        bool, typer.Option("--status", help="Show the last runs as a table; do nothing.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Also try images again that were set aside before.")
    ] = False,
) -> Result:
    """Run the batch job that a file describes: only what is new or changed.

    What is done is decided by content, model and settings. An image that fails is set aside, and the others finish.
    """
    from raysegment.nightly import run

    return run.status(job) if status else run.batch(job, retry=retry)
