"""Scenes of which nothing is learned or scored: wherever the mask has a class, the image has no data."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from raysegment import console
from raysegment.classes import ClassMap
from raysegment.errors import InputError
from raysegment.threads import READERS, in_order
from raysegment.training.forms import Scene
from raysegment.training.thin import several
from raysegment.training.windows import IGNORE, WindowReader, says_gaps


def refuse_blank(
    train: Sequence[Scene], val: Sequence[Scene], channels: Sequence[int], classes: ClassMap
) -> None:
    """Say which scenes are blank. Raises InputError where all of training or all of validation is.

    Reads only images whose header says what is no data (a page of a mask aside), and these to the first pixel that
    counts: of most, one block.
    """
    scenes = (*train, *val)
    reader = WindowReader(scenes, channels, classes)
    blank = []
    with (
        console.progress("data", len(scenes), "images") as bar,
        closing(in_order(lambda i: _is_blank(reader, i), range(len(scenes)), READERS)) as looked,
    ):
        for is_blank in looked:
            blank.append(is_blank)
            bar.advance()
    for part, of, nothing, cure in (
        (train, blank[: len(train)], "learn from", "give other images"),
        (val, blank[len(train) :], "score", "choose other images with --val"),
    ):
        names = [scene.name for scene, is_blank in zip(part, of, strict=True) if is_blank]
        if names and len(names) == len(part):
            raise InputError(
                f"where the masks have a class, the images have no data ({several(names)}): there is nothing to "
                f"{nothing}; {cure}"
            )
        if names:
            console.warn(
                f"there is nothing to {nothing} in {several(names)}: the image has no data where its mask has a class"
            )


def _is_blank(reader: WindowReader, index: int) -> bool:
    with closing(reader.scenes[index].image.open()) as image:
        if not says_gaps(image):
            return False
    return not any((target != IGNORE).any() for _, target in reader.targets(index))
