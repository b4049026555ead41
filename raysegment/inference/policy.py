"""How a run takes failures, and when it ends."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """By default the first failure ends the run, and only the work's own end does besides."""

    tries: int = 1
    """How often a worker tries a block, opening its image anew each time."""
    set_aside: bool = False
    """Whether an image that fails is set aside, and the others go on. (A place that cannot be written to ends the run
    all the same: it is no image's fault.)"""
    until: float | None = None
    """Seconds since the epoch: from then on no further block is taken in hand."""
