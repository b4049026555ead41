"""`schedule`: the files of one scheduler, checked whole before the first is written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from raysegment.errors import OutputExistsError, UsageError, WorkError
from raysegment.nightly.job import load_job
from raysegment.nightly.quantities import next_firing, parse_zone
from raysegment.scheduling.cron import cron
from raysegment.scheduling.kubernetes import kubernetes, ray_cron_job
from raysegment.scheduling.scheduler import Scheduler, Site, cron_of
from raysegment.scheduling.slurm import slurm
from raysegment.scheduling.systemd import systemd

On = Literal["cron", "systemd", "slurm", "kubernetes"]

_SCHEDULERS: dict[On, Scheduler] = {
    "cron": cron,
    "systemd": systemd,
    "slurm": slurm,
    "kubernetes": kubernetes,
}


@dataclass(frozen=True)
class ScheduleResult:
    """What was written; the keys of --json."""

    files: list[str]
    apply: list[str]
    """The commands that hand them to the scheduler."""
    next: str
    """When the job will run first, ISO 8601 in its time zone."""
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"files": self.files, "apply": self.apply, "next": self.next}

    def summary(self) -> str:
        return "\n".join(
            [
                *self.files,
                f"first run: {self.next}",
                "read them, then:",
                *(f"  {line}" for line in self.apply),
            ]
        )


def schedule(
    job: str | Path,
    *,
    on: On,
    out: str | Path | None = None,
    overwrite: bool = False,
    ray_cron_job_instead: bool = False,
) -> ScheduleResult:
    """Write the files that make a scheduler run `batch` at the times of a job file.

    Args:
        job: path of the JOB.toml.
        on: the scheduler.
        out: the folder to write into; by default ``NAME-ON``.
        overwrite: replace files that are there and differ.
        ray_cron_job_instead: on Kubernetes, a RayCronJob in place of the CronJob.

    Raises:
        UsageError: a job that the scheduler cannot run as it stands, or a folder without rights; nothing was written.
        OutputExistsError: a file is there and differs.
        WorkError: one cannot be written.
    """
    if on not in get_args(On):
        raise UsageError(f"on={on!r}: give one of {', '.join(get_args(On))}")
    if ray_cron_job_instead and on != "kubernetes":
        raise UsageError(f"--ray-cron-job with --on {on}: it is for Kubernetes alone")
    read = load_job(job)
    folder = Path(out) if out is not None else Path(f"{read.name}-{on}")
    render = ray_cron_job if ray_cron_job_instead else _SCHEDULERS[on]
    rendered = render(read, Site.here(Path(job), folder))
    texts = {folder / name: text for name, text in rendered.files.items()}
    if not overwrite:
        for path, text in texts.items():
            if path.exists() and path.read_bytes() != text.encode():
                raise OutputExistsError(
                    f"{path} is there and differs: pass --overwrite, or give another --out"
                )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"cannot make the folder {folder}: {e.strerror}: give another --out") from e
    for path, text in texts.items():
        _write(path, text)
    first = next_firing(cron_of(read), datetime.now(UTC).astimezone(parse_zone(read.schedule.timezone)))
    return ScheduleResult([str(path) for path in texts], list(rendered.apply), first.isoformat())


def _write(path: Path, text: str) -> None:
    """By temp file and rename. Raises UsageError where nothing may be written, WorkError."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temp.write_bytes(text.encode())
        os.replace(temp, path)
    except PermissionError as e:
        raise UsageError(f"cannot write into {path.parent}: {e.strerror}: give another --out") from e
    except OSError as e:
        temp.unlink(missing_ok=True)
        raise WorkError(f"cannot write {path}: {e.strerror}") from e
