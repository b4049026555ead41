"""`raysegment doctor`: what this machine can do."""

from __future__ import annotations

from typing import Annotated

import typer

from raysegment.cli.common import Result, command


@command(
    "doctor",
    epilog="""
    Examples:
      raysegment doctor
      raysegment doctor --json
      raysegment doctor --address http://127.0.0.1:8265
    """,
)
def doctor(
    address: Annotated[
        str | None,
        typer.Option(metavar="http://HOST:8265", help="Also look at this cluster, and at what it exposes."),
    ] = None,
) -> Result:
    """Say what this machine can do and what would get in the way.

    Versions, cores, memory, GPUs, precision, disks and Ray's surroundings. Nothing is started or changed.
    """
    from raysegment.runtime.doctor import doctor as run

    return run(address=address)
