"""A data fingerprint: what the images, their objects and the machine are like, and the settings that follow from it.

The rules are few and plain, and every outcome is printed, written to config.toml and overridden by its option:

========== ==========================================================================================
tile       256 px; the whole image where all are smaller
depth      4 poolings, fewer where the tile's coarsest map would be less than 4 px wide
batch size 8, less where the windows' activations would take more than half of the memory
========== ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from raysegment.classes import ClassMap
from raysegment.console import counted
from raysegment.errors import UsageError
from raysegment.geometry import Window
from raysegment.training.dataset import Format, Scene

if TYPE_CHECKING:
    from raysegment.training.probe import Probe

_TILE = 256
_DEPTH, _COARSEST_PX = 4, 4
_BATCH = 8
#: Of the memory, what the windows of one batch may take.
_SHARE = 0.5
#: What a training step takes at its peak, over what autograd keeps: gradients and the convolutions' scratch.
_TRANSIENT = 1.5
#: Masks that are looked at, and how much of each.
_LOOKED_AT, _LOOK_PX = 32, 1024


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What the auto settings follow from."""

    images: int
    pixels: int
    """Of all training images."""
    height: int
    """Median, as the width."""
    width: int
    longest_edge: int
    """Of the largest image."""
    channels: int
    dtype: str
    object_px: float | None
    """How far one goes straight through an object, mean over the class where it is most, the commonest class left
    out. None where the masks that were looked at hold one class."""
    memory: int
    """Bytes that training may use: of the GPUs, or of this machine."""

    def __str__(self) -> str:
        objects = "" if self.object_px is None else f", objects about {self.object_px:.0f} px wide"
        return (
            f"{counted(self.images, 'image')} of about {self.height} × {self.width} px, "
            f"{self.channels} × {self.dtype}{objects}, "
            f"{self.memory / 2**30:.0f} GiB of memory"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def fingerprint(train: Sequence[Scene], fmt: Format, classes: ClassMap, memory: int) -> Fingerprint:
    """Of the training scenes; some masks are read, up to 32 windows of 1024 px. `memory`: bytes for one batch."""
    return Fingerprint(
        images=len(train),
        pixels=sum(s.size.area for s in train),
        height=round(median(s.size.height for s in train)),
        width=round(median(s.size.width for s in train)),
        longest_edge=max(max(s.size) for s in train),
        channels=len(fmt.channels),
        dtype=fmt.dtype,
        object_px=object_width(_looks(train, classes), len(classes.classes)),
        memory=memory,
    )


def object_width(masks: Iterator[np.ndarray] | Sequence[np.ndarray], classes: int) -> float | None:
    """Mean chord, in pixels, of the class where it is longest, without the commonest class.

    `masks`: class indices (h, w), the dtype's maximum = ignored. A chord is a straight run of one class along a row
    or a column, so this is pixels over runs; a run that is cut by the mask's edge counts as it is.
    """
    pixels, runs = np.zeros(classes), np.zeros(classes)
    for mask in masks:
        for lines in (mask, mask.T):
            begins = np.ones(lines.shape, bool)
            begins[:, 1:] = lines[:, 1:] != lines[:, :-1]
            for counts, found in ((pixels, lines.reshape(-1)), (runs, lines[begins])):
                counts += np.bincount(found[found < classes], minlength=classes)
    chords = np.divide(pixels, runs, out=np.zeros(classes), where=runs > 0)
    chords[pixels.argmax()] = 0
    return float(chords.max()) if chords.any() else None


def auto_tile(seen: Fingerprint) -> int:
    """Edge of a window in pixels, before it is rounded up to what the network takes."""
    return min(_TILE, seen.longest_edge)


def advice(seen: Fingerprint, tile: int) -> str | None:
    """What the fingerprint suggests and is not done by itself: a wider window costs its area at every step."""
    if seen.object_px is None or seen.object_px <= tile / 2 or seen.longest_edge < 2 * tile:
        return None
    return f"objects are wide for windows of {tile} px: --tile {2 * tile} would show more of each"


def auto_depth(tile: int) -> int:
    """Poolings of a U-Net on windows of `tile` px."""
    return next((d for d in range(_DEPTH, 1, -1) if tile >= _COARSEST_PX * 2**d), 1)


def auto_batch(taken: Probe, edge: int, memory: int, precision: str) -> int:
    """Windows per step, of all workers together. Raises UsageError where not even one fits."""
    window = taken.pixel_bytes * edge**2 * _TRANSIENT / (2 if precision == "bf16" else 1)
    room = memory * _SHARE - taken.weight_bytes
    if room < window:
        raise UsageError(
            f"one window of {edge} px takes about {(window + taken.weight_bytes) / 2**30:.1f} GiB in training, "
            f"half of the memory is {memory * _SHARE / 2**30:.1f} GiB: give a smaller --tile or --base-width, "
            "or --batch-size to try it all the same"
        )
    return min(_BATCH, int(room / window))


def _looks(train: Sequence[Scene], classes: ClassMap) -> Iterator[np.ndarray]:
    """The middles of some masks, as class indices."""
    from raysegment.training.survey import mask_valid

    every = max(1, len(train) // _LOOKED_AT)
    for scene in train[::every][:_LOOKED_AT]:
        height, width = (min(edge, _LOOK_PX) for edge in scene.size)
        window = Window(
            y=(scene.size.height - height) // 2, x=(scene.size.width - width) // 2, height=height, width=width
        )
        mask = scene.mask.open()
        codes = mask.read(window)
        yield classes.map(codes, mask_valid(mask, window, codes, classes), mask.palette)
        mask.close()
