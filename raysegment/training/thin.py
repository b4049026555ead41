"""Masks that hold too little: nothing to learn from, a class of a few pixels, a class that validation never sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from raysegment import console
from raysegment.classes import ClassMap

#: A class of fewer training pixels than this is smaller than what one convolution sees.
_FEW_PX = 100
_SHOWN = 3


def warn_of_thin_masks(
    classes: ClassMap, names: Sequence[str], counts: Sequence[np.ndarray], train: int
) -> None:
    """Say what training goes on with, but a person should know. `counts`: pixels (classes,) of every scene's mask, the
    first `train` of them for training."""
    for text in thin_masks(classes, names, counts, train):
        console.warn(text)


def thin_masks(
    classes: ClassMap, names: Sequence[str], counts: Sequence[np.ndarray], train: int
) -> Iterator[str]:
    """One line for each thing of that kind."""
    empty = [name for name, count in zip(names, counts, strict=True) if not count.any()]
    if empty:
        yield f"nothing is learned from {_several(empty)}: every pixel of the mask is ignored or without data"
    learned, held = np.sum(counts[:train], axis=0), np.sum(counts[train:], axis=0)
    for index, name in enumerate(classes.names):
        if 0 < learned[index] < _FEW_PX:
            where = [n for n, c in zip(names[:train], counts[:train], strict=True) if c[index]]
            yield (
                f"class {name!r} has {learned[index]} px in the training masks ({_several(where)}), too few to learn: "
                "ignore it, or add it to another class, with --classes FILE.toml"
            )
    missing = [name for i, name in enumerate(classes.names) if len(counts) > train and not held[i]]
    if missing:
        yield (
            f"the validation masks hold no pixel of {', '.join(map(repr, missing))}: how well they are found "
            "cannot be measured; choose other images with --val"
        )


def _several(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
