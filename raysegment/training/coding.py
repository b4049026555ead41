"""The coding of a set of masks, read off the masks: found beyond doubt, or refused with what was seen and a way out."""

from __future__ import annotations

from collections.abc import Sequence

from raysegment.classes import NO_CLASS, ClassMap, class_code
from raysegment.errors import InputError
from raysegment.mask.coding import Coding, read_coding
from raysegment.model.spec import Class, Colour, default_classes
from raysegment.threads import OPENERS, in_order
from raysegment.training.codes import Code, FileCodes, entry, greys_as_values, sorted_codes, total
from raysegment.training.doubt import find_doubt
from raysegment.training.forms import File, Source
from raysegment.training.resolution import Resampled


def told(masks: Sequence[Source]) -> ClassMap | None:
    """The coding that all masks carry in their own metadata, as those written here do; None when one does not."""
    codings = list(in_order(_told_by, masks, OPENERS))
    first = codings[0]
    if first is None or any(
        c is None or (c.classes, c.nodata) != (first.classes, first.nodata) for c in codings
    ):
        return None
    classes = tuple(c.model_copy(update={"value": i}) for i, c in enumerate(first.classes))
    codes = {**{i: i for i in range(len(classes))}, first.nodata: NO_CLASS}
    return ClassMap(classes, codes, source="the masks' own coding")


def _told_by(mask: Source) -> Coding | None:
    if isinstance(mask, Resampled):
        mask = mask.source
    return read_coding(mask.path) if isinstance(mask, File) else None


def infer(files: Sequence[FileCodes]) -> ClassMap:
    """Distinct codes in ascending order become class 0, class 1, …; polygons' labels lend their names.

    Raises InputError where that is a guess, with the lines of a classes file that would settle it.
    """
    alike = greys_as_values(files)
    if doubt := find_doubt(alike):
        raise InputError(str(doubt))
    codes = sorted_codes(total(alike))
    classes = tuple(
        Class(
            name=_name(code, d.name, codes),
            colour=_own_colour(alike, code) or d.colour,
            value=None if isinstance(code, str) else code,
        )
        for d, code in zip(default_classes(len(codes)), codes, strict=True)
    )
    return ClassMap(classes, {class_code(c): i for i, c in enumerate(codes)}, source="the training masks")


def _name(code: Code, default: str, codes: Sequence[Code]) -> str:
    if isinstance(code, str):
        return code
    if not isinstance(codes[-1], str):
        return default
    return "no polygon" if "background" in codes else "background"


def _own_colour(files: Sequence[FileCodes], code: Code) -> Colour | None:
    """The colour that the masks themselves give a code."""
    if isinstance(code, tuple):
        return code
    return next((colour for f in files if (colour := entry(f, code)) is not None), None)
