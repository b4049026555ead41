"""What was done with each image, kept beside the outputs as plain JSON; and one record per run.

    LEDGER/ledger.json       every image: what it was, with what and where its mask was made, or why not
    LEDGER/runs/ID.json      what a run's report.json says
    LEDGER/lock.json         who is at work, and until when
    LEDGER/scratch/          unfinished work

One file, because a night begins with reading it: ten thousand small ones would take an object store minutes.
It has one writer, who holds the lock.
"""

from __future__ import annotations

import json
import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticSerializationError

from raysegment import console
from raysegment.errors import InputError
from raysegment.storage import Location, location
from raysegment.storage.objects import before_work, entries, put

#: Seconds between two writings while images are being finished. Whatever is lost with a killed run is found again:
#: a finished mask says what it was made of.
_SAVE_EVERY_S = 2.0


class Entry(BaseModel):
    """One image."""

    model_config = ConfigDict(extra="forbid")

    state: Literal["claimed", "done", "failed"]
    """Claimed: some run took it up, and none has finished it."""
    output: str
    """Frozen when it was first claimed."""
    pattern: str
    """The ``[output] path`` that the output was made by."""
    size: int
    tag: str
    """See :class:`raysegment.nightly.discovery.Found`."""
    digest: str | None = None
    """Of the content, once it was read."""
    recipe: str
    """Digest of model and settings."""
    run: str
    """The run that last changed this."""
    reason: str | None = None
    """Why it failed."""


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    images: dict[str, Entry] = {}


class Ledger:
    """The images, by source, and where that is written."""

    def __init__(self, place: Location) -> None:
        self.place = place
        self.images: dict[str, Entry] = {}
        self._saved_at = 0.0
        self._is_changed = False

    @classmethod
    def read(cls, path: str) -> Ledger:
        """The ledger at `path`, empty where there is none. Raises InputError."""
        ledger = cls(location(path))
        file = ledger.place / "ledger.json"
        try:
            with before_work():
                content = json.loads(_bytes(file) or b"{}")
            ledger.images = _Content.model_validate(content).images
        except ValueError as e:  # ValidationError is one
            raise InputError(f"{file} is no ledger of this version: move it away, or name another") from e
        except OSError as e:
            raise InputError(f"cannot read {file}: {e.strerror}") from e
        return ledger

    @property
    def lock(self) -> Location:
        return self.place / "lock.json"

    def set(self, source: str, entry: Entry) -> None:
        """Note what became of an image; written soon, or by :meth:`save`."""
        self.images[source] = entry
        self._is_changed = True
        if time.monotonic() - self._saved_at > _SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write it down, whole. Raises OSError, StorageError."""
        if self._is_changed:
            content = _Content(images=dict(sorted(self.images.items())))
            try:
                text = content.model_dump_json(indent=1, exclude_none=True).encode()
            except PydanticSerializationError:
                # a file name need not be valid Unicode; the slower way writes it
                text = _json(content.model_dump(exclude_none=True), indent=1)
            put(self.place / "ledger.json", text)
            self._saved_at, self._is_changed = time.monotonic(), False

    def save_run(self, run: str, record: dict[str, Any]) -> None:
        """Keep what is said of a run. Raises OSError, StorageError."""
        put(self.place / "runs" / f"{run}.json", _json(record))

    def last_runs(self, count: int) -> list[dict[str, Any]]:
        """What was said of the newest runs, oldest first; what cannot be read is warned of. Raises InputError."""
        with before_work():
            names = sorted(name for name in entries(self.place / "runs") if name.endswith(".json"))[-count:]
            files = {name: _bytes(self.place / "runs" / name) for name in names}
        return [run for name, file in files.items() if file is not None and (run := self._run(name, file))]

    def _run(self, name: str, file: bytes) -> dict[str, Any] | None:
        """A record of a run; None for a damaged one: it is for people alone, and nothing depends on it."""
        try:
            run = json.loads(file)
        except ValueError:
            run = None
        if isinstance(run, dict) and "counts" in run:
            return run
        console.warn(f"{self.place / 'runs' / name} is no record of a run and left out: delete it")
        return None


def _json(data: dict[str, Any], *, indent: int | None = None) -> bytes:
    """In UTF-8; what is not valid Unicode in a file name is escaped, as JSON has it."""
    return json.dumps(data, ensure_ascii=False, indent=indent).encode("utf-8", "backslashreplace")


def _bytes(file: Location) -> bytes | None:
    """What a file holds; None where there is none."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
