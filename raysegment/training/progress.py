"""Shows in the driver how far the workers are: what the first of them writes to RUN/last/progress.json."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from raysegment import console
from raysegment.storage import Location, Url
from raysegment.storage.objects import remove
from raysegment.training.loop import Job

_POLL_S, _POLL_AFAR_S = 0.5, 2.0
_LACK_EVERY_S = 10.0


def follow(
    ended: threading.Event, job: Job, lack: Callable[[], str | None], check: Callable[[], None]
) -> None:
    """Show progress until the training has `ended`, and what it waits for, by `lack`. Raises what `check` raises."""
    s, path = job.settings, job.run.progress
    poll_s = _POLL_AFAR_S if isinstance(path, Url) else _POLL_S
    remove(path)
    waits = _Waits(lack)
    said: dict[str, Any] | None = None
    while said is None and not ended.wait(poll_s):
        check()
        waits.say()
        said = _read(path)
    if said is None:
        return
    start = shown = said["step"]
    with console.progress("train", (s.total_steps - start) * s.batch_size, "images") as bar:
        while not ended.wait(poll_s):
            check()
            waits.say()
            said = _read(path) or said
            best = f"  best {s.metric} {said['best']:.4f}" if said["best"] is not None else ""
            note = f"epoch {said['epoch']}/{s.epochs}  loss {said['loss']:.4f}{best}"
            if said["step"] > shown:  # after a worker's death it falls back to the last checkpoint
                bar.advance((said["step"] - shown) * s.batch_size, note)
                shown = said["step"]


class _Waits:
    """Says what is waited for: once, until it changes."""

    def __init__(self, lack: Callable[[], str | None]) -> None:
        self._lack = lack
        self._said: str | None = None
        self._last = time.monotonic()

    def say(self) -> None:
        if time.monotonic() - self._last < _LACK_EVERY_S:
            return
        self._last = time.monotonic()
        lack = self._lack()
        if lack is not None and lack != self._said:
            console.warn(lack)
        self._said = lack


def _read(path: Location) -> dict[str, Any] | None:
    """The last that was said, or None before anything was."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
