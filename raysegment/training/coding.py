"""The coding of a set of masks, read off the masks: found beyond doubt, or refused with what was seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from raysegment.classes import IGNORE, ClassMap, class_code, pixel_codes
from raysegment.errors import InputError
from raysegment.mask.coding import read_coding
from raysegment.model.spec import Class, Colour, default_classes

if TYPE_CHECKING:
    from raysegment.raster import Raster

#: More distinct codes than this are not classes.
_MOST_CLASSES = 64
#: Values strictly between 0 and 255 that hold less than this share of the pixels are edges, not classes.
_EDGE_SHARE = 0.05
_HINT = "say what the values mean with --classes FILE.toml"
_SHOWN = 3

Kind = Literal["values", "palette", "colours"]
#: A stored value (of a palette mask: the index) or a colour, as masks code a class.
Code = int | Colour


@dataclass(frozen=True)
class FileCodes:
    """What one mask holds."""

    path: str
    kind: Kind
    counts: Counter[Code]
    """Pixels per code, where the mask has data."""
    palette: tuple[Colour, ...] | None = None

    def __str__(self) -> str:
        codes = [_written(c) for c in sorted(self.counts)]
        noun = {"values": "values", "palette": "palette entries", "colours": "colours"}[self.kind]
        many = f"{len(codes)} {noun} from {codes[0]} to {codes[-1]}" if codes else "no data"
        held = f"{noun} {', '.join(codes)}" if 0 < len(codes) <= 6 else many
        return f"{Path(self.path).name}: {held}"


def kind_of(mask: Raster) -> Kind:
    """How a mask codes its classes. Raises InputError when it has no one or three channels besides alpha."""
    channels = mask.shape[2] - (mask.alpha is not None)
    if channels not in (1, 3):
        raise InputError(f"{mask.path} has {channels} channels: a mask has one (values) or three (colours)")
    if channels == 3:
        return "colours"
    return "palette" if mask.palette is not None else "values"


def count_codes(kind: Kind, pixels: np.ndarray, valid: np.ndarray | None) -> Counter[Code]:
    """Pixels (h, w, channels) of a mask per code, where `valid`. Raises InputError for fractions."""
    if kind == "colours":
        r, g, b = (pixels[:, :, c].astype(np.int64) for c in range(3))
        stored = r << 32 | g << 16 | b
    else:
        stored = pixel_codes(pixels)
    found, counts = np.unique(stored if valid is None else stored[valid], return_counts=True)
    codes: list[Code] = [int(v) for v in found]
    if kind == "colours":
        codes = [(int(v) >> 32, int(v) >> 16 & 0xFFFF, int(v) & 0xFFFF) for v in found]
    return Counter(dict(zip(codes, map(int, counts), strict=True)))


def told(masks: Sequence[str]) -> ClassMap | None:
    """The coding that all masks carry in their own metadata, as those written here do; None when one does not."""
    codings = [read_coding(mask) for mask in masks]
    first = codings[0]
    if first is None or any(
        c is None or (c.classes, c.nodata) != (first.classes, first.nodata) for c in codings
    ):
        return None
    classes = tuple(c.model_copy(update={"value": i}) for i, c in enumerate(first.classes))
    codes = {**{i: i for i in range(len(classes))}, first.nodata: IGNORE}
    return ClassMap(classes, codes, source="the masks' own coding")


def infer(files: Sequence[FileCodes]) -> ClassMap:
    """Distinct codes in ascending order become class 0, class 1, … Raises InputError where that is a guess."""
    kinds = sorted({f.kind for f in files})
    if len(kinds) > 1:
        examples = [next(f for f in files if f.kind == kind) for kind in kinds]
        raise InputError(f"the masks mix codings ({_several(examples)}): {_HINT}")
    if doubt := _doubt(files):
        raise InputError(f"{doubt}: {_HINT}")
    codes = sorted(_total(files))
    classes = tuple(
        Class(name=d.name, colour=_own_colour(files, code) or d.colour, value=code)
        for d, code in zip(default_classes(len(codes)), codes, strict=True)
    )
    return ClassMap(classes, {class_code(c): i for i, c in enumerate(codes)}, source="the training masks")


def _doubt(files: Sequence[FileCodes]) -> str | None:
    """Why the codes of these masks, all of one kind, cannot be taken for classes."""
    total, kind = _total(files), files[0].kind
    codes = sorted(total)
    if len(codes) < 2:
        return f"the masks hold a single class ({_several(files)}) and training needs two"
    if kind == "values" and (doubt := _doubtful_values(files, total)) is not None:
        return doubt
    if len(codes) > _MOST_CLASSES:
        like = ", as anti-aliased grey does" if kind == "values" else ""
        where = _several(_widest(files))
        return f"the masks hold {len(codes)} different {kind}{like}: too many for classes ({where})"
    if kind == "palette" and (clash := _palette_clash(files, codes)) is not None:
        return f"the palettes of the masks disagree about entry {clash} ({_several(_with(files, clash))})"
    return None


def _doubtful_values(files: Sequence[FileCodes], total: Counter[Code]) -> str | None:
    values = sorted(v for v in total if isinstance(v, int))
    low, high = values[0], values[-1]
    if low < 0:
        return (
            f"the masks hold the negative value {low}, which may mean no data ({_several(_with(files, low))})"
        )
    between = [v for v in values if 0 < v < 255]
    if (low, high) != (0, 255) or not between:
        return None
    if between == list(range(1, len(between) + 1)):
        where = _several(_with(files, 255))
        return f"255 stands beside the values 0 to {between[-1]} and may mean ignore ({where})"
    share = sum(total[v] for v in between) / total.total()
    if share < _EDGE_SHARE or len(between) > _MOST_CLASSES:
        return (
            f"{len(between)} values between 0 and 255 hold {share:.1%} of the mask pixels, as anti-aliased or "
            f"JPEG-compressed edges do ({_several(_widest(files))})"
        )
    return None


def _palette_clash(files: Sequence[FileCodes], codes: Sequence[Code]) -> Code | None:
    """The first used entry that two palettes colour differently."""
    for code in codes:
        if len({_entry(f, code) for f in files if code in f.counts}) > 1:
            return code
    return None


def _own_colour(files: Sequence[FileCodes], code: Code) -> Colour | None:
    """The colour that the masks themselves give a code."""
    if isinstance(code, tuple):
        return code
    return next((colour for f in files if (colour := _entry(f, code)) is not None), None)


def _entry(file: FileCodes, code: Code) -> Colour | None:
    known = file.palette is not None and isinstance(code, int) and code < len(file.palette)
    return file.palette[code] if known else None  # type: ignore[index]


def _total(files: Sequence[FileCodes]) -> Counter[Code]:
    return sum((f.counts for f in files), Counter[Code]())


def _with(files: Sequence[FileCodes], code: Code) -> list[FileCodes]:
    return [f for f in files if code in f.counts]


def _widest(files: Sequence[FileCodes]) -> list[FileCodes]:
    return sorted(files, key=lambda f: -len(f.counts))


def _several(files: Sequence[FileCodes]) -> str:
    """The first few, one after the other, and how many more there are."""
    shown = "; ".join(map(str, files[:_SHOWN]))
    return shown if len(files) <= _SHOWN else f"{shown}; and {len(files) - _SHOWN} more"


def _written(code: Code) -> str:
    return str(code) if isinstance(code, int) else "#" + "".join(f"{c:02x}" for c in code)
