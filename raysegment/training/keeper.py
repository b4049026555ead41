"""What the first worker writes while it trains: checkpoints, scores, the best model, pictures, the report, progress.

Every other worker's keeper does nothing. A file that cannot be written does not end the worker on the spot,
its peers would wait for it: the error is kept in `trouble`, and said where all workers meet next.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Self

import torch

from raysegment.errors import RaysegmentError, WorkError
from raysegment.model.file import save_model
from raysegment.storage import Url
from raysegment.storage.objects import children, put, remove
from raysegment.training.exhibits import Shown, draw
from raysegment.training.report import write_report
from raysegment.training.run import SCALARS, RunFolder, write_json

if TYPE_CHECKING:
    from raysegment.model.spec import ModelSpec
    from raysegment.training.events import Events
    from raysegment.training.validate import Validator

#: Work that a death may cost, unless writing a checkpoint would then take more than this share of the time.
_CHECKPOINT_EVERY_S = 10.0
_CHECKPOINT_SHARE = 0.01
_PROGRESS_EVERY_S = 0.5
#: At a URL, where saying it takes two requests.
_PROGRESS_AFAR_EVERY_S = 5.0
#: How often all workers ask together whether a node is about to leave.
_LOOK_EVERY_S = 5.0


class Keeper:
    """Writes a run's files, if this worker leads."""

    def __init__(self, run: RunFolder, *, leads: bool) -> None:
        self.run, self.leads = run, leads
        self.trouble: RaysegmentError | None = None
        self._events: Events | None = None
        self.is_stopped = False
        """Whether the driver wants the run to stop."""
        self._last_checkpoint = self._last_look = time.monotonic()
        self._checkpoint_s = 0.0
        self._last_progress = 0.0

    def opened(self, step: int) -> Self:
        """Start to write events from `step` on; those of an earlier attempt beyond it are dropped."""
        if self.leads:
            from raysegment.training.events import Events

            self._events = Events(self.run.events, step)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            self._events.close()

    def progress(self, said: Mapping[str, Any]) -> None:
        """Now and then: say how far the run is, and hear whether the driver wants it to stop."""
        if self.leads and self._is_time():
            with self.noting():
                write_json(self.run.progress, dict(said), survives=False)
                self.is_stopped = self.run.stop.exists()

    def check(self) -> None:
        """Every worker's, between steps that are long: raise WorkError where the driver wants the run to stop."""
        if self._is_time() and self.run.stop.exists():
            raise stopped()

    def _is_time(self) -> bool:
        """Whether to look at the run's folder again."""
        now = time.monotonic()
        every_s = _PROGRESS_AFAR_EVERY_S if isinstance(self.run.root, Url) else _PROGRESS_EVERY_S
        if now - self._last_progress < every_s:
            return False
        self._last_progress = now
        return True

    def look_is_due(self) -> bool:
        """Whether the workers should look around together: the first one's clock decides for all."""
        now = time.monotonic()
        if not self.leads or now - self._last_look < _LOOK_EVERY_S:
            return False
        self._last_look = now
        return True

    def checkpoint_is_due(self) -> bool:
        rest_s = max(_CHECKPOINT_EVERY_S, self._checkpoint_s / _CHECKPOINT_SHARE)
        return self.leads and (self.is_stopped or time.monotonic() - self._last_checkpoint >= rest_s)

    def checkpoint(self, state: Mapping[str, Any], *, keep_as: str | None = None, keep: int = 1) -> None:
        """All that an exact resume needs, in one atomic file; nothing once there is trouble.

        `keep_as`: also under this name, where the `keep` newest stay when there is more than one to keep.
        """
        if not self.leads or self.trouble is not None:
            return
        started = time.monotonic()
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        with self.noting():
            put(self.run.state, buffer.getvalue())
            if keep_as is not None and keep > 1:
                folder = self.run.checkpoints
                put(folder / keep_as, buffer.getvalue())
                kept = [name for name in children(folder) if fnmatch(name, "step-*.pt")]
                for old in kept[:-keep]:
                    remove(folder / old)
        self._last_checkpoint = time.monotonic()
        self._checkpoint_s = self._last_checkpoint - started

    def epoch(self, record: Mapping[str, Any], history: list[str]) -> None:
        """Scores of an epoch: for TensorBoard, with all before it as metrics.jsonl, and in the report."""
        if self.leads:
            with self.noting():
                put(self.run.metrics, "\n".join([*history, ""]).encode())
                write_report(self.run)
            if self._events is not None:
                scalars = {name: record[name] for name in SCALARS}
                scalars |= {f"iou/{name}": score["iou"] for name, score in record["classes"].items()}
                self._events.scalars(scalars, record["step"])
                with self.noting():
                    self._events.publish(record["step"])

    def show(self, found: Sequence[Shown], validator: Validator, *, step: int, examined: int) -> None:
        """Pictures of windows out of `examined`, for TensorBoard and for the next report."""
        if self.leads and self.trouble is None:
            with self.noting():
                exhibits, pictures = draw(found, validator)
                write_json(self.run.exhibits, {"step": step, "examined": examined, "windows": exhibits})
                if self._events is not None and pictures:
                    self._events.pictures("windows: image, truth, prediction, errors", pictures, step)

    def model(self, module: torch.nn.Module, spec: ModelSpec) -> None:
        if self.leads:
            with self.noting():
                save_model(module, spec, self.run.model)

    def result(self, result: Mapping[str, Any]) -> None:
        """Add the outcome to run.json, which makes the run finished, and write the report of it."""
        if self.leads:
            with self.noting():
                if self._events is not None:
                    self._events.publish(result["steps"])
                self.run.write_record({**(self.run.read_record() or {}), "result": dict(result)})
                write_report(self.run)

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Keep what goes wrong inside, the first of it, as trouble."""
        try:
            yield
        except RaysegmentError as e:
            self.trouble = self.trouble or e
        except OSError as e:
            self.trouble = self.trouble or WorkError(
                f"cannot write to {e.filename or self.run.root}: {e.strerror}"
            )


def stopped() -> WorkError:
    """What ends workers that are told to stop."""
    return WorkError("stopped by the process that started it")


def last_state(run: RunFolder) -> dict[str, Any] | None:
    """What the last checkpoint holds, in this machine's memory: whoever takes it puts it where it belongs. None before
    the first. Raises WorkError where it is damaged, StorageError."""
    place = run.state
    if not place.is_file():
        return None
    file = io.BytesIO(place.read_bytes()) if isinstance(place, Url) else place
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as e:
        why = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise WorkError(f"{place} is damaged ({why}): put back a copy, or begin anew with --overwrite") from e
    return state


def json_line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False)
