"""`raysegment infer`: a mask of an image of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from raysegment.cli.common import Result, command
from raysegment.errors import NotBuiltError, UsageError
from raysegment.geometry import Window


@command(
    "infer",
    epilog="""
    Examples:
      raysegment infer scene.tif --model run/model.safetensors --out mask.zarr
      raysegment infer slide.svs --model tissue.safetensors --out mask.zarr --region 10000 20000 8192 8192
      raysegment infer scene.tif --model run/model.safetensors --plan

    Interrupted? The same command goes on where it stopped.
    """,
)
def infer(
    source: Annotated[
        list[str],
        typer.Argument(help="TIFF, BigTIFF, OME-TIFF, SVS, Zarr, OME-Zarr; PNG or JPEG when small."),
    ],
    model: Annotated[str, typer.Option(help="A .safetensors of `train`, or a .pt2 or .onnx with its NAME.toml.")],
    out: Annotated[
        Path | None, typer.Option(metavar="MASK.zarr", help="The mask: an OME-Zarr label image.")
    ] = None,
    tile: Annotated[int | None, typer.Option(min=1, help="Tile edge in px.  [default: the model's]")] = None,
    overlap: Annotated[
        int | None, typer.Option(min=0, help="Overlap of tiles in px.  [default: tile/8]")
    ] = None,
    blend: Annotated[
        Literal["hann", "gaussian", "linear", "none"],
        typer.Option(help="How overlapping tiles are weighted."),
    ] = "hann",
    region: Annotated[
        tuple[int, int, int, int] | None,
        typer.Option(metavar="X Y W H", help="Only this part, in full-resolution px."),
    ] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        typer.Option(help="auto: bf16 where it is fast and agrees with fp32."),
    ] = "auto",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the network runs.")] = "auto",
    batch_size: Annotated[str, typer.Option(metavar="auto|N", help="Tiles in one forward pass.")] = "auto",
    workers: Annotated[
        str, typer.Option(metavar="auto|N", help="Processes.  [auto: one per core, or per GPU]")
    ] = "auto",
    block: Annotated[
        str, typer.Option(metavar="auto|PX", help="Edge of what a worker does at once.")
    ] = "auto",
    scratch: Annotated[
        Path | None,
        typer.Option(help="Folder for unfinished work, seen by all workers.  [default: OUT.scratch]"),
    ] = None,
    select: Annotated[
        str | None, typer.Option(metavar="z=0,t=0", help="Which plane of an image with further axes.")
    ] = None,
    polygons: Annotated[str | None, typer.Option(hidden=True)] = None,
    into_labels: Annotated[str | None, typer.Option(hidden=True)] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a mask that something else made.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be done; do nothing.")] = False,
) -> Result:
    """Segment an image of any size: tiles, blended without seams, into one mask.

    Memory does not grow with the image. The mask is the same bytes on any number of workers, and after any crash.
    """
    from raysegment.inference import run

    for option, asked in (("--polygons", polygons), ("--into-labels", into_labels)):
        if asked is not None:
            raise NotBuiltError(f"{option} {asked}: not built yet")
    if len(source) > 1:
        raise NotBuiltError(
            f"{len(source)} sources: several images in one call are not built yet; call once for each"
        )
    count, plane = _auto_or_count(workers, "--workers"), _selection(select)
    options: run.Options = {
        "tile": tile,
        "overlap": overlap,
        "blend": blend,
        "region": None
        if region is None
        else Window(x=region[0], y=region[1], width=region[2], height=region[3]),
        "precision": precision,
        "device": device,
        "batch_size": _auto_or_count(batch_size, "--batch-size"),
        "block": _auto_or_count(block, "--block"),
    }
    if plan:
        return run.plan(source[0], model=model, workers=count, select=plane, **options)
    if out is None:
        raise UsageError("--out is missing: name the mask, such as --out mask.zarr (or use --plan)")
    return run.infer(
        source[0],
        model=model,
        out=out,
        workers=count,
        scratch=scratch,
        select=plane,
        overwrite=overwrite,
        **options,
    )


def _auto_or_count(text: str, option: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"{option} {text!r}: give auto or a number from 1")
    return int(text)


def _selection(text: str | None) -> dict[str, int] | None:
    if text is None:
        return None
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(axis and sign and index.isdigit() for axis, sign, index in pairs):
        raise UsageError(f"--select {text!r}: give axis=index pairs, such as z=0,t=0")
    return {axis.strip(): int(index) for axis, _, index in pairs}
