"""`raysegment evaluate`: how good a mask is."""

from __future__ import annotations

from typing import Annotated

import typer

from raysegment.cli.common import Places, Result, Select, command, selection


@command(
    "evaluate",
    places=Places(carried=("classes",), read=("prediction", "truth"), uses_ray=False),
    epilog="""
    Examples:
      raysegment evaluate mask.zarr truth.tif
      raysegment evaluate mask.zarr truth.png --classes classes.toml --json

    classes.toml:
      ignore = [254]
      [[class]]
      name = "water"
      value = 1            # or values = [1, 7], or colour = "#808000"
      [[class]]
      name = "land"
      value = 2
    """,
)
def evaluate(
    prediction: Annotated[str, typer.Argument(help="The mask to judge.")],
    truth: Annotated[
        str, typer.Argument(help="The mask to judge it by: of the same size, or of the whole image.")
    ],
    classes: Annotated[
        str | None,
        typer.Option(metavar="FILE.toml", help="Which value or colour of the truth is which class."),
    ] = None,
    select: Select = None,
) -> Result:
    """Score a mask against the truth, per class and over all.

    IoU, Dice, precision, recall and the confusion matrix, from pixels counted over the whole image, block by
    block. Truth without a class is left out; a pixel that has truth but no prediction counts as wrong. A mask that
    was made at another resolution is compared at the truth's.
    """
    from raysegment.evaluation import evaluate as run

    return run(prediction, truth, classes=classes, select=selection(select))
