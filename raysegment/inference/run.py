"""`infer` and `plan`: from a source and a model to a mask, resuming whatever is there already."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from pydantic import ValidationError

from raysegment import console
from raysegment.errors import UsageError, WorkError
from raysegment.geometry import Block, Size, Window
from raysegment.hardware import available_cores
from raysegment.inference.job import Job, output_bytes, output_path
from raysegment.inference.plan import Plan, Request, read_bytes
from raysegment.inference.results import InferResult, PlanResult
from raysegment.inference.scratch import Scratch
from raysegment.mask.store import MaskHeader, MaskStore
from raysegment.runtime import cluster

if TYPE_CHECKING:
    from raysegment.inference.auto import Measured
    from raysegment.inference.blend import Blend
    from raysegment.model.model import Model

Auto = Literal["auto"]


class Options(TypedDict, total=False):
    """What decides the plan; every one may be left out."""

    tile: int | None
    overlap: int | None
    blend: Blend
    region: Window | None
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    device: Literal["auto", "cpu", "cuda"]
    batch_size: int | Auto
    block: int | Auto


def infer(
    source: str | Path,
    *,
    model: str | Path | Model,
    out: str | Path,
    workers: int | Auto = "auto",
    scratch: str | Path | None = None,
    select: Mapping[str, int] | None = None,
    overwrite: bool = False,
    **options: Unpack[Options],
) -> InferResult:
    """Segment an image of any size into the OME-Zarr mask `out`.

    The same call goes on where it was interrupted; a finished one answers at once.

    Args:
        source: path of a TIFF, BigTIFF, OME-TIFF, SVS, Zarr or OME-Zarr image; PNG or JPEG when small.
        model: path of a ``.safetensors`` that `train` wrote, or a :class:`raysegment.Model`.
        out: ``*.zarr``; class indices as uint8 (uint16 above 254 classes), the dtype's maximum is nodata.
        workers: processes; by default one per core, or one per GPU. Never changes the mask.
        scratch: folder that all workers see; by default ``out`` + ``.scratch``.
        select: index on further axes, such as {"z": 0}.
        overwrite: replace a mask at `out` that was made from or with something else.
        options: tile, overlap (pixels; by default the model's tile and an eighth of it) · blend ("hann",
            "gaussian", "linear", "none") · region (Window in full-resolution source pixels) · precision ("auto",
            "fp32", "bf16", "fp16") · device · batch_size (tiles in one forward pass) · block (edge in pixels of what a
            worker does at once, rounded up to whole cells).

    Raises:
        UsageError, InputError, OutputExistsError: before any work.
        WorkError: during it; nothing that was done is lost.
    """
    started = time.monotonic()
    job = Job.open(source, model, _request(options), select, output_path(out))
    folder = Scratch(
        Path(scratch).absolute() if scratch is not None else job.out.with_name(job.out.name + ".scratch")
    )
    job.check()
    if workers != "auto" and workers < 1:
        raise UsageError(f"--workers {workers}: at least 1 is needed")
    about = job.finished_mask(folder, overwrite)
    if about is not None:
        return _already_done(job, about)
    folder.check()
    try:
        with folder.lock():
            about = job.finished_mask(folder, overwrite)
            if about is not None:  # another run came first
                folder.remove()
                return _already_done(job, about)
            plan, measured = job.settle(folder, overwrite)
            return _work(job, plan, measured, folder, _workers(workers, plan), started)
    except OSError as e:
        raise WorkError(f"{e.filename or job.out}: {e.strerror or e}: mend that and repeat the call") from e


def plan(
    source: str | Path,
    *,
    model: str | Path | Model,
    workers: int | Auto = "auto",
    select: Mapping[str, int] | None = None,
    **options: Unpack[Options],
) -> PlanResult:
    """What :func:`infer` with these arguments would do: grid, tiles, memory, bytes, time. Does nothing.

    One tile is forwarded in this process, to choose the precision and to estimate the time.
    """
    job = Job.open(source, model, _request(options), select, Path("mask.zarr"))
    resolved, measured = job.resolve()
    count = _workers(workers, resolved)
    wanted = resolved.images[0].region
    reading = read_bytes(resolved, 0, job.raster)
    return PlanResult(
        shape=(wanted.height, wanted.width),
        tile=resolved.tile,
        overlap=resolved.overlap,
        block=resolved.block_edge,
        tiles=resolved.tiles,
        tiles_skipped=0,
        blocks=len(resolved.blocks),
        forward_pixels=resolved.forward_pixels,
        read_bytes=reading,
        read_amplification=reading / (wanted.area * job.raster.shape[2] * job.raster.dtype.itemsize),
        scratch_bytes=resolved.scratch_bytes,
        output_bytes=output_bytes(resolved),
        worker_bytes=resolved.worker_bytes(job.raster.dtype.itemsize),
        estimated_s=resolved.tiles * measured.tile_s / min(count, len(resolved.blocks)),
        auto={
            "precision": str(measured),
            "device": resolved.device,
            "batch_size": resolved.batch_size,
            "block": resolved.block_edge,
            "workers": count,
            "threads": resolved.threads,
        },
    )


def _work(
    job: Job, plan: Plan, measured: Measured | None, folder: Scratch, workers: int, started: float
) -> InferResult:
    """Segment what is missing, stitch, build the pyramid, and only then say that there is a mask."""
    image = plan.images[0]
    store = MaskStore(Path(image.output), image.region.size, plan.label_dtype, plan.block_edge, plan.stride)
    store.create()
    missing = [(i, block) for i, block in plan.blocks if not folder.has_record(i, block)]
    resumed = len(plan.blocks) - len(missing)
    if measured is not None:
        console.detail(f"precision: {measured}")
    if resumed:
        console.say(f"going on: {resumed} of {len(plan.blocks)} blocks are there already")
    with cluster(workers):
        tiles, peak = _segment(job, plan, missing, folder, workers)
        counts = _stitch(plan, store, folder)
    height, width = image.region.size
    names = [c.name for c in plan.classes]
    class_pixels = {name: counts[i] for i, name in enumerate(names)}
    store.finish(_header(job, plan, class_pixels))
    folder.remove()
    wall_s = time.monotonic() - started
    return InferResult(
        output=image.output,
        shape=(height, width),
        classes=names,
        class_pixels=class_pixels,
        tiles=plan.tiles,
        tiles_skipped=0,
        blocks=len(plan.blocks),
        blocks_resumed=resumed,
        failed_regions=[],
        forward_pixels=tiles * plan.tile**2,
        calibration_pixels=measured.forward_pixels if measured is not None else 0,
        wall_s=wall_s,
        megapixels_per_s=height * width / 1e6 / wall_s,
        peak_rss_bytes=peak,
    )


def _segment(
    job: Job, plan: Plan, missing: list[tuple[int, Block]], folder: Scratch, workers: int
) -> tuple[int, int]:
    """Run the first stage; answers with its forward passes and the largest worker's peak memory."""
    import ray

    from raysegment.inference.pipeline import segment
    from raysegment.model.shipping import ship

    model = job.model if isinstance(job.model, str) else ray.put(ship(job.model))
    total = sum(plan.grids[i].own(block).area for i, block in missing) / 1e6
    tiles = peak = 0
    done = len(plan.blocks) - len(missing)
    with (
        console.progress("segment", total, "MP") as bar,
        contextlib.closing(segment(plan, missing, model, folder, workers)) as rows,
    ):
        for row in rows:
            tiles += int(row["answer"])
            peak = max(peak, int(row["rss_bytes"]))
            done += 1
            area = plan.grids[int(row["image"])].own(Block(int(row["row"]), int(row["col"]))).area
            bar.advance(area / 1e6, f"block {done}/{len(plan.blocks)}")
    return tiles, peak


def _stitch(plan: Plan, store: MaskStore, folder: Scratch) -> Counter[int]:
    """Run the second stage and the pyramid; answers with the pixels of each class."""
    from raysegment.inference.pipeline import build_pyramid, stitch_shards

    counts: Counter[int] = Counter()
    with (
        console.progress("stitch", len(store.shards(0)), "shards") as bar,
        contextlib.closing(stitch_shards(plan, 0, store, folder)) as rows,
    ):
        for row in rows:
            counts.update({i: int(n) for i, n in enumerate(row["answer"])})
            bar.advance()
    further = sum(len(store.shards(level)) for level in range(1, len(store.level_shapes)))
    with console.progress("pyramid", further, "shards") as bar:
        for _ in build_pyramid(store):
            bar.advance()
    return counts


def _header(job: Job, plan: Plan, class_pixels: dict[str, int]) -> MaskHeader:
    image, raster = plan.images[0], job.raster
    y, x = image.region.y, image.region.x
    transform = None
    if raster.transform is not None:
        a, b, c, d, e, f = raster.transform
        transform = (a, b, c + a * x + b * y, d, e, f + d * x + e * y)
    return MaskHeader(
        name=Path(image.source).stem,
        shape=Size(*image.region.size),
        classes=plan.classes,
        dtype=plan.label_dtype,
        origin=(y, x),
        recipe=plan.recipe(image),
        tiles=plan.tiles,
        class_pixels=class_pixels,
        pixel_size=raster.pixel_size,
        crs=raster.crs,
        transform=transform,
    )


def _already_done(job: Job, about: dict[str, Any]) -> InferResult:
    _, _, height, width = about["recipe"]["region"]
    return InferResult(
        output=str(job.out),
        shape=(height, width),
        classes=[c["name"] for c in about["classes"]],
        class_pixels=about["class_pixels"],
        tiles=about["tiles"],
        tiles_skipped=0,
        blocks=0,
        blocks_resumed=0,
        failed_regions=[],
        forward_pixels=0,
        calibration_pixels=0,
        wall_s=0.0,
        megapixels_per_s=0.0,
        peak_rss_bytes=0,
        already_done=True,
    )


def _request(options: Options) -> Request:
    try:
        return Request.model_validate(options)
    except ValidationError as e:
        first = e.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"--{option} {first['input']!r}: {first['msg']}") from e


def _workers(asked: int | Auto, plan: Plan) -> int:
    """Processes: one per GPU, or one per core a worker's threads take."""
    if asked != "auto":
        return asked
    if plan.device == "cuda":
        import torch

        return torch.cuda.device_count()
    return max(1, available_cores() // plan.threads)
