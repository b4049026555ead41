"""The root of the command line: however a command ends, it ends as one line and an exit code.

Typer draws a box around a usage error and knows nothing of --json; :class:`Root` catches what the parser
and the commands raise, so that the installed script and a test's ``CliRunner`` show the same.
"""

from __future__ import annotations

import difflib
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from raysegment import console
from raysegment.errors import RaysegmentError, UsageError

INTERRUPTED = 130

#: Base of everything the parser raises. Typer brings its own copy of Click under a name that moves between
#: versions, so the class is found among the bases of the one exception that Typer exports.
_ParserError: type[Any] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


class Root(TyperGroup):
    """The group of all commands."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Parse and run; exit with the command's code, or return it without `standalone_mode`."""
        words = list(sys.argv[1:] if args is None else args)
        speak_as(words)

        def work() -> int:
            parse_and_run = super(Root, self).main
            return parse_and_run(words, prog_name, complete_var, standalone_mode=False, **extra) or 0

        code = guarded(work)
        if standalone_mode:
            sys.exit(code)
        return code

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            near = difflib.get_close_matches(args[0], self.commands, n=1, cutoff=0)
            raise UsageError(f"no command {args[0]!r}; the nearest is {near[0]!r}; see `raysegment --help`")
        return super().resolve_command(ctx, args)


def speak_as(words: Sequence[str]) -> None:
    """Choose how to speak before anything is parsed: a usage error must respect --json too."""
    options = words[: words.index("--")] if "--" in words else words
    mode: console.Mode = "json" if "--json" in options else "quiet" if "--quiet" in options else "human"
    console.configure(mode, verbose="--verbose" in options)


def guarded(work: Callable[[], int]) -> int:
    """Run, and turn every way of failing into one line and its exit code."""
    trace = ""
    try:
        with _Terminable():
            return work()
    except KeyboardInterrupt:
        code, text = INTERRUPTED, "interrupted: run the same command again to finish the work"
    except typer.Exit:
        raise
    except typer.Abort:
        code, text = INTERRUPTED, "interrupted"
    except RaysegmentError as e:
        code, text, trace = e.exit_code, str(e), traceback.format_exc()
    except _ParserError as e:
        code, text = 2, _said(e)
    except Exception as e:
        code, text, trace = 1, f"{type(e).__name__}: {e} (--verbose shows where)", traceback.format_exc()
    console.fail(" ".join(text.split()), code, trace)
    return code


class _Terminable:
    """The first SIGTERM is treated as Ctrl-C inside; a no-op outside the main thread, where signals do not arrive."""

    def __enter__(self) -> None:
        self._previous: Any = None
        try:
            self._previous = signal.signal(signal.SIGTERM, _interrupt)
        except ValueError:
            console.detail("not in the main thread: SIGTERM keeps its meaning")

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
        # ray.init() puts its own handler over ours: it exits with the signal's number
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM:
            raise KeyboardInterrupt from error


def _interrupt(signum: int, frame: FrameType | None) -> None:
    # `timeout` sends it twice, and what is to be told of the end must be told
    signal.signal(signum, signal.SIG_IGN)
    raise KeyboardInterrupt


def _said(error: Any) -> str:
    """The parser's words: "Invalid value for '--tile': …; see `raysegment infer --help`"."""
    text = str(error.format_message()).replace("Value error, ", "").strip().rstrip(".")
    ctx = getattr(error, "ctx", None)
    return f"{text[:1].lower()}{text[1:]}; see `{ctx.command_path} --help`" if ctx is not None else text
