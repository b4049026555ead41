"""The first stage, over Ray Data: one actor per worker or GPU, one row = a run of neighbouring blocks.

The pixels never travel: an actor reads its block by itself, writes its record and answers with a few numbers.
Measured against rows that carry pixels through the object store: 77 against 65 megapixels a second with a
network that costs nothing, and less memory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy, DataContext

from raysegment import console
from raysegment.errors import AnswerError, StorageError, WorkError
from raysegment.geometry import Block
from raysegment.inference.answer import Row, fail_on_error, reported
from raysegment.inference.plan import BLOCKS_IN_HAND, Plan
from raysegment.inference.policy import Policy
from raysegment.inference.scratch import MAX_ATTEMPTS, Scratch
from raysegment.runtime import FRUGAL_ENVIRONMENT, WORKER_ENVIRONMENT

if TYPE_CHECKING:
    from raysegment.inference.foreground import Foreground
    from raysegment.inference.record import Record
    from raysegment.inference.segmenter import Segmented, Segmenter
    from raysegment.raster import Raster

Rows = Generator[Row]
"""To be closed by whoever does not exhaust them: closing stops the stage."""
ModelSource = Any
"""Path of a model file, or a Ray object reference to a shipped Model."""

#: Ray Data cuts work into at most this many pieces: each costs the driver memory.
MAX_PIECES = 4000
NO_PROGRESS_S = 1800
#: Images that one worker keeps open.
_OPEN_IMAGES = 16
#: Seconds before a block is tried again, first and later.
_WAITS_S = (0.5, 2.0)


@dataclass(frozen=True)
class BlockDone:
    """What a worker says of one block."""

    image: int
    block: Block
    tiles: int
    """Tiles that were forwarded."""
    compute_s: float
    """How long its device worked on it."""
    began_at: float
    """Seconds since the epoch, by the worker's clock."""
    peak_bytes: int
    """The most memory that the worker has ever held."""
    error: str = ""
    """Why the image is to be set aside."""
    passing: bool = False
    """Whether that says nothing of the image: a storage that did not answer may do so tomorrow."""


class SegmentActor:
    """Lives in one worker: the network, loaded once, and the images it has open."""

    def __init__(
        self, plan: Plan, model: ModelSource, scratch: Scratch, policy: Policy | None = None
    ) -> None:
        self.plan, self.scratch, self.policy = plan, scratch, policy or Policy()
        self._model = model
        self._segmenter: Segmenter | None = None
        self._images: OrderedDict[int, tuple[Raster, Foreground | None]] = OrderedDict()
        self._opening = threading.Lock()

    def __call__(self, runs: dict[str, np.ndarray]) -> Iterator[Row]:
        """Segment the blocks of one run, in order; tells of each as it is done."""
        for image, row, col in np.asarray(runs["blocks"][0]).reshape(-1, 3).tolist():
            if self.policy.until is not None and time.time() >= self.policy.until:
                return
            if self.policy.set_aside and self.scratch.is_set_aside(image):
                continue
            answer = reported(self._segment, image=image, row=row, col=col)
            if answer["error"] and self.policy.set_aside:
                self.scratch.set_aside(image)
            yield {key: [value] for key, value in answer.items()}
            if answer["error"] and not self.policy.set_aside:
                return

    def _segment(self, image: int, row: int, col: int) -> Row:
        block = Block(row, col)
        if self.scratch.has_record(image, block):  # by a worker that died later in this run
            return {
                "tiles": self.scratch.open_record(image, block).tiles,
                "compute_s": 0.0,
                "began_at": time.time(),
            }
        attempts = self.scratch.count_attempt(
            image, block
        )  # before the network: its loading may be what kills
        if attempts > MAX_ATTEMPTS:
            reason = f"took its worker down {MAX_ATTEMPTS} times"
            if self.plan.on_error == "fail":
                raise WorkError(f"block {row},{col} of {self.plan.images[image].source} {reason}")
            return self._save(image, block, time.time(), self._lost(image, block, reason))
        self._load()
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
            except Exception:
                if at + 1 == self.policy.tries:
                    raise
            self._forget(image)
            time.sleep(_WAITS_S[min(at, len(_WAITS_S) - 1)])
        raise AssertionError

    def _save(
        self, image: int, block: Block, began_at: float, record: Record, done: Segmented | None = None
    ) -> Row:
        self.scratch.save_record(image, block, record)
        if self._segmenter is not None and self._segmenter.network.batch < self.plan.batch_size:
            self.scratch.limit_batch(self._segmenter.network.batch)
        return {
            "tiles": record.tiles,
            "compute_s": done.compute_s if done is not None else 0.0,
            "began_at": began_at,
        }

    def _lost(self, image: int, block: Block, reason: str) -> Record:
        from raysegment.inference.segmenter import nothing

        return nothing(self.plan, image, block, failed=reason)

    def _load(self) -> Segmenter:
        from raysegment.inference.segmenter import Segmenter
        from raysegment.model.file import load_model
        from raysegment.model.shipping import unship

        with self._opening:
            if self._segmenter is None:
                model = (
                    load_model(self._model)
                    if isinstance(self._model, str)
                    else unship(bytes(ray.get(self._model)))
                )
                self._segmenter = Segmenter(model, self.plan)
                self._segmenter.network.batch = self.scratch.batch_limit(self.plan.batch_size)
            return self._segmenter

    def _open(self, image: int) -> tuple[Raster, Foreground | None]:
        from raysegment.inference.image import open_planned

        with self._opening:
            if image not in self._images:
                planned = self.plan.images[image]
                foreground = self.scratch.load_foreground(image) if planned.foreground is not None else None
                self._images[image] = open_planned(planned, self.scratch), foreground
                if len(self._images) > _OPEN_IMAGES:
                    self._images.popitem(last=False)
            self._images.move_to_end(image)
            return self._images[image]

    def _forget(self, image: int) -> None:
        """Have it opened anew. It is not closed: another thread may be reading it."""
        with self._opening:
            self._images.pop(image, None)


def runs(missing: list[tuple[int, Block]], workers: int) -> list[Row]:
    """The blocks cut into runs of neighbours, long ones first and single blocks at the end.

    A run goes along two rows of blocks at once, up and down: a worker that goes on with the next block has up to half
    of its border decoded already. It may hold several images: small ones would otherwise cost more than their pixels.
    And when little is left, nobody must wait for one who still has much.
    """
    order = sorted(missing, key=lambda at: (at[0], at[1].row // 2, at[1].col, at[1].row))
    found: list[Row] = []
    at, room = (-1, -1), 0
    for done, (image, block) in enumerate(order):
        if (at[0] == image and at[1] != block.row // 2) or room == 0:
            room = max(1, (len(order) - done) // (4 * workers))
            found.append({"blocks": []})
        at = (image, block.row // 2)
        found[-1]["blocks"] += [image, block.row, block.col]
        room -= 1
    return found


def segment(
    plan: Plan,
    missing: list[tuple[int, Block]],
    model: ModelSource,
    scratch: Scratch,
    workers: int,
    policy: Policy,
) -> Generator[BlockDone]:
    """Segment the blocks `missing`, as (image, block); tells of each as it is done.

    Raises WorkError for the first block that failed, unless by the policy its image is set aside.
    """
    if not missing:
        return
    in_hand = BLOCKS_IN_HAND[plan.device]
    resources = {"num_gpus": 1, "num_cpus": 0} if plan.device == "cuda" else {"num_cpus": plan.threads}
    rows = _run(
        runs(missing, workers),
        SegmentActor,
        policy.set_aside,
        fn_constructor_args=(plan, model, scratch, policy),
        compute=ActorPoolStrategy(
            size=min(workers, len(missing)),
            max_tasks_in_flight_per_actor=2 * in_hand,
            max_concurrent_calls_per_actor=in_hand,
            enable_true_multi_threading=in_hand > 1,
        ),
        **_environment(plan),
        **resources,
    )
    with contextlib.closing(rows):
        for row in rows:
            yield BlockDone(
                image=row["image"],
                block=Block(row["row"], row["col"]),
                tiles=row["tiles"],
                compute_s=row["compute_s"],
                began_at=row["began_at"],
                peak_bytes=row["peak_bytes"],
                error=row["error"],
                passing=row["passing"],
            )


def _run(rows: list[Row], function: type, set_aside: bool = False, **how: Any) -> Rows:
    """Rows through one Ray Data stage; yields its answers in the order of their completion. See fail_on_error."""
    _configure_ray_data()
    dataset: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_PIECES))
    dataset = dataset.map_batches(function, batch_size=1, batch_format="numpy", **how)
    with contextlib.closing(_answers(dataset)) as answers:
        for answer in answers:
            fail_on_error(answer, set_aside=set_aside)
            yield answer


def _answers(dataset: ray.data.Dataset) -> Rows:
    """Its rows as they come. `iter_rows` would leave threads behind when it is closed early, and a thread that calls
    Ray after its shutdown ends the process without a word."""
    for bundle in dataset.iter_internal_ref_bundles():
        for table in ray.get(list(bundle.block_refs)):
            yield from table.to_pylist()


def _environment(plan: Plan) -> dict[str, Any]:
    """What the workers' processes must be started with, where Ray was not started with it."""
    wanted = FRUGAL_ENVIRONMENT if plan.frugal else WORKER_ENVIRONMENT
    given = {} if plan.frugal else os.environ
    missing = {key: value for key, value in wanted.items() if key not in given}
    return {"runtime_env": {"env_vars": missing}} if missing else {}


def _configure_ray_data() -> None:
    """Said before every dataset: Ray Data seals these settings into it."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    context.execution_options.preserve_order = False
    context.max_errored_blocks = 0
    context.wait_for_min_actors_s = -1
    context.target_max_block_size = 1  # every answer is sent as soon as it is there
    if hasattr(context, "execution_no_progress_timeout_s"):
        context.execution_no_progress_timeout_s = NO_PROGRESS_S
    context.print_on_execution_start = console.is_verbose()
    if not console.is_verbose():
        logging.getLogger("ray.data").setLevel(logging.ERROR)
