"""The command line, assembled: importing a group registers its commands, in the order of `--help`."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

# isort: off
from raysegment.cli import train, infer, evaluate, batch, schedule, jobs  # noqa: F401
from raysegment.cli import look, export, synth, demo, doctor, promised  # noqa: F401

# isort: on
from raysegment import console
from raysegment.cli.common import app
from raysegment.cli.root import INTERRUPTED


def _version(wanted: bool) -> None:
    if wanted:
        from raysegment import __version__

        console.result(f"raysegment {__version__}", {"version": __version__})
        raise typer.Exit


@app.callback(
    invoke_without_command=True,
    epilog="\b\n"
    "  raysegment synth scene.tif --size 4096\n"
    "  raysegment train DATA --out run\n"
    "  raysegment infer scene.tif --model run/model.safetensors --out mask.zarr\n"
    "  raysegment evaluate mask.zarr scene.mask.tif\n"
    "\n"
    "`raysegment COMMAND --help` shows the options of one command.",
)
def root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        console.result(ctx.get_help(), {"error": "no command given", "exit_code": 2})
        raise typer.Exit(2)


def main() -> None:
    """What the installed script `raysegment` runs."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # as stderr has it: a file name need not be valid Unicode
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="raysegment")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            # A thread may still be inside Ray's C++, which would abort while Python takes itself down.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise
