"""A command as a Ray Job: the same one runs once, whoever submits it again follows it."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Sequence

from raysegment import console
from raysegment.runtime.dashboard import Jobs, JobState
from raysegment.runtime.parcel import Parcel
from raysegment.runtime.security import refuse_secrets


def submit(jobs: Jobs, command: str, words: Sequence[str], parcel: Parcel) -> str:
    """Have `python -m raysegment COMMAND WORDS…` run on the cluster; its id.

    The id follows from the words and the files that travel. One that runs already is not submitted again; one that has
    ended gets a number. Raises UsageError, before anything is sent, for a word that holds a secret.
    """
    refuse_secrets(words)
    said = "\0".join([command, *(word for word in words if word not in console.MODES), parcel.digest()])
    name = f"raysegment-{command}-{hashlib.sha256(said.encode()).hexdigest()[:10]}"
    # the head's `python` is its image's business; on this machine it may be any
    python = sys.executable if parcel.is_here else "python"
    entry = shlex.join([python, "-m", "raysegment", command, *words])
    while True:
        attempts = [job for job in jobs.list() if job.id == name or _attempt(job.id, name)]
        running = next((job for job in attempts if not job.has_ended), None)
        if running is not None:
            console.say(f"{running.id} runs already: following it")
            return running.id
        new = _next(name, attempts)
        try:
            with parcel.packed() as environment:
                jobs.submit(new, entry, environment)
        except KeyError:  # somebody was faster
            continue
        console.say(f"submitted {new} to {jobs.address.text}")
        return new


def _attempt(job: str, name: str) -> int:
    """Which attempt at `name` the id is; 0: none."""
    head, _, number = job.rpartition("-")
    return int(number) if head == name and number.isdecimal() else 0


def _next(name: str, attempts: Sequence[JobState]) -> str:
    if not attempts:
        return name
    return f"{name}-{max(max(_attempt(job.id, name), 1) for job in attempts) + 1}"
