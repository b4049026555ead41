"""`raysegment inspect` and `raysegment preview`: look before you leap."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from raysegment.cli.common import Result, Select, command, selection


@command(
    "inspect",
    epilog="""
    Examples:
      raysegment inspect scene.tif
      raysegment inspect DATA --json
      raysegment inspect set.csv --classes classes.toml
      raysegment inspect run/model.safetensors
    """,
)
def inspect(
    path: Annotated[str, typer.Argument(help="An image, a training set, a model or a mask.")],
    classes: Annotated[
        str | None, typer.Option(metavar="FILE.toml", help="What the masks of a training set mean.")
    ] = None,
    select: Select = None,
) -> Result:
    """Say what an image, a training set, a model or a mask holds.

    For a training set: size, dtype and mask coding of every file, class balance, and every problem.
    """
    from raysegment.inspection import inspect as run

    return run(path, classes=classes, select=selection(select))


@command(
    "preview",
    epilog="""
    Examples:
      raysegment preview scene.tif mask.zarr --out look.png
      raysegment preview scene.tif mask.zarr --out look.png --region 4000 2000 800 600
      raysegment preview scene.tif truth.tif --out look.png --layout side
    """,
)
def preview(
    image: Annotated[str, typer.Argument(help="The image.")],
    mask: Annotated[str, typer.Argument(help="Its mask, of any readable format.")],
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="Where to write the picture.")],
    region: Annotated[
        tuple[int, int, int, int] | None,
        typer.Option(metavar="X Y W H", help="What to show, in full-resolution pixels."),
    ] = None,
    max_size: Annotated[
        int, typer.Option(min=16, metavar="PX", help="Longer edge of the drawn image; the legend adds to it.")
    ] = 1024,
    layout: Annotated[
        Literal["overlay", "side"], typer.Option(help="Mask over the image, or beside it.")
    ] = "overlay",
    select: Select = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a picture that is there.")] = False,
) -> Result:
    """Draw a mask over its image, at any zoom, without loading either."""
    from raysegment.geometry import Window
    from raysegment.mask.preview import preview as run

    window = None
    if region is not None:
        x, y, width, height = region
        window = Window(y=y, x=x, height=height, width=width)
    return run(
        image,
        mask,
        out=out,
        region=window,
        max_size=max_size,
        layout=layout,
        select=selection(select),
        overwrite=overwrite,
    )
