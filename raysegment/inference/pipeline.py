"""The two stages over Ray Data: segment (actors, one row = one block) and stitch (tasks, one row = one shard).

The pixels never travel: an actor reads its block by itself, writes its record and answers with a few numbers.
Measured against rows that carry pixels through the object store: 77 against 65 megapixels a second with a
network that costs nothing, and less memory.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import threading
import time
import traceback
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy, DataContext

from raysegment import console
from raysegment.errors import RaysegmentError, WorkError
from raysegment.geometry import Block, Window
from raysegment.inference.plan import BLOCKS_IN_HAND, Plan
from raysegment.inference.scratch import MAX_ATTEMPTS, Scratch
from raysegment.inference.stitch import stitch
from raysegment.mask.store import MaskStore

if TYPE_CHECKING:
    from raysegment.inference.segmenter import Segmenter
    from raysegment.raster import Raster

Row = dict[str, Any]
Rows = Generator[Row]
"""To be closed by whoever does not exhaust them: closing stops the stage."""
ModelSource = Any
"""Path of a model file, or a Ray object reference to a shipped Model."""

#: Ray Data cuts work into at most this many pieces: each costs the driver memory.
MAX_PIECES = 4000
NO_PROGRESS_S = 1800


class SegmentActor:
    """Lives in one worker: the network, loaded once, and the rasters it has opened."""

    def __init__(self, plan: Plan, model: ModelSource, scratch: Scratch) -> None:
        self.plan, self.scratch = plan, scratch
        self._model = model
        self._segmenter: Segmenter | None = None
        self._rasters: dict[int, Raster] = {}
        self._opening = threading.Lock()

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
            return self._segmenter

    def __call__(self, rows: dict[str, np.ndarray]) -> Row:
        """Segment the blocks of a batch of rows (one, as the pipeline calls it)."""
        done = [
            _reported(self._segment, image=int(i), row=int(r), col=int(c))
            for i, r, c in zip(rows["image"], rows["row"], rows["col"], strict=True)
        ]
        return {key: np.array([d[key] for d in done]) for key in done[0]}

    def _segment(self, image: int, row: int, col: int) -> int:
        block = Block(row, col)
        attempts = self.scratch.count_attempt(image, block)
        if attempts > MAX_ATTEMPTS:
            raise WorkError(
                f"block {row},{col} of {self.plan.images[image].source} took its worker down {MAX_ATTEMPTS} times"
            )
        record = self._load().segment(self._raster(image), image, block)
        self.scratch.save_record(image, block, record)
        return record.tiles

    def _raster(self, image: int) -> Raster:
        from raysegment.raster import open_raster

        with self._opening:
            if image not in self._rasters:
                planned = self.plan.images[image]
                self._rasters[image] = open_raster(planned.source, select=planned.select)
            return self._rasters[image]


def segment(
    plan: Plan, missing: list[tuple[int, Block]], model: ModelSource, scratch: Scratch, workers: int
) -> Rows:
    """Segment the blocks `missing`, as (image, block); yields one row per block as it is done.

    Rows: image, row, col, answer (forward passes), rss_bytes (peak of the worker). Raises WorkError for the first
    block that failed.
    """
    if not missing:
        return
    in_hand = BLOCKS_IN_HAND[plan.device]
    on_gpu = plan.device == "cuda"
    resources = {"num_gpus": 1, "num_cpus": 0} if on_gpu else {"num_cpus": plan.threads}
    yield from _run(
        [{"image": image, "row": block.row, "col": block.col} for image, block in missing],
        SegmentActor,
        fn_constructor_args=(plan, model, scratch),
        compute=ActorPoolStrategy(
            size=min(workers, len(missing)),
            max_tasks_in_flight_per_actor=2 * in_hand,
            max_concurrent_calls_per_actor=in_hand,
            enable_true_multi_threading=in_hand > 1,
        ),
        **resources,
    )


def stitch_shards(plan: Plan, image: int, store: MaskStore, scratch: Scratch) -> Rows:
    """Write every shard of level 0 that is not there yet; yields one row per shard, `answer` its class counts."""
    origin = plan.images[image].region

    def work(row: int, col: int, height: int, width: int) -> np.ndarray:
        window = Window(y=row, x=col, height=height, width=width)
        if store.has_shard(0, window):
            labels = store.read(0, window)
        else:
            in_image = Window(y=row + origin.y, x=col + origin.x, height=height, width=width)
            labels = stitch(plan, image, in_image, scratch)
            store.write(0, window, labels)
        return class_counts(labels, len(plan.classes))

    yield from _run_shards(store, 0, work)


def build_pyramid(store: MaskStore) -> Rows:
    """Make every further level, each from the one before it."""
    for level in range(1, len(store.level_shapes)):

        def work(row: int, col: int, height: int, width: int, level: int = level) -> int:
            store.reduce(level, Window(y=row, x=col, height=height, width=width))
            return 0

        yield from _run_shards(store, level, work)


def class_counts(labels: np.ndarray, classes: int) -> np.ndarray:
    """Pixels of each class: int64 (classes,); nodata is not counted."""
    counts = np.bincount(labels.reshape(-1), minlength=classes)
    return counts[:classes].astype(np.int64)


def _run_shards(store: MaskStore, level: int, work: Callable[..., Any]) -> Rows:
    shards = [{"row": w.y, "col": w.x, "height": w.height, "width": w.width} for w in store.shards(level)]

    def perform(row: Row) -> Row:
        return _reported(work, **{key: int(value) for key, value in row.items()})

    yield from _run(shards, perform, num_cpus=1)


def _run(rows: list[Row], function: Any, **how: Any) -> Rows:
    """Rows through one Ray Data stage; yields its answers in the order of their completion."""
    _configure_ray_data()
    dataset: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_PIECES))
    if isinstance(function, type):
        dataset = dataset.map_batches(function, batch_size=1, batch_format="numpy", **how)
    else:
        dataset = dataset.map(function, **how)
    with contextlib.closing(_answers(dataset)) as answers:
        for answer in answers:
            if answer["error"]:
                console.detail(answer["trace"])
                raise WorkError(answer["error"])
            yield answer


def _answers(dataset: ray.data.Dataset) -> Rows:
    """Its rows as they come. `iter_rows` would leave threads behind when it is closed early, and a thread that calls
    Ray after its shutdown ends the process without a word."""
    for bundle in dataset.iter_internal_ref_bundles():
        for table in ray.get(list(bundle.block_refs)):
            yield from table.to_pylist()


def _reported(work: Callable[..., Any], **row: int) -> Row:
    """Do the work of one row; an error becomes part of the answer, and the driver raises it as its own."""
    started = time.perf_counter()
    answer: Any = 0
    error = trace = ""
    try:
        answer = work(**row)
    except RaysegmentError as e:
        error = str(e)
    except OSError as e:  # a disk or a store that fails: the place is what helps
        error, trace = f"{e.filename}: {e.strerror}" if e.filename else str(e), traceback.format_exc()
    except Exception as e:  # Ray would repeat a failing actor call for ever
        error, trace = f"{type(e).__name__}: {e}", traceback.format_exc()
    return {
        **row,
        "answer": answer,
        "error": error,
        "trace": trace,
        "work_s": time.perf_counter() - started,
        "rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _configure_ray_data() -> None:
    """Said before every dataset: Ray Data seals these settings into it."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    context.execution_options.preserve_order = False
    context.max_errored_blocks = 0
    context.wait_for_min_actors_s = -1
    context.target_max_block_size = 16 << 20
    if hasattr(context, "execution_no_progress_timeout_s"):
        context.execution_no_progress_timeout_s = NO_PROGRESS_S
    context.print_on_execution_start = console.is_verbose()
    if not console.is_verbose():
        logging.getLogger("ray.data").setLevel(logging.ERROR)
