"""What is worth knowing of a training set: every file, the coding of its masks, class balance, every problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysegment import console
from raysegment.classes import ClassMap, spelled_codes
from raysegment.console import counted
from raysegment.errors import RaysegmentError
from raysegment.geometry import Size
from raysegment.raster import Raster
from raysegment.storage import Location
from raysegment.threads import READERS, in_order
from raysegment.training.codes import FileCodes, codings, greys_as_values
from raysegment.training.coding import infer, told
from raysegment.training.dataset import identities
from raysegment.training.division import DEFAULT_SHARE, divide
from raysegment.training.doubt import find_doubt
from raysegment.training.forms import Listing, Pair, listing_of
from raysegment.training.forms.find import header, turned
from raysegment.training.forms.leaks import overlaps, same_pictures
from raysegment.training.forms.placed import displaced_note, displacement
from raysegment.training.survey import class_pixels, mask_codes, refuse_unknown
from raysegment.training.tagged import as_classes, tagged_notes
from raysegment.training.thin import Origin, thin_masks, why_not_learned


@dataclass(frozen=True)
class _Looked:
    """What is known of one image and its mask; what is None could not be found out."""

    name: str
    split: str | None = None
    size: Size | None = None
    dtype: str | None = None
    channels: int | None = None
    mask: FileCodes | None = None
    problems: tuple[str, ...] = ()
    displacement: float = 0.0
    """Of the mask on the ground, in pixels."""

    def row(self, coding: str | None) -> dict[str, Any]:
        return {
            "name": self.name,
            **({} if self.split is None else {"split": self.split}),
            "size": list(self.size) if self.size is not None else None,
            "dtype": self.dtype,
            "channels": self.channels,
            "coding": coding,
            "mask": self.mask.held if self.mask is not None else None,
        }


def dataset_facts(root: Location, classes_file: str | None = None) -> dict[str, Any]:
    """Of a training set in any form. Every mask is read once; nothing is refused, all problems are listed.

    Raises InputError for a set that is none, and for a classes file that cannot be read.
    """
    given = None if classes_file is None else ClassMap.load(classes_file)
    listing = listing_of(root)
    sources = [pair.mask for pair in listing.pairs if pair.mask is not None]
    if given is None and sources:
        given = told(sources)
    pairs = []
    with (
        console.progress("check", len(listing.pairs), "images") as progress,
        closing(in_order(lambda pair: _looked_at(pair, given), listing.pairs, READERS)) as looked,
    ):
        for pair in looked:
            pairs.append(pair)
            progress.advance()
    problems = [*listing.problems, *(p for pair in pairs for p in pair.problems), *_odd_ones_out(pairs)]
    coded = [pair for pair in pairs if pair.mask is not None]
    masks = [pair.mask for pair in coded if pair.mask is not None]
    doubt = find_doubt(greys_as_values(masks)) if masks and given is None else None
    if doubt is not None:
        problems.append(str(doubt))
    found = None if not masks or doubt is not None else given or infer(masks)
    names = codings(masks, are_classes=given is not None)
    notes = list(listing.notes)
    if note := displaced_note([p.name for p in pairs], [p.displacement for p in pairs]):
        notes.append(note)
    if found is not None:
        notes += tagged_notes(found, masks)
        masks = as_classes(found, masks)
        counts = [class_pixels(found, m) for m in masks]
        origin: Origin = "file" if classes_file is not None else "seen" if given is None else "told"
        notes += thin_masks(found, [p.name for p in coded], counts, len(masks), origin)
        pixels = np.sum(counts, axis=0)
        if why := why_not_learned(found, pixels, np.zeros_like(pixels), origin):
            problems.append(why)
    if not problems and len(pairs) > 1:
        _look_for_leaks(listing, root, problems, notes)
    each = iter(names)
    rows = [pair.row(None if pair.mask is None else next(each)) for pair in pairs]
    return {
        "images": sum(pair.image is not None for pair in listing.pairs),
        "masks": sum(pair.mask is not None for pair in listing.pairs),
        "pairs": sum(pair.image is not None and pair.mask is not None for pair in listing.pairs),
        "megapixels": sum(p.size.area for p in pairs if p.size is not None) / 1e6,
        "coding": _several(Counter(names)),
        "classes": [] if found is None else _balance(found, masks),
        "files": rows,
        "notes": notes,
        "problems": problems,
        "suggested_classes_file": [] if doubt is None else list(doubt.classes_file),
    }


def _look_for_leaks(listing: Listing, root: Location, problems: list[str], notes: list[str]) -> None:
    """Between what `train` would learn from and what it would hold back if nobody said otherwise."""
    try:
        train, val = divide(listing, root, DEFAULT_SHARE)
        same = same_pictures(train, val, [image for image, _ in identities([*train, *val])])
        problems += [f"the same picture is in training and in validation: {leak}" for leak in same]
        notes += [
            f"training and validation overlap on the ground: {leak}, {leak.share:.1%}"
            for leak in overlaps(train, val)
        ]
    except RaysegmentError as e:
        problems.append(str(e))


def _looked_at(pair: Pair, given: ClassMap | None) -> _Looked:
    problems: list[str] = []
    facts: dict[str, Any] = {}
    image: Raster | None = None
    mask: Raster | None = None
    if pair.image is not None:
        try:
            image = header(pair.image)
            facts["size"], facts["dtype"] = Size(*image.shape[:2]), str(image.dtype)
            facts["channels"] = image.shape[2] - (image.alpha is not None)
        except RaysegmentError as e:
            problems.append(str(e))
    if pair.mask is not None:
        try:
            mask = header(pair.mask)
            facts["mask"] = mask_codes(pair.mask, given)
            if given is not None:
                refuse_unknown(given, facts["mask"])
        except RaysegmentError as e:
            problems.append(str(e))
    if image is not None and mask is not None:
        (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape[:2]
        if why := turned(pair, image, mask):
            problems.append(why)
        elif (height, width) != (mask_height, mask_width):
            problems.append(
                f"{pair.mask} is {mask_height} × {mask_width} px, its image {height} × {width} px"
            )
        else:
            facts["displacement"] = displacement(image, mask)
    return _Looked(pair.name, pair.split, **facts, problems=tuple(problems))


def _odd_ones_out(pairs: Sequence[_Looked]) -> list[str]:
    """Images that are not of the commonest kind."""
    kinds = Counter((p.channels, p.dtype) for p in pairs if p.dtype is not None)
    if len(kinds) < 2:
        return []
    (channels, dtype), _ = kinds.most_common(1)[0]
    return [
        f"{p.name} has {counted(p.channels or 0, 'channel')} of {p.dtype}, most images {channels} of {dtype}"
        for p in pairs
        if p.dtype is not None and (p.channels, p.dtype) != (channels, dtype)
    ]


def _balance(found: ClassMap, files: Sequence[FileCodes]) -> list[dict[str, Any]]:
    """Pixels of each class and the number of files that have it."""
    counts = np.stack([class_pixels(found, file) for file in files])
    pixels, holders = counts.sum(axis=0), (counts > 0).sum(axis=0)
    total = int(pixels.sum())
    return [
        {
            "index": i,
            "name": c.name,
            "value": _value(found, i),
            "pixels": int(pixels[i]),
            "share": int(pixels[i]) / total if total else 0.0,
            "files": int(holders[i]),
        }
        for i, c in enumerate(found.classes)
    ]


def _value(found: ClassMap, index: int) -> int | str:
    """What means a class in the masks: its value if it has one, else all of them in words."""
    codes = [code for code, target in found.codes.items() if target == index]
    as_colours = isinstance(found.classes[index].value, tuple)
    text = spelled_codes(codes, as_colours=as_colours)
    return codes[0] if text == str(codes[0]) else text


def _several(counts: Counter[str]) -> str | None:
    """ "0/255 (30 files)", the commonest first."""
    said = [f"{coding} ({counted(n, 'file')})" for coding, n in counts.most_common(3)]
    more = f"; {counted(len(counts) - 3, 'other coding')}" if len(counts) > 3 else ""
    return "; ".join(said) + more if said else None
