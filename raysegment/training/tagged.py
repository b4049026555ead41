"""Pixels that a mask says are no data: often those of a class, as tools tag 0 unasked, or leave the background
transparent, and people mean a class by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from raysegment.classes import NO_CLASS, ClassMap
from raysegment.console import counted
from raysegment.training.codes import Code, FileCodes


def hidden(files: Sequence[FileCodes]) -> Counter[int]:
    """Pixels that the tags of the masks hide, by the value that they name."""
    found: Counter[int] = Counter()
    for file in files:
        if file.nodata is not None and file.hidden:
            found[file.nodata] += file.hidden
    return found


def as_classes(classes: ClassMap, files: Sequence[FileCodes]) -> list[FileCodes]:
    """The same files, with the pixels counted that a tag hides and whose value is one of `classes` all the same.

    That is how windows are read (survey.mask_valid): where some masks of a set tag 0 and others show it, it is one
    class in all of them. A mask whose greater part is background must not lose it to a tool's habit.
    """
    return [_revealed(file) if _is_class(classes, file) else file for file in files]


def tagged_notes(classes: ClassMap, files: Sequence[FileCodes]) -> Iterator[str]:
    """One line for each value that some masks tag as nodata: left out if `classes` says nothing of it, or a class; and
    one for what is transparent, NaN or masked out."""
    tags = hidden(files)
    pixels = sum(file.counts.total() + file.transparent for file in files) + tags.total()
    drawn = [file for file in files if file.kind == "labels" and file.transparent]
    painted = [file for file in files if file.kind != "labels" and file.transparent]
    for what, without, cure in (
        (
            "pixels without data (alpha 0, NaN or a mask page)",
            painted,
            "save them opaque, with a value of their own",
        ),
        ("polygons without a class", drawn, "give them its name"),
    ):
        if without:
            share = sum(file.transparent for file in without) / pixels
            yield (
                f"{what} in {counted(len(without), 'mask')} are left out, {share:.1%} of all pixels: if they are of a "
                f"class, {cure}"
            )
    for value, count in sorted(tags.items()):
        index = classes.codes.get(value)
        masks = sum(file.nodata == value and file.hidden > 0 for file in files)
        tagged = f"{value} is tagged as nodata in {masks} mask{'s' * (masks > 1)}"
        if index is None:
            yield (
                f"{tagged}, which leaves out {count / pixels:.1%} of the pixels: if it is a class, name the value in "
                "a classes file (--classes)"
            )
        elif index != NO_CLASS:
            yield (
                f"{tagged} and a class in others: it counts as {classes.names[index]!r} in all of them, "
                f"{count / pixels:.1%} of the pixels by the tag; where it means no data, store another value"
            )


def _is_class(classes: ClassMap, file: FileCodes) -> bool:
    return file.nodata is not None and classes.codes.get(file.nodata, NO_CLASS) != NO_CLASS


def _revealed(file: FileCodes) -> FileCodes:
    assert file.nodata is not None
    code: Code = (file.nodata,) * 3 if file.kind == "colours" else file.nodata
    return replace(file, counts=file.counts + Counter({code: file.hidden}), hidden=0)
