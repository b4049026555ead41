"""From what was asked to the plan: every "auto" becomes a value, once, before the first block."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

from raysegment import console
from raysegment.errors import ReadError, UsageError
from raysegment.inference.auto import Measured, measure, measure_planned
from raysegment.inference.job import check_space
from raysegment.inference.plan import ImagePlan, Plan, read_bytes
from raysegment.inference.request import choose_cells, choose_tile, least_cells
from raysegment.inference.results import readable_bytes
from raysegment.runtime.device import borrowed, is_here, on_gpu

if TYPE_CHECKING:
    from raysegment.inference.image import Image
    from raysegment.inference.job import Job
    from raysegment.inference.scratch import Scratch
    from raysegment.model.model import Model

#: A source is copied when its layout makes the blocks decode more than this many times what they need …
DEAR = 4.0
#: … and this many times all there is: a small region of a large strip is cheaper to cut out.
_WHOLE = 2.0
#: What a forward pass takes is measured, and not twice the same by 2 %: whoever gives the least that was named is not
#: to be refused then.
_MEMORY_SWAY = 1.05


def new_plan(job: Job, todo: Sequence[Image], scratch: Scratch) -> tuple[Plan, Measured]:
    """A plan of the images `todo`, written down, and what was measured for it. The scratch must be locked.

    Raises UsageError, InputError; ReadError for a dear source that cannot be copied.
    """
    job.check_memory()
    plan, measured = resolve(job, todo, job.load())
    console.detail(f"precision: {measured}")
    dear = [image for index, image in enumerate(todo) if is_dear(plan, index, image)]
    check_space(plan, sum(map(copy_bytes, dear)), scratch.path)
    scratch.clear()
    for index, image in enumerate(todo):
        if image.foreground is not None:
            scratch.save_foreground(plan.images[index].key, image.foreground)
    plan = copy_dear_sources(plan, todo, scratch)
    job.clear_outputs(todo, scratch, plan)
    return plan, measured


def resolve(job: Job, todo: Sequence[Image], model: Model) -> tuple[Plan, Measured]:
    """The plan of the images `todo`, and what was measured for it. Raises UsageError and InputError."""
    return measured_plan(job, draft(job, todo), todo, model)


def draft(job: Job, todo: Sequence[Image]) -> Plan:
    """The plan before anything was measured. Raises UsageError and InputError."""
    request, spec = job.request, job.spec
    tile, overlap = choose_tile(request, spec)
    return Plan(
        model=job.model_identity,
        classes=spec.classes,
        thresholds=spec.thresholds if spec.thresholds and len(set(spec.thresholds)) > 1 else None,
        channels=spec.channels,
        margin=spec.margin,
        tile=tile,
        overlap=overlap,
        blend=request.blend,
        planes=len(spec.classes),
        tta=request.tta,
        probabilities=request.probabilities,
        uncertainty=request.uncertainty,
        on_error=request.on_error,
        precision="fp32" if request.precision == "auto" else request.precision,
        device=job.device,
        batch_size=1 if request.batch_size == "auto" else request.batch_size,
        threads=1,
        images=tuple(planned(image, tile, overlap) for image in todo),
    )


def measured_plan(job: Job, plan: Plan, todo: Sequence[Image], model: Model) -> tuple[Plan, Measured]:
    """A draft with every "auto" settled, by tiles of the first image. Raises UsageError; ReadError, AnswerError."""
    if is_here(plan.device):
        with borrowed(plan.device):
            measured = measure(model, todo[0].view, plan, job.request)
    else:
        measured = on_gpu(measure_planned, job.shipped(), plan, job.request)
    plan = plan.model_copy(
        update={
            "precision": measured.precision,
            "batch_size": measured.batch_size,
            "compiled": measured.compiled,
            "planes": measured.planes,
            "activations": measured.activations,
            "weights": measured.weights,
        }
    )
    return _fitted(plan, todo, job.request.max_memory), measured


def planned(image: Image, tile: int, overlap: int) -> ImagePlan:
    """One image as a plan with such tiles has it. Raises UsageError and InputError."""
    request = image.request
    return ImagePlan(
        source=image.stored.path,
        select=image.select,
        identity=image.identity,
        sampling=image.sampling,
        shape=image.view.shape,
        channels=image.channels,
        region=image.region,
        cells_per_block=choose_cells(request, image.region, tile, overlap),
        nodata=image.spec.nodata,
        skip=request.foreground != "all",
        foreground=image.foreground.digest if image.foreground is not None else None,
        output=str(image.out),
    )


def _fitted(plan: Plan, todo: Sequence[Image], max_memory: int | None) -> Plan:
    """The plan with blocks small enough for `max_memory`, or else with workers that keep nothing between layers.

    Raises UsageError naming the least that works.
    """
    if max_memory is None:
        return plan
    itemsize = max(image.view.dtype.itemsize for image in todo)
    most, least = max(i.cells_per_block for i in plan.images), least_cells(plan.tile, plan.overlap)
    cells = [n for n in range(most, least - 1, -1) if n * plan.stride % 2 == 0]
    need = 0
    for smaller in (_made_small(plan, n, frugal) for frugal in (False, True) for n in cells):
        need = smaller.worker_bytes(itemsize)
        if need <= max_memory:
            return smaller
    raise UsageError(
        f"--max-memory {readable_bytes(max_memory)} is too small for one tile of {plan.tile} px: "
        f"the least that works is {ceil(_MEMORY_SWAY * need / 10**7) * 10}M, or choose a smaller --tile"
    )


def _made_small(plan: Plan, cells: int, frugal: bool) -> Plan:
    images = tuple(
        image.model_copy(update={"cells_per_block": min(cells, image.cells_per_block)})
        for image in plan.images
    )
    return plan.model_copy(update={"images": images, "frugal": frugal})


def amplification(plan: Plan, index: int, image: Image) -> float:
    """How many times what the blocks need is decoded for them; 1 for what is decoded once and kept."""
    region, view = plan.images[index].region, image.view
    if _is_kept(image):
        return 1.0
    return read_bytes(plan, index, view) / (region.area * view.shape[2] * view.dtype.itemsize)


def is_dear(plan: Plan, index: int, image: Image) -> bool:
    """Whether an image is to be copied before it is segmented."""
    view = image.view
    whole = view.shape[0] * view.shape[1] * view.shape[2] * view.dtype.itemsize
    return (
        not _is_kept(image)
        and amplification(plan, index, image) > DEAR
        and read_bytes(plan, index, view) > _WHOLE * whole
    )


def copy_bytes(image: Image) -> int:
    """Upper bound of what a copy of the level that is read takes."""
    size = image.stored.levels[image.sampling.level if image.sampling else 0]
    return size.area * image.stored.shape[2] * image.stored.dtype.itemsize


def copy_dear_sources(plan: Plan, todo: Sequence[Image], scratch: Scratch) -> Plan:
    """Copy every image whose layout makes windows dear, once, into the scratch; the plan then reads the copies."""
    from raysegment.raster.transcode import transcode

    images = list(plan.images)
    for index, image in enumerate(todo):
        if not is_dear(plan, index, image):
            continue
        level = image.sampling.level if image.sampling else 0
        console.say(
            f"{image.stored.path}: its layout would have it decoded {amplification(plan, index, image):.1f} times "
            "over: copying it once into the scratch"
        )
        total = image.stored.levels[level].area / 1e6
        try:
            with console.progress("copy", total, "MP") as bar:
                copy = transcode(
                    image.stored,
                    scratch.copies,
                    identity=image.identity,
                    level=level,
                    progress=functools.partial(_advance, bar),
                )
        except ReadError as e:
            if plan.on_error == "fail":
                raise
            console.warn(f"{e}: reading the damaged source itself, slowly")
            continue
        images[index] = images[index].model_copy(update={"copy_name": copy.name})
    return plan.model_copy(update={"images": tuple(images)})


def _advance(bar: console.Progress, pixels: int) -> None:
    bar.advance(pixels / 1e6)


def _is_kept(image: Image) -> bool:
    """A PNG or JPEG is decoded whole, once in each worker."""
    from raysegment.raster.picture import PictureRaster

    return isinstance(image.stored, PictureRaster)
