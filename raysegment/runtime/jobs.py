"""The commands `jobs list`, `status`, `logs` and `stop` as functions: ``raysegment.jobs.list()`` and so on.

Where `address` is None, RAY_ADDRESS says it. All raise UsageError when no dashboard answers there, when it asks for
another token, when there is no such job and, unless `allow_insecure`, when others could read along too.
"""

from __future__ import annotations

from raysegment.errors import JobError
from raysegment.runtime.dashboard import Jobs, JobState

__all__ = ["list", "logs", "status", "stop"]


def list(*, address: str | None = None, allow_insecure: bool = False) -> tuple[JobState, ...]:
    """All jobs that were submitted to the cluster, the newest first."""
    return tuple(Jobs.at(address, allow_insecure=allow_insecure).list())


def status(job: str, *, address: str | None = None, allow_insecure: bool = False) -> JobState:
    """How one job stands, and how it ended."""
    return Jobs.at(address, allow_insecure=allow_insecure).state(job)


def logs(job: str, *, address: str | None = None, allow_insecure: bool = False) -> str:
    """What one job has said until now."""
    return Jobs.at(address, allow_insecure=allow_insecure).log(job)


def stop(job: str, *, address: str | None = None, allow_insecure: bool = False) -> JobState:
    """Stop one job and wait until it has ended; the same command, submitted again, goes on where it stopped.

    Raises JobError for one that does not end.
    """
    state = Jobs.at(address, allow_insecure=allow_insecure).stop(job)
    if not state.has_ended:
        raise JobError(
            f"{job} was told to stop and is {state.status} still: see `raysegment jobs status {job}`", 1
        )
    return state
