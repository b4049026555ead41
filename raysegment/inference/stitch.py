"""Records to final pixels: a shard of the mask from the cores and rims of the blocks that reach into it."""

from __future__ import annotations

import numpy as np

from raysegment.geometry import Window
from raysegment.inference.labels import labels_of
from raysegment.inference.plan import Plan
from raysegment.inference.scratch import Scratch


def stitch(plan: Plan, index: int, window: Window, scratch: Scratch) -> np.ndarray:
    """Labels of `window` (image pixels, inside the region) of image `index`: (h, w) of the plan's label dtype.

    Rims that cover the same pixels belong to neighbours and are summed exactly; then the class is taken.
    """
    grid = plan.grids[index]
    labels = np.full(window.size, plan.nodata, plan.label_dtype)
    sums: dict[Window, np.ndarray] = {}
    for block in grid.blocks_reaching(window):
        record = scratch.open_record(index, block)
        own = record.own.intersect(window)
        if own.area:
            labels[own.slices(window)] = record.labels()[own.slices(record.own)]
        for name, rim in grid.rims(block).items():
            part = rim.intersect(window)
            if part.area:
                shared = _shared_band(name, part, window)
                if shared not in sums:
                    sums[shared] = np.zeros((len(plan.classes), *shared.size), np.int32)
                rows, cols = part.slices(shared)
                sums[shared][:, rows, cols] += record.rim(name, rim, part)
    for band, total in sums.items():
        inside = labels[band.slices(window)]
        found = labels_of(total, plan.thresholds, plan.label_dtype)
        labels[band.slices(window)] = np.where(inside == plan.nodata, plan.nodata, found)
    return labels


def _shared_band(name: str, part: Window, window: Window) -> Window:
    """The band of pixels that a rim shares with the neighbours' rims, cut to the shard.

    Tops and bottoms meet along the whole width (four of them at a corner); lefts and rights meet in pairs.
    """
    if name in ("top", "bottom"):
        return Window(y=part.y, x=window.x, height=part.height, width=window.width)
    return part
