"""The folder of a run, on a disk or at a URL: what is in it, who may write it, and how far the run is.

RUN/model.safetensors   the best model so far
RUN/report.html         what happened, for people: one file that opens offline
RUN/metrics.jsonl       one line per epoch
RUN/events/             the same for TensorBoard (events.py)
RUN/config.toml         the resolved options; `raysegment train --config` takes it
RUN/run.json            fingerprint, data, versions, hardware and, once finished, the result
RUN/last/state.pt       all that an exact resume needs
RUN/checkpoints/        with --keep: the same of the ends of the last epochs, step-00000120.pt
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysegment.errors import InputError, OutputExistsError, StorageError, WorkError
from raysegment.storage import Location, Url, file_lock
from raysegment.storage.lease import hold
from raysegment.storage.objects import put, remove

if TYPE_CHECKING:
    from raysegment.training.settings import Settings

_FORMAT = 1
#: What of an epoch's line in metrics.jsonl those who plot runs are told, whatever the classes.
SCALARS = ("loss", "lr", "images_per_s", "mean_iou", "mean_dice", "accuracy")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run."""

    root: Location
    launch: str = ""
    """Which start of it this is, where it is to be told from others: what one of them waits for may come late."""

    @property
    def model(self) -> Location:
        return self.root / "model.safetensors"

    @property
    def metrics(self) -> Location:
        return self.root / "metrics.jsonl"

    @property
    def report(self) -> Location:
        return self.root / "report.html"

    @property
    def exhibits(self) -> Location:
        """Pictures of validation windows, for the report."""
        return self.root / "last" / "exhibits.json"

    @property
    def tracking(self) -> Location:
        """Which run of an MLflow server this one is."""
        return self.root / "last" / "mlflow.json"

    @property
    def events(self) -> Location:
        return self.root / "events"

    @property
    def config(self) -> Location:
        return self.root / "config.toml"

    @property
    def record(self) -> Location:
        return self.root / "run.json"

    @property
    def state(self) -> Location:
        return self.root / "last" / "state.pt"

    @property
    def checkpoints(self) -> Location:
        return self.root / "checkpoints"

    @property
    def progress(self) -> Location:
        """Where the first worker says how far it is."""
        return self.root / "last" / "progress.json"

    @property
    def failure(self) -> Location:
        """Where a worker says why it cannot go on, so that it is not tried again."""
        return self.root / "last" / "failure.json"

    @property
    def class_index(self) -> Location:
        """Where the rarer classes are in the training masks. Of these alone, so another run here may use it."""
        return self.root / "last" / "class_index.safetensors"

    @property
    def stop(self) -> Location:
        """Where the driver says that it was interrupted: the workers of that launch write a checkpoint and end."""
        return self.root / "last" / f"stop{self.launch}"

    @property
    def ray(self) -> Location:
        """Ray Train's own files; gone when the run ends."""
        return self.root / "last" / "ray"

    def read_record(self) -> dict[str, Any] | None:
        """run.json, or None when no run was started here. Raises InputError when it cannot be read."""
        if not self.record.is_file():
            return None
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise InputError(f"cannot read {self.record}: {e}") from e
        if not isinstance(record, dict) or record.get("format") != _FORMAT:
            raise InputError(f"{self.record} was not written by this version: name another --out")
        return record

    def write_record(self, record: dict[str, Any]) -> None:
        write_json(self.record, {"format": _FORMAT, **record})

    def clear(self) -> None:
        """Remove what a run writes, and nothing else; first its record, so that half of it passes for no run."""
        for path in (self.record, self.model, self.report, self.metrics, self.config):
            remove(path)
        for path in (self.state, self.progress, self.failure, self.exhibits, self.tracking):
            remove(path)
        for folder in (self.events, self.ray, self.checkpoints):
            remove(folder)

    @contextlib.contextmanager
    def locked(self) -> Iterator[Callable[[], None]]:
        """Keep other runs out while this one is alive. Raises LockedError, and InputError when RUN cannot be made.

        What it yields raises WorkError when another run took over, as can be at a URL that was out of reach.
        """
        if isinstance(self.root, Url):
            with hold(self.root / "last" / "lock") as lease:
                yield lease.check
            return
        lock = self.root / "last" / "lock"
        made = [folder for folder in lock.parents if not folder.exists()]
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(file_lock.locked(lock))
            except OSError as e:
                raise InputError(f"cannot write to --out {self.root}: {e.strerror}") from e
            try:
                yield lambda: None
            finally:
                if lock.exists() and not self.record.exists():  # refused: as if it had never been asked for
                    lock.unlink()
                    _remove_empty(made)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove those of the folders, each in the next, that hold nothing else."""
    for folder in folders:
        if any(folder.iterdir()):
            return
        folder.rmdir()


def earlier_run(
    run: RunFolder, fingerprint: str, *, resume: bool, overwrite: bool, settings: Settings | None = None
) -> dict[str, Any] | None:
    """The record of the run to go on with, or None where a new one may start. Touches nothing.

    `settings`: those that are asked for, to say what differs.

    Raises OutputExistsError when something else is there, and InputError when --resume finds nothing.
    """
    if run.root.exists() and not run.root.is_dir():
        raise OutputExistsError(f"--out {run.root} is a file: name a folder")
    record = run.read_record()
    if record is not None and record["fingerprint"] == fingerprint:
        return record
    held = "no run" if record is None else f"a run with {_difference(record, settings)}"
    if resume:
        raise InputError(
            f"--resume: {run.root} holds {held}: give the folder, data and options of the run to go on with"
        )
    if not overwrite and run.root.exists() and any(p.name != "last" for p in run.root.iterdir()):
        held = held if record is not None else "other files"
        raise OutputExistsError(f"{run.root} exists and holds {held}: pass --overwrite or name another --out")
    return None


def _difference(record: dict[str, Any], settings: Settings | None) -> str:
    """What the earlier run has other than what is asked for; options that were left open are not compared."""
    asked = {} if settings is None else settings.model_dump()
    for name, value in asked.items():
        was = record["settings"].get(name)
        if value not in (None, "auto") and value != was:
            return f"another --{name.replace('_', '-')} ({was}, asked for {value})"
    return "other data or options"


def write_json(path: Location, data: dict[str, Any], *, survives: bool = True) -> None:
    """As :func:`raysegment.storage.objects.put` does. Raises WorkError."""
    try:
        put(path, json.dumps(data, ensure_ascii=False, indent=1).encode(), survives=survives)
    except StorageError:
        raise
    except OSError as e:
        raise WorkError(f"cannot write {path}: {e.strerror}") from e


def to_toml(values: dict[str, Any]) -> str:
    """Options as a file for --config; options that are None are left out."""
    lines = [
        f"{key.replace('_', '-')} = {json.dumps(value)}" for key, value in values.items() if value is not None
    ]
    return "\n".join([f"# {time.strftime('%Y-%m-%d')}: what `raysegment train` used", *lines, ""])
