"""Records to final pixels: a shard of the mask from the cores and rims of the blocks that reach into it."""

from __future__ import annotations

import numpy as np

from raysegment.geometry import Window
from raysegment.inference.outcome import outcome
from raysegment.inference.plan import Plan
from raysegment.inference.scratch import Scratch


def stitch(plan: Plan, index: int, window: Window, scratch: Scratch) -> dict[str, np.ndarray]:
    """What is written of `window` (image pixels, inside the region) of image `index`.

    By the names of :func:`~raysegment.inference.outcome.outcome`: (…, h, w). Rims that cover the same pixels belong to
    neighbours and are summed exactly; then the class is taken. Where a block is lost its neighbours' pixels that
    it reaches are lost with it.
    """
    grid = plan.grids[index]
    found = _empty(plan, window)
    sums: dict[Window, np.ndarray] = {}
    lost: list[Window] = []
    for block in grid.blocks_reaching(window):
        record = scratch.open_record(plan.images[index].key, block)
        own = record.own.intersect(window)
        if own.area:
            for name, values in found.items():
                values[..., *own.slices(window)] = record.core(name)[..., *own.slices(record.own)]
        if record.failed:
            lost.append(grid.extent(block).intersect(window))
        for name, rim in grid.rims(block).items():
            part = rim.intersect(window)
            share = record.rim(name, rim, part) if part.area else None
            if share is not None:
                shared = _shared_band(name, part, window)
                if shared not in sums:
                    sums[shared] = np.zeros((plan.sums, *shared.size), np.int32)
                rows, cols = part.slices(shared)
                sums[shared][:, rows, cols] += share
    for band, total in sums.items():
        at = band.slices(window)
        is_data = found["labels"][at] != plan.nodata
        for name, values in outcome(total, plan).items():
            np.copyto(found[name][..., *at], values, where=is_data)
    for part in lost:
        found["labels"][part.slices(window)] = plan.nodata
    blank = found["labels"] == plan.nodata
    if blank.any():
        for name in found.keys() - {"labels"}:
            found[name][..., blank] = 0
    return found


def _empty(plan: Plan, window: Window) -> dict[str, np.ndarray]:
    found = {"labels": np.full(window.size, plan.nodata, plan.label_dtype)}
    if plan.probabilities:
        found["probabilities"] = np.zeros((len(plan.classes), *window.size), np.uint8)
    if plan.uncertainty:
        found["uncertainty"] = np.zeros(window.size, np.uint8)
    return found


def _shared_band(name: str, part: Window, window: Window) -> Window:
    """The band of pixels that a rim shares with the neighbours' rims, cut to the shard.

    Tops and bottoms meet along the whole width (four of them at a corner); lefts and rights meet in pairs.
    """
    if name in ("top", "bottom"):
        return Window(y=part.y, x=window.x, height=part.height, width=window.width)
    return part
