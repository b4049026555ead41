"""The one place that prints.

Results go to stdout; talk (notes, warnings, progress) goes to stderr. The library is silent, but for Python's own
warnings, until the command line calls :func:`configure`. Three ways to speak, decided once: to people, as one JSON
object, quietly.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TextIO

from raysegment.errors import RaysegmentWarning

if TYPE_CHECKING:
    from collections.abc import Iterator

Mode = Literal["silent", "human", "json", "quiet"]

#: The options that say how to speak.
MODES = ("--json", "--quiet", "--verbose")
#: Seconds between two progress lines where there is no terminal.
LINE_EVERY_S = 10.0


@dataclass
class _Settings:
    mode: Mode = "silent"
    verbose: bool = False
    listener: list[str] | None = None
    """See :func:`overheard`."""


_settings = _Settings()


def configure(mode: Mode, *, verbose: bool = False) -> None:
    """Decide once how this process speaks."""
    _settings.mode = mode
    _settings.verbose = verbose


def is_verbose() -> bool:
    return _settings.verbose


def say(text: str) -> None:
    """A note to a person, on stderr."""
    if _settings.mode in ("human", "json"):
        _tell(text, sys.stderr)


def detail(text: str) -> None:
    """A note for those who asked for --verbose."""
    if _settings.verbose:
        say(text)


def warn(text: str) -> None:
    """Something a person should know even under --quiet; from Python a RaysegmentWarning."""
    if _settings.listener is not None:
        _settings.listener.append(text)
    if _settings.mode != "silent":
        _tell(f"warning: {text}", sys.stderr)
    else:
        warnings.warn(text, RaysegmentWarning, stacklevel=2)


@contextlib.contextmanager
def overheard() -> Iterator[list[str]]:
    """The warnings given within, to be told again where the outcome is read."""
    said: list[str] = []
    _settings.listener = said
    try:
        yield said
    finally:
        _settings.listener = None


def relay(line: str) -> None:
    """A line of a job that runs elsewhere: on stdout, where its log is the result; talk beside --json."""
    if _settings.mode != "silent":
        _tell(line, sys.stderr if _settings.mode == "json" else sys.stdout)


def result(text: str, data: dict[str, Any]) -> None:
    """The outcome of a command: `text` for people, or `data` as one JSON line, on stdout."""
    if _settings.mode == "json":
        _tell(json.dumps(data, ensure_ascii=False), sys.stdout)
    elif _settings.mode != "silent" and text:
        _tell(text, sys.stdout)


def fail(text: str, exit_code: int, trace: str = "") -> None:
    """The one line that says what went wrong; under --verbose also the traceback `trace`."""
    if trace and _settings.verbose:
        _tell(trace, sys.stderr)
    _tell(f"error: {text}", sys.stderr)
    if _settings.mode == "json":
        with contextlib.suppress(OSError):
            _tell(json.dumps({"error": text, "exit_code": exit_code}, ensure_ascii=False), sys.stdout)


def _tell(text: str, stream: TextIO) -> None:
    """Print a line. Where its reader has left (`| head`, a `| tee` that Ctrl-C ended), the work goes on unheard.

    Talk that cannot be written (to a log on a full disk) ends no work either; a result that cannot is an OSError.
    """
    try:
        print(text, file=stream, flush=True)
    except OSError as e:
        if not isinstance(e, BrokenPipeError) and stream is sys.stdout:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        # what is still in the buffer goes there, too
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class Progress:
    """Work done so far, its rate and the time left; drawn by :func:`progress`."""

    def __init__(self, label: str, total: float, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0.0
        self.note = ""
        self._start = time.monotonic()

    def advance(self, amount: float = 1.0, note: str | None = None) -> None:
        """`amount` more is done; `note` replaces the free text at the end of the line."""
        self.done += amount
        if note is not None:
            self.note = note
        self._draw()

    def line(self) -> str:
        """ "segment  12/40 blocks  30%  5.1 blocks/s  0:00:05 left"."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        rate = self.done / elapsed
        parts = [self.label, f"{self.done:.6g}/{self.total:.6g} {self.unit}"]
        if self.total:
            parts.append(f"{100 * self.done / self.total:.0f}%")
        parts.append(f"{rate:.3g} {self.unit}/s")
        if self.done:
            parts.append(f"{_clock((self.total - self.done) / rate)} left")
        if self.note:
            parts.append(self.note)
        return "  ".join(parts)

    def _draw(self) -> None:
        """Silent: overridden where someone looks."""


class _Lines(Progress):
    """One plain line every LINE_EVERY_S."""

    _last = 0.0

    def _draw(self) -> None:
        now = time.monotonic()
        if now - max(self._last, self._start) >= LINE_EVERY_S:
            self._last = now
            _tell(self.line(), sys.stderr)


class _Bar(Progress):
    """A live bar on a terminal."""

    def __init__(self, label: str, total: float, unit: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        super().__init__(label, total, unit)
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.6g}/{task.total:.6g} {task.fields[unit]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task(label, total=total, unit=unit, rate="", note="")

    def _draw(self) -> None:
        rate = self.done / max(time.monotonic() - self._start, 1e-9)
        self.bar.update(self.task, completed=self.done, rate=f"{rate:.3g} {self.unit}/s", note=self.note)


@contextlib.contextmanager
def progress(label: str, total: float, unit: str) -> Iterator[Progress]:
    """Show a long job's progress, rate and time left: a bar on a terminal, else a line every 10 s."""
    if _settings.mode not in ("human", "json"):
        yield Progress(label, total, unit)
    elif sys.stderr.isatty():
        bar = _Bar(label, total, unit)
        with bar.bar:
            yield bar
    else:
        yield _Lines(label, total, unit)


def counted(n: int, noun: str) -> str:
    """ "1 block", "2 blocks", "0 classes"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}{'es' if noun.endswith('s') else 's'}"


def _clock(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    h, m = divmod(minutes, 60)
    return f"{h}:{m:02}:{s:02}"
