"""`batch`: everything that is new or changed, through one pipeline; the ledger, the lock and the report around it."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from raysegment import console
from raysegment.console import counted
from raysegment.errors import RaysegmentError, StorageError, UsageError, WorkError
from raysegment.model.file import file_identity, load_spec
from raysegment.nightly.discovery import check_readable, discover
from raysegment.nightly.job import JobFile, load_job
from raysegment.nightly.ledger import Ledger
from raysegment.nightly.night import Night
from raysegment.nightly.quantities import parse_zone
from raysegment.nightly.record import record_of
from raysegment.nightly.result import BatchResult, StatusResult
from raysegment.nightly.todo import Todo, decide, recipe_of
from raysegment.nightly.webhook import notify
from raysegment.runtime import joined
from raysegment.runtime.connected import is_foreign
from raysegment.storage import Location, location
from raysegment.storage.objects import check_writable

#: Runs that `status` tells of.
_LAST = 14


@dataclass(frozen=True)
class Run:
    """What a run is, before it looks at any image."""

    job: JobFile
    model: str
    """Digest of the model."""
    began: datetime
    """In the job's time zone."""
    clock: float
    """When it began, by time.monotonic()."""
    id: str = field(
        default_factory=lambda: f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"
    )

    @classmethod
    def of(cls, path: str | Path) -> Run:
        """Of a job file. Raises UsageError, and InputError for a model that is not there."""
        clock, job = time.monotonic(), load_job(path)
        began, model = datetime.now(parse_zone(job.schedule.timezone)), job.place(job.model.path)
        load_spec(model)
        return cls(job, file_identity(model), began, clock)

    @property
    def wall_s(self) -> float:
        return time.monotonic() - self.clock

    @property
    def until(self) -> float | None:
        """Seconds since the epoch of the deadline."""
        deadline = self.job.schedule.deadline
        return self.began.timestamp() + deadline.total_seconds() if deadline is not None else None

    @property
    def reports(self) -> Location:
        """The folder of the report."""
        path, date = self.job.report.path, self.began.date().isoformat()
        if path is None:
            return location(f"{self.job.ledger_path}/reports/{date}")
        return location(self.job.place(path.replace("{date}", date)))


def batch(job: str | Path, *, retry: bool = False) -> BatchResult:
    """Run the batch job of a file: segment what is new or changed since the last run, and set aside what fails.

    The same call goes on where it was interrupted; with nothing to do it answers at once, without Ray.

    Args:
        job: path of the JOB.toml.
        retry: try the images again that were set aside before and are the same since.

    Raises:
        UsageError, InputError: before any work.
        WorkError: during it; LockedError while another run of this job is at work.
    """
    run = Run.of(job)
    ledger, todo = _look(run, retry)
    if not todo.work:
        return _idle(run, ledger, todo)
    from raysegment.storage.lease import hold

    check_readable(found for found, _ in todo.work)
    _check_place(run)
    with hold(ledger.lock) as lease:
        ledger, todo = _look(run, retry)  # the one that held it before may have done it all
        if not todo.work:
            return _idle(run, ledger, todo)
        night = Night(run.job.name, todo.work, ledger, lease)
        return _work(run, night, todo)


def status(job: str | Path) -> StatusResult:
    """The last runs of a job. Raises UsageError, InputError."""
    read = load_job(job)
    runs = Ledger.read(read.ledger_path).last_runs(_LAST)
    return StatusResult(read.name, [{k: v for k, v in r.items() if k != "images"} for r in runs])


def _look(run: Run, retry: bool) -> tuple[Ledger, Todo]:
    """What there is, against what was done."""
    job = run.job
    ledger = Ledger.read(job.ledger_path)
    todo = decide(job, discover(job), ledger, recipe_of(job, run.model), run.began, run.id, retry=retry)
    return ledger, todo


def _check_place(run: Run) -> None:
    """Raise UsageError for masks, a ledger or a report that cannot be written, before any work."""
    job = run.job
    for folder, table in (
        (location(job.output_folder), "[output] path"),
        (location(job.ledger_path), "[ledger] path"),
        (run.reports, "[report] path"),
    ):
        if isinstance(folder, Path):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as e:
                raise UsageError(f"{table}: cannot make {folder}: {e.strerror}") from e
        check_writable(folder, table)


def _work(run: Run, night: Night, todo: Todo) -> BatchResult:
    """Segment, in the lock; whatever happens is told."""
    said = f", {len(todo.set_aside)} set aside before" if todo.set_aside else ""
    console.say(f"{run.job.name}: {len(todo.work)} of {counted(todo.images, 'image')} to do{said}")
    for source in todo.forgotten:
        del night.ledger.images[source]
    for source, entry in todo.touched.items():
        night.ledger.images[source] = entry
    for found, claim in todo.work:
        night.ledger.images[found.source] = claim
    try:
        night.ledger.set(todo.work[0][0].source, todo.work[0][1])
        night.ledger.save()
        clock = _segment(run, night)
        night.check()
        device_wait = clock.wait(night.workers) if clock is not None else 0.0
        left = len(todo.work) - len(night.images)
    except BaseException as e:
        ended_by, code = _ending(e)
        if not night.lease.is_lost:  # otherwise ledger and report are another run's by now
            try:
                _tell(run, night.ledger, record_of(run, todo, night, ended_by, code, 0.0))
            except WorkError as also:
                console.warn(str(also))
        raise
    ended_by = "deadline" if left else "done"
    code = 3 if left or night.count("failed") or night.failed_regions else 0
    record = record_of(run, todo, night, ended_by, code, device_wait)
    report = _tell(run, night.ledger, record)
    return BatchResult(
        done=night.count("done"),
        skipped=todo.done + len(todo.set_aside),
        failed=night.count("failed"),
        images=todo.images,
        wall_s=run.wall_s,
        report=report,
        exit_code=code,
        text=_summary(record, report),
    )


@joined()
def _segment(run: Run, night: Night) -> Any:
    from raysegment.inference.job import Job
    from raysegment.inference.many import infer_many

    job, infer = run.job, run.job.infer
    request = infer.request
    if job.cluster.gpus and request.device == "auto" and is_foreign():  # maybe before the first node has come
        request = request.model_copy(update={"device": "cuda"})
    scratch = job.place(infer.scratch) if infer.scratch is not None else f"{job.ledger_path}/scratch"
    images = [(found.source, location(claim.output)) for found, claim in night.work]
    for folder in {out.parent for _, out in images if isinstance(out, Path)}:
        folder.mkdir(parents=True, exist_ok=True)
    return infer_many(
        images,
        Job.of_model(job.place(job.model.path), request),
        location(scratch),
        night,
        select=infer.select,
        workers=job.workers,
        until=run.until,
        self_check=infer.self_check,
    )


def _ending(error: BaseException) -> tuple[str, int]:
    """What is said of a run that an error ended, and its exit code."""
    if not isinstance(error, Exception):  # Ctrl-C, or SIGTERM, at which Ray exits in its own way
        return "interrupted", 130
    if isinstance(error, RaysegmentError):
        return " ".join(str(error).split()), error.exit_code
    return " ".join(f"{type(error).__name__}: {error}".split()), 1


def _tell(run: Run, ledger: Ledger, record: dict[str, Any]) -> str:
    """Write the ledger and the report, keep the record, call the webhook; the path of report.json.

    Each is done whatever becomes of the others. The page comes after what programs read, for its pictures take a
    while; a run that was stopped or failed, or is past its deadline, does without. Raises WorkError for the first that
    could not be written.
    """
    from raysegment.nightly.report import write_page, write_report

    def page() -> None:
        is_late = run.until is not None and time.time() >= run.until
        write_page(run.reports, record, has_time=record["ended_by"] == "done" and not is_late)

    unwritten = None
    try:
        for write in (
            ledger.save,
            lambda: write_report(run.reports, record),
            lambda: ledger.save_run(run.id, record),
            page,
        ):
            try:
                write()
            except (OSError, StorageError) as e:
                why = e if isinstance(e, StorageError) else f"{e.filename or run.reports}: {e.strerror or e}"
                unwritten = unwritten or WorkError(f"{why}: mend that; the masks that are finished stay")
                if record["exit_code"] in (0, 3):
                    record.update(ended_by=str(unwritten), exit_code=1)
    finally:  # also of who is stopped while it draws
        if run.job.report.webhook is not None:
            notify(run.job.report.webhook, {key: value for key, value in record.items() if key != "images"})
    if unwritten is not None:
        raise unwritten
    return str(record["report"])


def _idle(run: Run, ledger: Ledger, todo: Todo) -> BatchResult:
    """Nothing to do: no Ray, and no report over that of a run that did something."""
    before = run.reports / "report.json"
    last = ledger.last_runs(1)
    if before.exists():
        report: str | None = str(before)
    else:
        report = last[0].get("report") if last else None
    if not todo.images:
        text = f"nothing to do: no image matches {', '.join(run.job.input.paths)}"
    else:
        text = f"nothing to do: {todo.done} of {counted(todo.images, 'image')} done"
        if todo.set_aside:
            text += f", {len(todo.set_aside)} set aside (batch --retry tries them again)"
    return BatchResult(0, todo.images, 0, todo.images, run.wall_s, report, 0, f"{run.job.name}: {text}")


def _summary(record: dict[str, Any], report: str) -> str:
    counts, speed = record["counts"], record["throughput"]
    text = (
        f"{record['name']}: {counts['done']} done, {counts['skipped']} skipped, {counts['failed']} failed of "
        f"{counted(counts['images'], 'image')} in {record['wall_s']:.1f} s ({speed['megapixels_per_s']:.2f} MP/s)"
    )
    if counts["left"]:
        text += f"; {counts['left']} left at the deadline: the next run goes on with them"
    failed = [f"  {i['source']}: {i['reason']}" for i in record["images"] if i["state"] == "failed"]
    page = report.removesuffix("json") + "html"  # beside it, and what a person opens
    return "\n".join([text, *failed, f"{page}  (what happened)"])
