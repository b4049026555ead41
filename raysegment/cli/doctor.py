"""`raysegment doctor`: what this machine can do."""

from __future__ import annotations

from raysegment.cli.common import Result, command


@command(
    "doctor",
    epilog="""
    Examples:
      raysegment doctor
      raysegment doctor --json
    """,
)
def doctor() -> Result:
    """Say what this machine can do and what would get in the way.

    Versions, cores, memory, GPUs, precision, disks and Ray's surroundings. Nothing is started or changed.
    """
    from raysegment.doctor import doctor as run

    return run()
