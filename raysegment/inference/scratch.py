"""The scratch folder: the plan, one record per segmented block, the lock. It is the resume.

A record appears whole or not at all (temp file, fsync, rename; one PUT). Whoever dies leaves at most temp files.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import imagecodecs
import numpy as np

from raysegment.errors import OutputExistsError, UsageError
from raysegment.geometry import Block
from raysegment.inference.plan import Plan
from raysegment.inference.record import Record, RecordFile
from raysegment.storage import Location, Url
from raysegment.storage.file_lock import locked
from raysegment.storage.lease import hold
from raysegment.storage.objects import check_writable, entries, put, remove

if TYPE_CHECKING:
    from raysegment.inference.assembly import Shard
    from raysegment.inference.foreground import Foreground

#: A block that took its worker down this often is given up.
MAX_ATTEMPTS = 3
_FILES = ("plan.json", "batch")
_FOLDERS = ("records", "halves", "attempts", "foreground", "copies")


class Scratch:
    """One folder that every worker of a run sees. Small enough to be sent to them: it holds a path.

    Images go by their :attr:`~raysegment.inference.plan.ImagePlan.key`.
    """

    def __init__(self, path: Location) -> None:
        self.path = path

    # ── the plan ────────────────────────────────────────────────────────────────

    def load_plan(self, *, overwrite: bool = False) -> Plan | None:
        """The plan of an unfinished run, or None.

        Raises OutputExistsError for a plan of another version, unless it may be overwritten.
        """
        text = self._text("plan.json")
        if text is None:
            return None
        try:
            return Plan.model_validate(json.loads(text))  # pydantic's own reader takes no odd file name
        except ValueError as e:  # ValidationError is one
            if overwrite:
                return None
            raise OutputExistsError(
                f"{self.path}/plan.json was written by another version: pass --overwrite to start anew"
            ) from e

    def save_plan(self, plan: Plan) -> None:
        self._put("plan.json", json.dumps(plan.model_dump(mode="json"), indent=1).encode())

    # ── records ─────────────────────────────────────────────────────────────────

    def save_record(self, image: str, block: Block, record: Record) -> None:
        self._put(_record_name(image, block), record.to_bytes())

    def open_record(self, image: str, block: Block) -> RecordFile:
        return RecordFile(self.path / _record_name(image, block))

    def has_record(self, image: str, block: Block) -> bool:
        return (self.path / _record_name(image, block)).exists()

    def recorded(self) -> set[tuple[str, Block]]:
        """Every (image, block) that has a record."""
        found = [name.partition(".")[0].split("/") for name in entries(self.path / "records")]
        blocks = [(image, *name.split("_")) for image, name in found if name]
        return {(image, Block(int(row), int(col))) for image, row, col in blocks}

    def forget_image(self, image: str) -> None:
        """The image's mask is finished: its records are of no more use."""
        self._forget(f"records/{image}")
        self._forget(f"halves/{image}")

    # ── halves ──────────────────────────────────────────────────────────────────

    def save_half(self, image: str, shard: Shard, labels: np.ndarray) -> None:
        """What the level after is made of; not for a resume, which makes it anew."""
        packed = bytes(imagecodecs.zstd_encode(labels.tobytes(), level=1))
        put(self.path / _half_name(image, shard), packed, survives=False)

    def load_half(self, image: str, shard: Shard, dtype: np.dtype) -> np.ndarray:
        """The same, flat."""
        packed = (self.path / _half_name(image, shard)).read_bytes()
        return np.frombuffer(imagecodecs.zstd_decode(packed), dtype)

    # ── what workers need besides ────────────────────────────────────────────────

    def save_foreground(self, image: str, foreground: Foreground) -> None:
        self._put(f"foreground/{image}.npz", foreground.to_bytes())

    def load_foreground(self, image: str) -> Foreground:
        from raysegment.inference.foreground import Foreground

        return Foreground.from_bytes((self.path / f"foreground/{image}.npz").read_bytes())

    @property
    def copies(self) -> Location:
        """Where sources lie that had to be copied to be read."""
        return self.path / "copies"

    def limit_batch(self, batch: int) -> None:
        """Remember that no larger batch fits into a device's memory."""
        self._put("batch", str(self.batch_limit(batch)).encode())

    def batch_limit(self, planned: int) -> int:
        """The largest batch that this run may use."""
        text = self._text("batch")
        return planned if text is None else min(planned, int(text))

    # ── attempts ────────────────────────────────────────────────────────────────

    def count_attempt(self, image: str, block: Block) -> int:
        """Note that a worker takes the block in hand; the answer is how often that has happened in this run."""
        name = f"attempts/{image}_{block.row}_{block.col}"
        attempts = 1 + int(self._text(name) or 0)
        # a power failure is not the block's fault
        put(self.path / name, str(attempts).encode(), survives=False)
        return attempts

    def forget_attempts(self) -> None:
        """A new run starts counting anew: a killed command is not the block's fault."""
        self._forget("attempts")

    # ── life ────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        """Raise UsageError when the folder cannot be used: no folder, no right to write, or something else's."""
        if isinstance(self.path, Url):
            check_writable(self.path, f"--scratch {self.path}")
            if self.path.is_dir() and {p.name for p in self.path.iterdir()} - {"lock", *_FILES, *_FOLDERS}:
                raise UsageError(f"--scratch {self.path} holds other files: name a folder of its own")
            return
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--scratch {self.path} is a file: name a folder")
        home = next(p for p in (self.path, *self.path.parents) if p.exists())
        if not os.access(home, os.W_OK) or not home.is_dir():
            raise UsageError(f"--scratch {self.path}: no right to write into {home}")
        if home == self.path and any(home.iterdir()) and not (home / "lock").exists():
            raise UsageError(f"--scratch {self.path} holds other files: name a folder of its own")

    @contextlib.contextmanager
    def lock(self) -> Iterator[Callable[[], None]]:
        """Hold the scratch for this process. Freed by the system when it dies; on object storage it runs out.

        Raises LockedError naming the holder. What is given raises WorkError when the lock was lost meanwhile.
        """
        if isinstance(self.path, Url):
            with hold(self.path / "lock") as lease:
                yield lease.check
            return
        with locked(self.path / "lock"):
            try:
                yield lambda: None
            finally:
                if self.path.exists() and [p.name for p in self.path.iterdir()] == ["lock"]:
                    self.remove()  # nothing came of it: no empty folder stays behind

    def clear(self) -> None:
        """Forget all but the lock."""
        for name in _FILES:
            remove(self.path / name)
        for name in _FOLDERS:
            self._forget(name)

    def remove(self) -> None:
        """The work is done: nothing of ours is left, and the folder goes if it held nothing else."""
        self.clear()
        if isinstance(self.path, Url):
            return  # no folder is left, and the lock goes when it is given up
        (self.path / "lock").unlink(missing_ok=True)
        with contextlib.suppress(
            OSError
        ):  # somebody else's files, or a network file system's ghost of the lock
            self.path.rmdir()

    def _put(self, name: str, content: bytes) -> None:
        put(self.path / name, content)

    def _text(self, name: str) -> str | None:
        try:
            return (self.path / name).read_text()
        except FileNotFoundError:
            return None

    def _forget(self, name: str) -> None:
        """Delete a folder; what cannot be deleted takes room and does no harm."""
        with contextlib.suppress(OSError):
            remove(self.path / name)


def _record_name(image: str, block: Block) -> str:
    return f"records/{image}/{block.row}_{block.col}.safetensors"


def _half_name(image: str, shard: Shard) -> str:
    return f"halves/{image}/{shard.level}_{shard.row}_{shard.col}.zst"
