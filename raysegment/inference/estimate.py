"""`plan`: what `infer` would do, without doing it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from raysegment.inference.job import Job
from raysegment.inference.options import Auto, Options, check_workers, itemsize_of, request_of, worker_count
from raysegment.inference.plan import VIEWS, Plan, read_bytes
from raysegment.inference.resolve import amplification, is_dear, resolve
from raysegment.inference.results import PlanResult
from raysegment.inference.sources import expand
from raysegment.model.architectures import receptive_radius
from raysegment.runtime import joined

if TYPE_CHECKING:
    from raysegment.inference.image import Image
    from raysegment.model.model import Model
    from raysegment.model.spec import ModelSpec


@joined()
def plan(
    source: str | Path | Sequence[str | Path],
    *,
    model: str | os.PathLike[str] | Model,
    workers: int | Auto = "auto",
    select: Mapping[str, int] | None = None,
    **options: Unpack[Options],
) -> PlanResult:
    """What :func:`~raysegment.infer` with these arguments would do: grid, tiles, memory, bytes, time. Does nothing.

    A few tiles are forwarded, in this process or on a GPU of the cluster, to choose the precision and to estimate the
    time. Of several images, the figures are the sums, and shape and block those of the first.
    """
    check_workers(workers)
    nowhere = Path("/.raysegment-plan.zarr")  # where nothing lies, nor is written
    images = [(s, nowhere) for s in expand(source)]
    job = Job.open(images, model, request_of(options), select, workers)
    job.check()
    job.check_memory()
    made, measured = resolve(job, job.images, job.load())
    count = worker_count(workers, made, itemsize_of(job))
    region = made.images[0].region
    skipped = sum(_skipped(made, i, image) for i, image in enumerate(job.images))
    reading = sum(read_bytes(made, i, image.view) for i, image in enumerate(job.images))
    views = VIEWS[made.tta]
    tiles = made.tiles - skipped
    indices = range(len(made.images))
    return PlanResult(
        shape=(region.height, region.width),
        tile=made.tile,
        overlap=made.overlap,
        block=made.block_edge(0),
        tiles=made.tiles,
        tiles_skipped=skipped,
        blocks=len(made.blocks),
        forward_passes=tiles * views,
        forward_pixels=tiles * views * made.tile**2,
        read_bytes=reading,
        read_amplification=max(amplification(made, i, image) for i, image in enumerate(job.images)),
        transcode=any(is_dear(made, i, image) for i, image in enumerate(job.images)),
        scratch_bytes=sum(map(made.scratch_bytes, indices)),
        output_bytes=sum(map(made.output_bytes, indices)),
        worker_bytes=made.worker_bytes(itemsize_of(job)),
        estimated_s=tiles * measured.tile_s / min(count, len(made.blocks)),
        auto={
            "precision": str(measured),
            "device": made.device,
            "batch_size": made.batch_size,
            "block": made.block_edge(0),
            "workers": count,
            "threads": made.threads,
        },
        looks=any(image.skip for image in made.images),
        whole=_whole(job.spec, made),
    )


def _whole(spec: ModelSpec, made: Plan) -> str:
    """When the mask is that of the network on the whole mirrored image at once: tiles then hold all that their pixels
    depend on, and padding reaches none. "" where that is not known of the network."""
    radius = receptive_radius(spec.architecture) if spec.architecture is not None else None
    if radius is None:
        return ""
    if made.margin:  # unpadded: every tile sees real pixels around it
        return "as of the network on the whole image at once"
    enough = next((o for o in range(2 * radius, made.tile, 2) if (made.tile - o) % spec.multiple == 0), None)
    if enough is None:
        return f"as of the network on the whole image at once with --blend none and tiles of more than {2 * radius} px"
    if made.overlap >= enough:
        return f"as of the network on the whole image at once{'' if made.blend == 'none' else ' with --blend none'}"
    return f"as of the network on the whole image at once with --blend none --overlap {enough}"


def _skipped(made: Plan, index: int, image: Image) -> int:
    """Tiles without a foreground pixel, as far as metadata tells."""
    if image.foreground is None:
        return 0
    grid = made.grids[index]
    rows, cols = grid.y.needed, grid.x.needed
    return sum(
        not image.foreground.any(grid.tile_window(row, col)) for row in range(*rows) for col in range(*cols)
    )
