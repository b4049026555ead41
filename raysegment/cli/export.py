"""`raysegment export`: a model for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from raysegment.cli.common import Result, command


@command(
    "export",
    epilog="""
    Examples:
      raysegment export run/model.safetensors --to onnx --out model.onnx
      raysegment export run/model.safetensors --to pt2 --out model.pt2
    """,
)
def export(
    model: Annotated[str, typer.Argument(help="The model.")],
    to: Annotated[Literal["onnx", "pt2"], typer.Option("--to", help="The format.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write it; FILE.toml goes beside it.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
) -> Result:
    """Write a model as ONNX or .pt2 (torch.export), and prove that it answers like the original.

    The sidecar that `infer` reads it with is written beside it. When a probability differs by more than 0.0001,
    nothing is kept.
    """
    from raysegment.model.export import export as run

    return run(model, to=to, out=out, overwrite=overwrite)
