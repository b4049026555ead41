"""What every scheduler is given and gives back."""

from __future__ import annotations

import functools
import getpass
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raysegment.errors import UsageError
from raysegment.nightly.job import JobFile

#: A run ends itself at its deadline, when the blocks in hand are done. A scheduler that ends it waits so much longer.
GRACE = timedelta(minutes=15)


@dataclass(frozen=True)
class Site:
    """Where the rendered files will be at home."""

    job_file: Path
    """The JOB.toml, absolute."""
    folder: Path
    """Where the rendered files lie and the logs go, absolute; on Slurm, shared by all nodes."""
    python: str
    """The interpreter that has raysegment."""
    user: str
    """Who runs it."""
    timezone: str
    """Of the machine's own clock, which cron and Slurm go by."""
    ray_version: str

    def __post_init__(self) -> None:
        for path in (str(self.job_file), str(self.folder), self.python):
            if not path.isprintable():
                raise UsageError(f"{path!r} holds a character that no scheduler takes: name it otherwise")

    @classmethod
    def here(cls, job_file: Path, folder: Path) -> Site:
        """This machine, this user, this Python."""
        user, python = getpass.getuser(), sys.executable
        return cls(job_file.absolute(), folder.absolute(), python, user, local_timezone(), version("ray"))


@dataclass(frozen=True)
class Rendered:
    """What a scheduler's files are, before they are written."""

    files: dict[str, str]
    """Text by file name."""
    apply: tuple[str, ...]
    """The commands that hand them to the scheduler, in their order."""


#: A scheduler: what it makes of a job. Raises UsageError for what it cannot do.
Scheduler = Callable[[JobFile, Site], Rendered]


def local_timezone() -> str:
    """The name of this machine's time zone, "UTC" where it has none."""
    name = Path("/etc/localtime").resolve().as_posix().partition("/zoneinfo/")[2]
    return name.removeprefix("posix/") or "UTC"


def cron_of(job: JobFile) -> str:
    """The job's cron line. Raises UsageError where it has none."""
    if job.schedule.cron is None:
        raise UsageError('[schedule] cron is missing: give it, such as cron = "0 2 * * *"')
    return " ".join(job.schedule.cron.split())


def longest(job: JobFile) -> int | None:
    """Seconds after which a scheduler may end a run by force."""
    deadline = job.schedule.deadline
    return int((deadline + GRACE).total_seconds()) if deadline is not None else None


def render(template: str, job: JobFile, site: Site, **values: Any) -> str:
    """The file that `template` of templates/ makes of a job and `values`. A value that it lacks is an error."""
    when = f"'{cron_of(job)}' {job.schedule.timezone}"
    text: str = _environment().get_template(template).render(job=job, site=site, when=when, **values)
    return text


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("raysegment.scheduling"),
        undefined=StrictUndefined,
        autoescape=False,  # no HTML: each value is quoted by its own format's filter
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["sh"] = lambda value: shlex.quote(str(value))
    environment.filters["yaml"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment
