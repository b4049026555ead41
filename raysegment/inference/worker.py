"""What one worker of a run does: segment blocks, and write the shards that they make whole.

The pixels never travel: a worker reads its block by itself, writes its record and answers with a few numbers.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

import ray

from raysegment.errors import AnswerError, InputError, RaysegmentError, StorageError, WorkError
from raysegment.geometry import Block, Window
from raysegment.inference.answer import OfTheRun, Row, reported
from raysegment.inference.plan import Plan
from raysegment.inference.policy import Policy
from raysegment.inference.scratch import MAX_ATTEMPTS, Scratch

if TYPE_CHECKING:
    from raysegment.inference.assembly import Shard
    from raysegment.inference.foreground import Foreground
    from raysegment.inference.record import Record, RecordFile
    from raysegment.inference.segmenter import Segmented, Segmenter
    from raysegment.raster import Raster

ModelSource = str | bytes
"""Path of a model file, or a Model as :mod:`raysegment.model.shipping` packs it."""

#: Images that one worker keeps open.
_OPEN_IMAGES = 16
#: Seconds before a block is tried again, first and later.
_WAITS_S = (0.5, 2.0)


class InferenceWorker:
    """Lives in one process: the network, loaded with the first block, and the images it has open.

    Its answers are rows of figures, an error among them: see :func:`raysegment.inference.answer.reported`.
    """

    def __init__(
        self, plan: Plan, model: ModelSource, scratch: Scratch, policy: Policy | None = None
    ) -> None:
        self.plan, self.scratch, self.policy = plan, scratch, policy or Policy()
        self._model = model
        self._segmenter: Segmenter | None = None
        self._images: OrderedDict[int, tuple[Raster, Foreground | None]] = OrderedDict()
        self._opening = threading.Lock()
        self._batch = plan.batch_size
        """The largest that a forward pass of this run may have, as far as this worker wrote or read it."""

    @ray.method(max_task_retries=-1)
    def here(self) -> None:
        """Answered once the process runs, the one that takes its place when it dies included."""

    def segment(self, image: int, row: int, col: int) -> Row:
        """Segment a block: its record is in the scratch when this answers."""
        return reported(self._segment, image=image, row=row, col=col)

    def write(self, shard: Shard, window: Window, in_image: Window | None) -> Row:
        """Write a shard; see :func:`raysegment.inference.writing.write_shard`."""
        from raysegment.inference.writing import write_shard

        return reported(lambda: write_shard(self.plan, self.scratch, shard, window, in_image))

    def _segment(self, image: int, row: int, col: int) -> Row:
        block, key = Block(row, col), self.plan.images[image].key
        if self.scratch.has_record(key, block):  # by a worker that died later in this run
            return _told(self.scratch.open_record(key, block), began_at=time.time())
        # before the network: its loading may be what kills
        if self.scratch.count_attempt(key, block) > MAX_ATTEMPTS:
            reason = f"took its worker down {MAX_ATTEMPTS} times"
            if self.plan.on_error == "fail":
                raise WorkError(f"block {row},{col} of {self.plan.images[image].source} {reason}")
            return self._save(image, block, time.time(), self._lost(image, block, reason))
        try:
            self._load()
        except RaysegmentError as e:
            raise OfTheRun(str(e)) from e
        except Exception as e:  # the network's own code, the device's memory
            raise OfTheRun(f"the network cannot be loaded: {type(e).__name__}: {e}") from e
        began_at = time.time()
        try:
            done = self._segmented(image, block)
        except WorkError as e:
            if self.plan.on_error == "fail" or isinstance(e, StorageError):  # which may well answer tomorrow
                raise
            return self._save(image, block, began_at, self._lost(image, block, str(e)))
        return self._save(image, block, began_at, done.record, done)

    def _segmented(self, image: int, block: Block) -> Segmented:
        """One block, tried again after a failure that may pass."""
        for at in range(self.policy.tries):
            try:
                raster, foreground = self._open(image)
                return self._load().segment(raster, image, block, foreground)
            except AnswerError:  # it would answer the same again
                raise
            except Exception as e:
                if _has_lost_its_device(e):
                    print(e, file=sys.stderr, flush=True)  # into Ray's log of this worker
                    os._exit(1)  # as any death: another process takes over, with a device that works
                if at + 1 == self.policy.tries:
                    raise
            self._forget(image)
            time.sleep(_WAITS_S[min(at, len(_WAITS_S) - 1)])
        raise AssertionError

    def _save(
        self, image: int, block: Block, began_at: float, record: Record, done: Segmented | None = None
    ) -> Row:
        self.scratch.save_record(self.plan.images[image].key, block, record)
        if self._segmenter is not None and self._segmenter.network.batch < self._batch:
            self._batch = self._segmenter.network.batch
            self.scratch.limit_batch(self._batch)
        return _told(record, began_at, done.compute_s if done is not None else 0.0)

    def _lost(self, image: int, block: Block, reason: str) -> Record:
        from raysegment.inference.segmenter import nothing

        return nothing(self.plan, image, block, failed=reason)

    def _load(self) -> Segmenter:
        from raysegment.inference.segmenter import Segmenter
        from raysegment.model.file import file_identity, load_model
        from raysegment.model.shipping import unship

        with self._opening:
            if self._segmenter is None:
                if isinstance(self._model, str) and file_identity(self._model) != self.plan.model:
                    raise InputError(
                        f"{self._model} is another model than at the start of this run: put that one back to go on, "
                        "or begin anew with this one"
                    )
                model = load_model(self._model) if isinstance(self._model, str) else unship(self._model)
                self._segmenter = Segmenter(model, self.plan)
                self._model = ""  # held once
                self._batch = self.scratch.batch_limit(self.plan.batch_size)
                self._segmenter.network.batch = self._batch
            return self._segmenter

    def _open(self, image: int) -> tuple[Raster, Foreground | None]:
        from raysegment.inference.image import open_planned

        with self._opening:
            if image not in self._images:
                planned = self.plan.images[image]
                foreground = (
                    self.scratch.load_foreground(planned.key) if planned.foreground is not None else None
                )
                self._images[image] = open_planned(planned, self.scratch), foreground
                if len(self._images) > _OPEN_IMAGES:
                    self._images.popitem(last=False)
            self._images.move_to_end(image)
            return self._images[image]

    def _forget(self, image: int) -> None:
        """Have it opened anew. It is not closed: another thread may be reading it."""
        with self._opening:
            self._images.pop(image, None)


def _told(record: Record | RecordFile, began_at: float, compute_s: float = 0.0) -> Row:
    """What the driver is told of a block."""
    return {
        "tiles": record.tiles,
        "failures": list(record.failures),
        "failed": record.failed,
        "compute_s": compute_s,
        "began_at": began_at,
    }


def _has_lost_its_device(error: Exception) -> bool:
    """Whether it is an error after which every call to the GPU fails in this process: of CUDA itself, but no lack of
    memory. (torch has had a name for it since 2.8.)"""
    import torch

    kind = getattr(torch, "AcceleratorError", ())
    return isinstance(error, kind) and not isinstance(error, torch.OutOfMemoryError)
