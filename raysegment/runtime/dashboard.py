"""The Ray Jobs of a cluster, over http."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from raysegment import __version__
from raysegment.errors import RaysegmentError, UsageError, WorkError
from raysegment.runtime.address import Address, reach, undisturbed, where
from raysegment.runtime.security import exposure, find_token, refuse_exposure, use_token

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_OURS = (0, 1, 2, 3, 130)
"""Exit codes that mean something; any other is a death."""
#: How long a cluster that has just been started may take until it can start a job.
_AGENT_S = 60.0
#: How long a job may take to end once it was told to; then Ray kills it.
_STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class JobState:
    """One job, as the cluster sees it now."""

    id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED"""
    exit_code: int | None
    """As `raysegment` would have answered here; None before the end."""
    message: str
    command: str
    started: float | None
    """Seconds since the epoch."""
    ended: float | None

    @classmethod
    def of(cls, details: JobDetails) -> JobState:
        status = str(details.status.value)
        code = {"SUCCEEDED": 0, "STOPPED": 130, "FAILED": 1}.get(status)
        if status == "FAILED" and details.driver_exit_code in _OURS[1:]:
            code = details.driver_exit_code
        return cls(
            id=details.submission_id or details.job_id or "",
            status=status,
            exit_code=code,
            message=" ".join((details.message or "").split()),
            command=details.entrypoint or "",
            started=details.start_time / 1000 if details.start_time else None,
            ended=details.end_time / 1000 if details.end_time else None,
        )

    @property
    def has_ended(self) -> bool:
        return self.status in _ENDED

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "status": self.status,
            "job_exit_code": self.exit_code,
            "message": self.message,
            "command": self.command,
            "started": self.started,
            "ended": self.ended,
        }


class Jobs:
    """The jobs at one address; every failure of the way there is one clear line.

    Raises UsageError when nothing answers there, when the token is wrong, and, unless `allow_insecure`, when others
    could read or send jobs (`sends_code`) too.
    """

    def __init__(self, address: Address, *, allow_insecure: bool = False, sends_code: bool = False) -> None:
        if address.kind != "jobs":
            seen = address if address.kind == "cluster" else "no --address"
            raise UsageError(f"{seen}: jobs are kept by the dashboard: give --address http://HOST:8265")
        self.address, self.token = address, find_token()
        reach(address)
        refuse_exposure(address, exposure(address), is_allowed=allow_insecure, sends_code=sends_code)
        use_token()
        with undisturbed(), self._mapped():
            from ray.job_submission import JobSubmissionClient

            for name in ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
                logging.getLogger(name).setLevel(logging.ERROR)
            headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
            self._client = JobSubmissionClient(address.text, headers=headers)

    @classmethod
    def at(cls, address: str | None, *, allow_insecure: bool = False) -> Self:
        """Those at an address as one says it; None: RAY_ADDRESS."""
        return cls(where(address), allow_insecure=allow_insecure)

    def list(self) -> list[JobState]:
        """All submitted ones, the newest first; not the drivers that others connected by themselves."""
        with self._mapped():
            found = [JobState.of(job) for job in self._client.list_jobs() if job.submission_id]
        return sorted(found, key=lambda job: job.started or time.time(), reverse=True)

    def state(self, job: str) -> JobState:
        with self._mapped(job):
            return JobState.of(self._client.get_job_info(job))

    def log(self, job: str) -> str:
        with self._mapped(job):
            return str(self._client.get_job_logs(job))

    def tail(self, job: str) -> AsyncIterator[str]:
        """The log from its beginning, as it grows; foreign errors come through."""
        return self._client.tail_job_logs(job)

    def stop(self, job: str) -> JobState:
        """Stop it and wait for that; one that has ended stays as it is."""
        state = self.state(job)
        if state.has_ended:
            return state
        with self._mapped(job):
            self._client.stop_job(job)
        until = time.monotonic() + _STOP_S
        while not (state := self.state(job)).has_ended and time.monotonic() < until:
            time.sleep(0.3)
        return state

    def submit(self, job: str, command: str, environment: Mapping[str, Any]) -> None:
        """Start the shell line `command` in the runtime environment. Raises KeyError when the id is taken."""
        until = time.monotonic() + _AGENT_S
        while True:
            with self._mapped():
                try:
                    self._client.submit_job(
                        entrypoint=command,
                        submission_id=job,
                        runtime_env=dict(environment),
                        metadata={"raysegment": __version__},
                    )
                    return
                except RuntimeError as e:
                    if "already exists" in str(e):
                        raise KeyError(job) from e
                    if "No available agent" not in str(e) or time.monotonic() > until:
                        raise
            time.sleep(1)

    @contextlib.contextmanager
    def _mapped(self, job: str | None = None) -> Iterator[None]:
        import ray.exceptions
        import requests

        try:
            yield
        except (RaysegmentError, KeyError):
            raise
        except ray.exceptions.AuthenticationError as e:
            what = "refuses this token" if self.token else "asks for a token, and there is none"
            raise UsageError(
                f"{self.address} {what}: put the cluster's into RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
            ) from e
        except (requests.exceptions.RequestException, ConnectionError) as e:
            raise Unreachable(f"{self.address} does not answer any more ({type(e).__name__})") from e
        except RuntimeError as e:
            text = str(e)
            if job is not None and ("status code 404" in text or "does not exist" in text):
                raise UsageError(
                    f"no job {job!r} at {self.address.text}: `raysegment jobs list` shows them"
                ) from e
            raise WorkError(f"{self.address}: {text.strip().splitlines()[0]}") from e


class Unreachable(WorkError):
    """The cluster went away; a job on it may go on."""
