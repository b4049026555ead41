"""Which scenes are trained on and which are validated on."""

from __future__ import annotations

import os
from collections.abc import Sequence

from raysegment.errors import InputError
from raysegment.training.forms import Listing, Scene, listing_of, scenes_of

#: What is held back where nobody says otherwise.
DEFAULT_SHARE = 0.2


def divide(
    listing: Listing, data: str | os.PathLike[str], val: str | float
) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """(training, validation) of what `data` lists. `val`: another training set, or a share of this one.

    What the set itself says (a manifest's column ``split``) comes before a share; beside another training set its own
    validation rows are left out. Raises InputError when one of the two would be empty.
    """
    scenes = scenes_of(listing, data)
    says = [pair.split for pair in listing.pairs]
    own = tuple(s for s, part in zip(scenes, says, strict=True) if part == "val")
    rest = tuple(s for s, part in zip(scenes, says, strict=True) if part != "val")
    if isinstance(val, str):
        other = listing_of(val)
        train, held = rest, _validation_of(other, scenes_of(other, val))
    elif own:
        train, held = rest, own
    elif "train" in says:
        raise InputError(f"{data}: its split names no validation rows: set some to val, or pass --val DATA")
    else:
        train, held = split(scenes, val)
    if not train:
        raise InputError(f"{data}: its split names no training rows: set some to train")
    return train, held


def split(scenes: Sequence[Scene], fraction: float) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """(training, validation): the last `fraction` of the names, at least one and not all, is for validation."""
    if len(scenes) < 2:
        raise InputError(
            f"{scenes[0].image} is the only image: give images to validate on with --val DATA, or a second one"
        )
    held = min(max(1, round(len(scenes) * fraction)), len(scenes) - 1)
    return tuple(scenes[:-held]), tuple(scenes[-held:])


def _validation_of(listing: Listing, scenes: Sequence[Scene]) -> tuple[Scene, ...]:
    """The rows that a manifest marks so, or all where it marks none."""
    own = tuple(s for s, pair in zip(scenes, listing.pairs, strict=True) if pair.split == "val")
    return own or tuple(scenes)
