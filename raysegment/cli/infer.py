"""`raysegment infer`: a mask of an image of any size."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from raysegment.cli.common import Places, Result, Select, command, selection
from raysegment.errors import NotBuiltError, UsageError
from raysegment.geometry import Window


@command(
    "infer",
    places=Places(carried=("model",), read=("source", "foreground"), written=("out", "scratch")),
    epilog="""
    Examples:
      raysegment infer scene.tif --model run/model.safetensors --out mask.zarr
      raysegment infer slide.svs --model tissue.safetensors --out mask.zarr --region 10000 20000 8192 8192
      raysegment infer 'scenes/*.tif' --model run/model.safetensors --out masks
      raysegment infer slide.svs --model tissue.onnx --out mask.zarr --foreground auto --tta flip
      raysegment infer scene.tif --model run/model.safetensors --plan
      raysegment infer 's3://scenes/2026/*.tif' --model run/model.safetensors --out s3://masks/2026

    Interrupted? The same command goes on where it stopped.
    """,
)
def infer(
    source: Annotated[
        list[str],
        typer.Argument(
            help="Path, glob or URL: TIFF, BigTIFF, OME-TIFF, SVS, Zarr, OME-Zarr; PNG or JPEG when small."
        ),
    ],
    model: Annotated[
        str, typer.Option(help="A .safetensors of `train`, or a .pt2 or .onnx with its NAME.toml.")
    ],
    out: Annotated[
        str | None,
        typer.Option(
            metavar="MASK.zarr|FOLDER",
            help="The mask: an OME-Zarr label image; a folder for several sources; or its URL.",
        ),
    ] = None,
    tile: Annotated[int | None, typer.Option(min=1, help="Tile edge in px.  [default: the model's]")] = None,
    overlap: Annotated[
        int | None, typer.Option(min=0, help="Overlap of tiles in px.  [default: tile/8]")
    ] = None,
    blend: Annotated[
        Literal["hann", "gaussian", "linear", "none"],
        typer.Option(help="How overlapping tiles are weighted."),
    ] = "hann",
    level: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Read this level of the image's pyramid.")
    ] = None,
    pixel_size: Annotated[
        str | None,
        typer.Option(
            metavar="X|native", help="Read at this pixel size: µm or CRS units.  [default: the model's]"
        ),
    ] = None,
    channels: Annotated[
        str | None, typer.Option(metavar="0,1,2", help="Which channels the network sees, in its order.")
    ] = None,
    region: Annotated[
        tuple[int, int, int, int] | None,
        typer.Option(metavar="X Y W H", help="Only this part, in full-resolution px."),
    ] = None,
    foreground: Annotated[
        str,
        typer.Option(
            metavar="all|auto|MASK", help="What to segment; auto skips nodata and, on slides, glass."
        ),
    ] = "all",
    tta: Annotated[
        Literal["none", "flip", "d4"],
        typer.Option(help="Average over flips (4 passes), or flips and turns (8)."),
    ] = "none",
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
    max_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of each worker, such as 2G; blocks are made to fit.")
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write class probabilities, as uint8.")
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Also write how far overlapping tiles disagree.")
    ] = False,
    on_error: Annotated[
        Literal["fail", "skip"],
        typer.Option(help="skip: what cannot be read becomes nodata and is listed; exit 3."),
    ] = "fail",
    scratch: Annotated[
        str | None,
        typer.Option(help="Folder or URL for unfinished work, seen by all workers.  [default: OUT.scratch]"),
    ] = None,
    select: Select = None,
    polygons: Annotated[str | None, typer.Option(hidden=True)] = None,
    into_labels: Annotated[str | None, typer.Option(hidden=True)] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a mask that something else made.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be done; do nothing.")] = False,
    self_check: Annotated[
        bool, typer.Option("--self-check", help="First prove this plan with a constant and a ramp.")
    ] = False,
) -> Result:
    """Segment an image of any size: tiles, blended without seams, into one mask.

    Memory does not grow with the image. The mask is the same bytes on any number of workers, and after any crash.
    """
    from raysegment.inference.options import Options

    for option, asked in (("--polygons", polygons), ("--into-labels", into_labels)):
        if asked is not None:
            raise NotBuiltError(f"{option} {asked}: not built yet")
    count, plane = _auto_or_count(workers, "--workers"), selection(select)
    options: Options = {
        "tile": tile,
        "overlap": overlap,
        "blend": blend,
        "level": level,
        "pixel_size": _pixel_size(pixel_size),
        "channels": _channels(channels),
        "region": None
        if region is None
        else Window(x=region[0], y=region[1], width=region[2], height=region[3]),
        "foreground": foreground,
        "tta": tta,
        "precision": precision,
        "device": device,
        "batch_size": _auto_or_count(batch_size, "--batch-size"),
        "block": _auto_or_count(block, "--block"),
        "max_memory": max_memory,
        "probabilities": probabilities,
        "uncertainty": uncertainty,
        "on_error": on_error,
    }
    if plan:
        from raysegment.inference import estimate

        return estimate.plan(source, model=model, workers=count, select=plane, **options)
    if out is None:
        raise UsageError("--out is missing: name the mask, such as --out mask.zarr (or use --plan)")
    from raysegment.inference import run

    return run.infer(
        source,
        model=model,
        out=out,
        workers=count,
        scratch=scratch,
        select=plane,
        overwrite=overwrite,
        self_check=self_check,
        **options,
    )


def _auto_or_count(text: str, option: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{option} {text!r}: give auto or a number from 1")
    return int(text)


def _pixel_size(text: str | None) -> float | Literal["native"] | None:
    if text is None or text == "native":
        return text  # type: ignore[return-value]
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--pixel-size {text!r}: give a number, or native") from None


def _channels(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"--channels {text!r}: give indices from 0, such as 0,1,2")
    return tuple(map(int, parts))
