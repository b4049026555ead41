"""Pixels that a mask's nodata tag hides: often those of a class, as tools tag 0 unasked and people mean background."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from raysegment.classes import ClassMap
from raysegment.training.codes import FileCodes


def hidden(files: Sequence[FileCodes]) -> Counter[int]:
    """Pixels that the tags of the masks hide, by the value that they name."""
    found: Counter[int] = Counter()
    for file in files:
        if file.nodata is not None and file.hidden:
            found[file.nodata] += file.hidden
    return found


def tagged_notes(classes: ClassMap, files: Sequence[FileCodes]) -> Iterator[str]:
    """One line for each value that is tagged as nodata and that `classes` says nothing of."""
    tags = hidden(files)
    pixels = sum(file.counts.total() for file in files) + tags.total()
    for value, count in sorted(tags.items()):
        if value not in classes.codes:
            masks = sum(file.nodata == value and file.hidden > 0 for file in files)
            yield (
                f"{value} is tagged as nodata in {masks} mask{'s' * (masks > 1)}, which leaves out "
                f"{count / pixels:.1%} of the pixels: if it is a class, name the value in a classes file (--classes)"
            )
