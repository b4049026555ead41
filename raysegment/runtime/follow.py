"""A job's log to its end, through lost connections, and what the job answered."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from typing import Any

from raysegment import console
from raysegment.runtime.dashboard import Jobs, JobState, Unreachable

#: How long a cluster may be away before the job is given up for lost.
AWAY_S = 60.0
#: How long one connection is believed; one whose other end vanished would wait for ever.
_TAIL_S = 300.0
#: How long a job may take to begin before that is said.
_PATIENCE_S = 15.0
#: What Ray itself writes into every job's log.
_RAY_S = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\s+INFO |Running entrypoint for job ")


class Log:
    """A job's output as it arrives; the lines that may be its answer are kept for the end.

    The answer is the last line: one JSON object, or "error: …", which a shell's own words may follow.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._rest = ""
        self._held: list[str] = []
        self.seen = 0
        """Characters taken so far."""
        self.answer: dict[str, Any] | None = None
        self.error: str | None = None

    def take(self, text: str) -> None:
        """More of the log."""
        self.seen += len(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(line.rstrip("\r"))

    def end(self) -> None:
        """Nothing more comes."""
        if self._rest:
            self._line(self._rest)
        for line in self._held:
            if line.startswith("error: "):
                self.error = line.removeprefix("error: ")
            elif (answer := _object(line)) is not None:
                self.answer = answer
            else:
                self._show(line)

    def _line(self, line: str) -> None:
        if _RAY_S.match(line) and not console.is_verbose():
            return
        if line.startswith(("error: ", "{")):
            self._held.append(line)
            return
        for held in self._held:
            self._show(held)
        self._held.clear()
        self._show(line)


def follow(jobs: Jobs, job: str, show: Callable[[str], None]) -> tuple[JobState, Log]:
    """Show the job's log until it ends. Raises Unreachable when the cluster stays away."""
    log = Log(show)
    lost: float | None = None
    began, is_waiting = time.monotonic(), False
    while True:
        try:
            state = jobs.state(job)
            lost = None
            if state.has_ended:
                log.take(jobs.log(job)[log.seen :])
                log.end()
                return state, log
            if state.status == "RUNNING":
                asyncio.run(_tail(jobs, job, log))
            elif not is_waiting and time.monotonic() - began > _PATIENCE_S:
                is_waiting = True
                console.say(f"{job} has not begun: {state.message}")
        except Unreachable as e:
            if lost is None:
                lost = time.monotonic()
                console.say(f"{e}; trying again for {AWAY_S:.0f} s")
            elif time.monotonic() - lost > AWAY_S:
                raise Unreachable(
                    f"{e}: the job {job} may go on there, or have ended with its cluster: the same command follows it"
                ) from e
        time.sleep(0.5)


async def _tail(jobs: Jobs, job: str, log: Log) -> None:
    """Take what comes until the connection ends, in whatever way: the job's state decides what that means."""
    import aiohttp

    skip = log.seen  # every connection begins at the beginning
    try:
        async with asyncio.timeout(_TAIL_S):
            async for text in jobs.tail(job):
                log.take(text[skip:])
                skip = max(0, skip - len(text))
    except (aiohttp.ClientError, OSError, RuntimeError) as e:
        console.detail(f"the log's connection ended ({e}); going on")


def _object(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
