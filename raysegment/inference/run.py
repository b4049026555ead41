"""`infer`: from images and a model to masks, resuming whatever is there already."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack, overload

from raysegment.errors import StorageError, WorkError
from raysegment.hardware import available_cores
from raysegment.inference.finish import InferredImage, finish_image
from raysegment.inference.job import Job
from raysegment.inference.options import Auto, Options, check_workers, itemsize_of, request_of, worker_count
from raysegment.inference.plan import Plan
from raysegment.inference.results import InferResult, InferResults
from raysegment.inference.scratch import Scratch
from raysegment.inference.sources import expand, place
from raysegment.runtime import cluster, joined
from raysegment.storage import Location, location

if TYPE_CHECKING:
    from raysegment.inference.auto import Measured
    from raysegment.inference.image import Image
    from raysegment.model.model import Model

Source = str | Path


@overload
def infer(
    source: Source,
    *,
    model: str | os.PathLike[str] | Model,
    out: str | Path,
    workers: int | Auto = "auto",
    scratch: str | Path | None = None,
    select: Mapping[str, int] | None = None,
    overwrite: bool = False,
    self_check: bool = False,
    **options: Unpack[Options],
) -> InferResult: ...
@overload
def infer(
    source: Sequence[Source],
    *,
    model: str | os.PathLike[str] | Model,
    out: str | Path,
    workers: int | Auto = "auto",
    scratch: str | Path | None = None,
    select: Mapping[str, int] | None = None,
    overwrite: bool = False,
    self_check: bool = False,
    **options: Unpack[Options],
) -> InferResult | InferResults: ...
@joined()
def infer(
    source: Source | Sequence[Source],
    *,
    model: str | os.PathLike[str] | Model,
    out: str | Path,
    workers: int | Auto = "auto",
    scratch: str | Path | None = None,
    select: Mapping[str, int] | None = None,
    overwrite: bool = False,
    self_check: bool = False,
    **options: Unpack[Options],
) -> InferResult | InferResults:
    """Segment images of any size into OME-Zarr masks.

    The same call goes on where it was interrupted; a finished one answers at once.

    Args:
        source: path, glob or URL (s3://, gs://, https://) of a TIFF, BigTIFF, OME-TIFF, SVS, Zarr or OME-Zarr image,
            PNG or JPEG when small; or several of them, which flow through one pipeline and one set of loaded models.
        model: path or URL of a ``.safetensors`` that `train` wrote; path of a ``.pt2`` or ``.onnx`` with its sidecar;
            or a :class:`raysegment.Model`.
        out: ``*.zarr`` for one image, a folder for several; class indices as uint8 (uint16 above 254 classes), the
            dtype's maximum is nodata. A path or a URL (s3://, gs://).
        workers: processes; by default one per core, or one per GPU. Never changes the mask.
        scratch: folder or URL that all workers see; by default ``out`` + ``.scratch``.
        select: index on further axes, such as {"z": 0}.
        overwrite: replace masks at `out` that were made from or with something else.
        self_check: first run this plan's tiles, weights, blocks and store with a constant and a ramp for a network, and
            refuse to start when they do not come back.
        options: tile, overlap (pixels; by default the model's tile and an eighth of it) · blend ("hann", "gaussian",
            "linear", "none") · level (of the image's pyramid) or pixel_size (µm or CRS units, or "native"; by
            default the model's) · channels (indices of stored channels) · region (Window in full-resolution source
            pixels) · foreground ("all", "auto", or a mask's path) · tta ("none", "flip", "d4") · precision ("auto",
            "fp32", "bf16", "fp16") · device · batch_size (tiles in one forward pass) · block (edge in pixels of what
            a worker does at once, rounded up to whole cells) · max_memory (bytes a worker process, or "2G") ·
            probabilities, uncertainty (also write them, beside the mask) · on_error ("fail", "skip").

    Raises:
        UsageError, InputError, OutputExistsError: before any work.
        WorkError: during it; nothing that was done is lost.
    """
    started = time.monotonic()
    check_workers(workers)
    names = expand(source)
    places = place(names, out)
    job = Job.open(places, model, request_of(options), select, workers)
    root = location(out)
    folder = Scratch(location(scratch) if scratch is not None else root.with_name(root.name + ".scratch"))
    job.check()
    done, todo = _finished(job, overwrite)
    if todo:
        folder.check()
        try:
            with folder.lock() as check_lock:
                done, todo = _finished(job, overwrite)
                if todo:
                    _work(job, todo, folder, workers, overwrite, self_check, done, check_lock)
                folder.remove()
        except StorageError:
            raise
        except OSError as e:
            raise WorkError(f"{e.filename or root}: {e.strerror or e}: mend that and repeat the call") from e
    return _result(job, done, root, time.monotonic() - started, is_one=root.suffix == ".zarr")


def _finished(job: Job, overwrite: bool) -> tuple[dict[int, InferredImage], dict[int, Image]]:
    """Images whose masks are finished, and those that are to be done, by their place in the call."""
    done: dict[int, InferredImage] = {}
    todo: dict[int, Image] = {}
    for index, image in enumerate(job.images):
        about = job.finished_mask(image, overwrite)
        if about is None:
            todo[index] = image
        else:
            done[index] = InferredImage.of_finished(image, about, job.sides)
    return done, todo


def _work(
    job: Job,
    todo: dict[int, Image],
    folder: Scratch,
    workers: int | Auto,
    overwrite: bool,
    self_check: bool,
    done: dict[int, InferredImage],
    check_lock: Callable[[], None],
) -> None:
    """Settle the plan and carry it out, in the lock; every finished image goes into `done`."""
    images = list(todo.values())
    made, measured = job.resume(images, folder, overwrite), None
    most = available_cores() if workers == "auto" else workers
    with cluster(most, meanwhile=functools.partial(_get_ready, images)):
        if made is None:
            from raysegment.inference.resolve import new_plan

            made, measured = new_plan(job, images, folder)
        if self_check:
            from raysegment.inference.selfcheck import self_check as check

            check(made)
        count = worker_count(workers, made, itemsize_of(job))
        _flow(job, made, todo, folder, count, done, measured, check_lock)


def _get_ready(images: list[Image]) -> None:
    """What takes seconds, and is not needed to refuse a call or to find its masks finished: torch, and the digests."""
    import raysegment.inference.resolve  # noqa: F401

    for image in images:
        _ = image.identity


def _flow(
    job: Job,
    made: Plan,
    todo: dict[int, Image],
    folder: Scratch,
    workers: int,
    done: dict[int, InferredImage],
    measured: Measured | None,
    check_lock: Callable[[], None],
) -> None:
    import ray

    from raysegment.inference.flow import Flow, Tally
    from raysegment.mask.outputs import Outputs

    places = {str(image.out): at for at, image in todo.items()}

    def finish(index: int, outputs: Outputs, tally: Tally) -> None:
        check_lock()
        at = places[made.images[index].output]
        done[at] = finish_image(made, index, todo[at], outputs, tally, folder)

    mine = {i for i, image in enumerate(made.images) if image.output in places}
    flow = Flow(made, mine, folder, finish)
    network = job.shipped()
    flow.run(network if isinstance(network, str) else ray.put(network), workers)
    for at in todo:
        done[at].note(flow.clock, workers, measured.forward_pixels if measured is not None else 0)


def _result(
    job: Job, done: dict[int, InferredImage], root: Location, wall_s: float, *, is_one: bool
) -> InferResult | InferResults:
    inferred = [done[index] for index in range(len(job.images))]
    results = [image.result(wall_s) for image in inferred]
    if is_one:
        return results[0]
    newest = [image for image in inferred if image.clock is not None]
    return InferResults(
        output=str(root),
        images=results,
        wall_s=wall_s,
        calibration_pixels=max((image.calibration_pixels for image in inferred), default=0),
        peak_rss_bytes=max((result.peak_rss_bytes for result in results), default=0),
        work_s=max((result.work_s for result in results), default=0.0),
        device_wait=newest[0].device_wait if newest else 0.0,
    )
