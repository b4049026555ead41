"""Commands that are promised and not there yet: they show in `--help` and say so when they are called."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from raysegment.cli.common import app
from raysegment.errors import NotBuiltError

_PROMISED = {
    "convert": "make a pyramidal OME-Zarr of any image.",
}


def _promise(name: str, purpose: str) -> None:
    def refuse(words: Annotated[list[str] | None, typer.Argument(metavar="[ARGS]...")] = None) -> Any:
        from raysegment import __version__

        raise NotBuiltError(f"`raysegment {name}` is promised but not built in version {__version__}")

    # any option is accepted: the answer is the same, and clearer than "no such option"
    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command(name, help=f"Not built yet: {purpose}", context_settings=settings)(refuse)


for _name, _purpose in _PROMISED.items():
    _promise(_name, _purpose)
