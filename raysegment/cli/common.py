"""What every command shares: --json, --quiet, --verbose, --config, --show-config, errors to exit codes.

A command is a plain function: its parameters are its options, its answer a result object with
``summary()`` for people and ``to_json()`` for programs. :func:`command` adds the rest.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from raysegment import console
from raysegment.cli.config import load_config, shown
from raysegment.cli.remote import OPTIONS as REMOTE
from raysegment.cli.remote import Places, perform
from raysegment.cli.root import Root, guarded
from raysegment.errors import UsageError


class Result(Protocol):
    """What a command answers."""

    @property
    def exit_code(self) -> int: ...

    def summary(self) -> str: ...

    def to_json(self) -> dict[str, Any]: ...


#: An option of every command that opens images: one (y, x, channel) plane of those with further axes.
Select = Annotated[
    str | None, typer.Option(metavar="z=0,t=0", help="Which plane of an image with further axes.")
]


def selection(text: str | None) -> dict[str, int] | None:
    """What `--select` says: axis → index. Raises UsageError."""
    if text is None:
        return None
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(axis and sign and index.strip().isdecimal() for axis, sign, index in pairs):
        raise UsageError(f"--select {text!r}: give axis=index pairs, such as z=0,t=0")
    return {axis.strip(): int(index) for axis, _, index in pairs}


app = typer.Typer(
    name="raysegment",
    cls=Root,
    help="Train U-Nets on a Ray cluster and segment images too big for any one machine's memory.",
    # Plain help: importing rich would be most of the time that `raysegment --help` takes.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

_SHARED: dict[str, tuple[Any, Any]] = {
    "json_": (
        Annotated[bool, typer.Option("--json", help="One JSON object on stdout, all talk on stderr.")],
        False,
    ),
    "quiet": (Annotated[bool, typer.Option("--quiet", help="No talk, no progress.")], False),
    "verbose": (Annotated[bool, typer.Option("--verbose", help="More talk, tracebacks.")], False),
    "config": (
        Annotated[
            Path | None,
            typer.Option(
                "--config",
                metavar="FILE.toml",
                is_eager=True,
                callback=load_config,
                help="Values for these options; a flag beats the file.",
            ),
        ],
        None,
    ),
    "show_config": (
        Annotated[
            bool, typer.Option("--show-config", help="Print every value and where it came from; do nothing.")
        ],
        False,
    ),
}


def command(
    name: str,
    *,
    epilog: str | None = None,
    places: Places | None = None,
    group: typer.Typer = app,
    **typer_options: Any,
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Register a function as the command `name`, with the shared options.

    `epilog` holds examples and is shown line for line. With `places` the command can run elsewhere: --address.
    """
    shared_options = {**_SHARED, **(REMOTE if places is not None else {})}

    def register(function: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(ctx: typer.Context, **values: Any) -> None:
            shared = {key: values.pop(key) for key in shared_options}
            mode: console.Mode = "json" if shared["json_"] else "quiet" if shared["quiet"] else "human"
            console.configure(mode, verbose=shared["verbose"])
            raise typer.Exit(guarded(lambda: _perform(ctx, function, values, shared, places)))

        own = inspect.signature(function, eval_str=True).parameters.values()
        keyword_only = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
            *(p.replace(kind=keyword_only) for p in own),
            *(
                inspect.Parameter(key, keyword_only, annotation=kind, default=default)
                for key, (kind, default) in shared_options.items()
            ),
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        group.command(name, epilog=_as_written(epilog), **typer_options)(run)
        return run

    return register


def _perform(
    ctx: typer.Context,
    function: Callable[..., Any],
    values: dict[str, Any],
    shared: dict[str, Any],
    places: Places | None,
) -> int:
    if shared["show_config"]:
        console.result(*shown(ctx, values))
        return 0
    result: Result = function(**values) if places is None else perform(ctx, function, values, shared, places)
    console.result(result.summary(), result.to_json())
    return result.exit_code


def _as_written(text: str | None) -> str | None:
    """Mark every paragraph so that the help formatter does not wrap it."""
    if text is None:
        return None
    paragraphs = inspect.cleandoc(text.replace("\b\n", "")).split("\n\n")
    return "\n\n".join(f"\b\n{p}" for p in paragraphs)
