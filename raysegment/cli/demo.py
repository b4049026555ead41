"""`raysegment demo`: the main job, shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raysegment.cli.common import Result, command


@command(
    "demo",
    epilog="""
    Examples:
      raysegment demo
      raysegment demo --out /tmp/demo --size 8192
    """,
)
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything it makes.")] = Path("demo-out"),
    size: Annotated[int, typer.Option(min=512, help="Edge in px of the scene that is segmented.")] = 4096,
) -> Result:
    """Make a scene, train, segment, score and draw it: the whole way, on this machine, in a few minutes."""
    from raysegment.demo import demo as run

    return run(out, size=size)
