"""Masks that hold too little: nothing to learn from, a class of no or few pixels, one that validation never sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from raysegment import console
from raysegment.classes import ClassMap

#: A class of fewer training pixels than this is smaller than what one convolution sees.
_FEW_PX = 100
_SHOWN = 3

Origin = Literal["told", "file", "seen"]
"""Who says which classes there are: the masks' own metadata, which may be more than these masks show; a classes file;
or the masks' pixels, those of validation too."""


def why_not_learned(classes: ClassMap, learned: np.ndarray, held: np.ndarray, origin: Origin) -> str | None:
    """Why there is nothing to train on, and what to do; None where there is. `learned`, `held`: pixels (classes,) of
    all training and all validation masks."""
    if not learned.any():
        return "every pixel of the training masks is ignored: there is nothing to learn from"
    shown = np.flatnonzero(learned)
    if len(shown) == len(learned) or (origin == "told" and len(shown) > 1):
        return None
    if origin == "told":
        return (
            f"the training masks name {len(learned)} classes ({', '.join(classes.names)}) and show "
            f"{classes.names[shown[0]]!r} alone: training needs two, add images of another"
        )
    index = int(np.flatnonzero(learned == 0)[0])
    who, value = f"class {classes.names[index]!r}", classes.classes[index].value
    if origin == "file":
        who = f"{who} of {classes.source}"
    if not held[index]:
        return f"{who} does not occur in the training masks: mend its value there, or take it out"
    leave = f", or leave it out with --ignore-index {value}" if isinstance(value, int) else ""
    if origin == "file":
        leave = ", or name its value under ignore there"
    return f"{who} occurs in the validation masks alone: choose other images with --val{leave}"


def warn_of_thin_masks(
    classes: ClassMap, names: Sequence[str], counts: Sequence[np.ndarray], train: int, origin: Origin
) -> None:
    """Say what training goes on with, but a person should know. `counts`: pixels (classes,) of every scene's mask, the
    first `train` of them for training."""
    for text in thin_masks(classes, names, counts, train, origin):
        console.warn(text)


def thin_masks(
    classes: ClassMap, names: Sequence[str], counts: Sequence[np.ndarray], train: int, origin: Origin
) -> Iterator[str]:
    """One line for each thing of that kind."""
    empty = [name for name, count in zip(names, counts, strict=True) if not count.any()]
    if empty:
        yield f"nothing is learned from {several(empty)}: every pixel of the mask is ignored or without data"
    learned, held = np.sum(counts[:train], axis=0), np.sum(counts[train:], axis=0)
    for index, name in enumerate(classes.names):
        if 0 < learned[index] < _FEW_PX:
            where = [n for n, c in zip(names[:train], counts[:train], strict=True) if c[index]]
            yield (
                f"class {name!r} has {learned[index]} px in the training masks ({several(where)}), too few to learn: "
                "ignore it, or add it to another class, with --classes FILE.toml"
            )
        elif learned[index] == 0 and origin == "told":
            yield (
                f"class {name!r}, which the masks name, does not occur in the training masks: it stays a class of the "
                "model, which learns only not to answer it"
            )
    missing = [
        name
        for i, name in enumerate(classes.names)
        if len(counts) > train and not held[i] and (learned[i] or origin != "told")
    ]
    if missing:
        yield (
            f"the validation masks hold no pixel of {', '.join(map(repr, missing))}: how well they are found "
            "cannot be measured; choose other images with --val"
        )


def several(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
