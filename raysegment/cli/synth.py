"""`raysegment synth`: a scene to try things on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raysegment.cli.common import Result, command


@command(
    "synth",
    epilog="""
    Examples:
      raysegment synth scene.tif --size 4096
      raysegment synth scene.zarr --size 20000 --seed 7
    """,
)
def synth(
    out: Annotated[Path, typer.Argument(metavar="OUT.tif|OUT.zarr", help="The scene.")],
    size: Annotated[int, typer.Option(metavar="PX", min=1, help="Edge of the scene.")],
    seed: Annotated[int, typer.Option(metavar="K", min=0, help="Which scene.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> Result:
    """Make a realistic synthetic scene of any size, with its true mask beside it (OUT.mask.tif, OUT.mask.zarr).

    Fields, meadows, woods, a river, roads and houses, half a metre per pixel, streamed to disk.
    """
    from raysegment.scene import synth as run

    return run(out, size=size, seed=seed, overwrite=overwrite)
