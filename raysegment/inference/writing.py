"""Shards of the masks, each written whole by one worker, as soon as all it is made of is there."""

from __future__ import annotations

import time

import numpy as np

from raysegment.geometry import Size, Window
from raysegment.inference.answer import Row
from raysegment.inference.assembly import Shard
from raysegment.inference.plan import Plan
from raysegment.inference.scratch import Scratch
from raysegment.inference.stitch import stitch
from raysegment.mask.outputs import Outputs
from raysegment.mask.store import mode_2x2
from raysegment.storage import location

#: Up to so many, comparing with each is faster than `bincount`, which first makes every label eight bytes wide.
_FEW_CLASSES = 64


def outputs_of(plan: Plan, index: int) -> Outputs:
    """What is written of image `index`."""
    image = plan.images[index]
    sides = tuple(name for name in ("probabilities", "uncertainty") if getattr(plan, name))
    return Outputs.at(
        location(image.output),
        Size(*image.region.size),
        plan.label_dtype,
        len(plan.classes),
        plan.block_edge(index),
        sides,
        plan.recipe(image),
    )


def write_shard(plan: Plan, scratch: Scratch, shard: Shard, window: Window, in_image: Window | None) -> Row:
    """Write `window` of a level: level 0, at `in_image`, from the blocks' records; above, from the level before.

    What the next level is made of, the shard at half its size, is left in the scratch: labels are not read back.
    Answers "class_pixels" (of level 0: pixels of each class, nodata not counted; empty above) and "work_s".
    """
    started = time.process_time()  # zarr encodes in threads of its own
    outputs = outputs_of(plan, shard.image)
    counts: list[int] = []
    if in_image is None:
        labels = _joined(plan, scratch, shard, window)
        outputs.mask.write(shard.level, window, labels)
    else:
        if outputs.mask.has_shard(0, window):  # it is the last of its files that is written
            labels = outputs.mask.read(0, window)
        else:
            found = stitch(plan, shard.image, in_image, scratch)
            outputs.write(window, found)
            labels = found["labels"]
        counts = class_counts(labels, len(plan.classes)).tolist()
    if shard.level + 1 < len(outputs.mask.level_shapes):
        scratch.save_half(plan.images[shard.image].key, shard, mode_2x2(labels))
    return {"class_pixels": counts, "work_s": time.process_time() - started}


def _joined(plan: Plan, scratch: Scratch, shard: Shard, window: Window) -> np.ndarray:
    """The up to four shards of the level before that a shard stands for, side by side: at half their size."""
    labels = np.empty(window.size, plan.label_dtype)
    edge = plan.block_edge(shard.image) // 2
    for row in (2 * shard.row, 2 * shard.row + 1):
        for col in (2 * shard.col, 2 * shard.col + 1):
            place = Window(y=row * edge, x=col * edge, height=edge, width=edge).intersect(window)
            if place.area:
                part = Shard(shard.image, shard.level - 1, row, col)
                half = scratch.load_half(plan.images[shard.image].key, part, plan.label_dtype)
                labels[place.slices(window)] = half.reshape(place.size)
    return labels


def class_counts(labels: np.ndarray, classes: int) -> np.ndarray:
    """Pixels of each class: int64 (classes,); nodata is not counted."""
    if classes > _FEW_CLASSES:
        return np.bincount(labels.reshape(-1), minlength=classes)[:classes].astype(np.int64)
    return np.array([np.count_nonzero(labels == i) for i in range(classes)], np.int64)
