"""Why the codes of some masks cannot be taken for classes, and the lines of a classes file that would settle it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysegment.classes import GREATEST
from raysegment.console import counted
from raysegment.training.codes import (
    MOST_CLASSES,
    Code,
    FileCodes,
    entry,
    is_edged_grey,
    several,
    sorted_codes,
    total,
    written,
)
from raysegment.training.tagged import hidden

#: Values strictly between 0 and 255 that hold less than this share of the pixels are edges, not classes.
_EDGE_SHARE = 0.05
#: More values are edges: those that hold so little even where all of them are dark, those near 0 and 255 whatever they
#: hold.
_EDGE_VALUES = 16
#: Class indices lie below this share of the greatest number of a dtype; grey levels do not.
_INDEX_SHARE = 0.25
#: Some sets number this many classes without a gap; more numbers are objects.
_MOST_INDICES = 255
#: Fewer pixels than this, and less than this share of all, are a slip of the pen rather than a class.
_STRAY_PX, _STRAY_SHARE = 10, 1e-4
#: A classes file of more entries is not spelled out in one line.
_SPELLED = 12


@dataclass(frozen=True, slots=True)
class Doubt:
    """What is in doubt, and what would end it."""

    what: str
    """With the values and the files that show it."""
    classes_file: tuple[str, ...] = ()
    """Lines of a classes file that takes the codes for what they probably are; empty where no file can help."""
    cure: str = "mend those masks, or say what the values mean with --classes FILE.toml"
    """What to do where no lines are given."""

    def __str__(self) -> str:
        if not self.classes_file:
            return f"{self.what}: {self.cure}"
        if sum(line.count("name =") for line in self.classes_file) > _SPELLED:
            return f"{self.what}: save the classes file that raysegment inspect suggests and pass it with --classes"
        # an array may be written in one line, so the error stays one
        lines = "` and `".join(_joined(self.classes_file))
        return f"{self.what}: if this is what they mean, write `{lines}` to classes.toml, pass --classes classes.toml"


def find_doubt(files: Sequence[FileCodes]) -> Doubt | None:
    """What is doubtful about the masks of one set; None when their codes are classes beyond doubt."""
    kinds = Counter(f.kind for f in files)
    if len(kinds) > 1:
        rare_first = sorted(kinds, key=lambda kind: (kinds[kind], kind))
        examples = [next(f for f in files if f.kind == kind) for kind in rare_first]
        numbers = ", ".join(f"{kinds[kind]} × {kind}" for kind in rare_first)
        return Doubt(f"the masks mix codings ({several(examples)}; {numbers})", _united(files))
    counts, kind = total(files), files[0].kind
    codes = sorted_codes(counts)
    if len(codes) < 2:
        return _single(files, codes)
    if kind == "values" and (doubt := _of_values(files, counts)) is not None:
        return doubt
    if kind == "palette" and (doubt := _of_greatest(files, counts)) is not None:
        return doubt
    if len(codes) > MOST_CLASSES:
        return _too_many(files, counts)
    if kind == "palette" and (clash := _palette_clash(files, codes)) is not None:
        where = several(_with(files, clash))
        return Doubt(f"the palettes of the masks disagree about entry {clash} ({where})", _united(files))
    if kind == "colours" and (mixed := _mixed(counts)):
        kept = [c for c in codes if c not in mixed]
        return Doubt(
            f"{len(mixed)} of {len(codes)} colours of the masks lie between others and hold little, as blurred or "
            f"resized edges do ({several(_widest(files))})",
            _plain(kept, mixed),
        )
    pixels = counts.total()
    # a small polygon was meant; a small number of painted pixels hardly
    stray = [c for c in codes if kind != "labels" and counts[c] < min(_STRAY_PX, _STRAY_SHARE * pixels)]
    if stray:
        held = ", ".join(f"{written(c)} ({counts[c]} px)" for c in stray[:3])
        kept = [c for c in codes if c not in stray]
        return Doubt(
            f"a few stray pixels are no class: {held} in {several(_with(files, stray[0]))}",
            _plain(kept, stray),
        )
    return None


def _single(files: Sequence[FileCodes], codes: Sequence[Code]) -> Doubt:
    """One class, beside which a nodata tag or transparency may hide the other."""
    what = f"the masks hold a single class ({several(files)}) and training needs two"
    if any(f.transparent and f.kind != "labels" for f in files):
        return Doubt(
            f"{what}; all else is without data (alpha 0, NaN or a mask page)",
            cure="if that is a class, save it opaque, with a value of its own",
        )
    tagged = [value for value in sorted(hidden(files)) if value not in codes]
    if not codes or not isinstance(codes[0], int) or not tagged:
        return Doubt(what)
    tags = several([f for f in files if f.nodata == tagged[0] and f.hidden])
    return Doubt(
        f"{what}; {tagged[0]} is tagged as nodata in {tags} and may be the other",
        _plain(sorted([codes[0], tagged[0]]), ()),
    )


def _of_values(files: Sequence[FileCodes], counts: Counter[Code]) -> Doubt | None:
    values = sorted(v for v in counts if isinstance(v, int))
    low, high = values[0], values[-1]
    if low < 0:
        negative = [v for v in values if v < 0]
        where = several(_with(files, low))
        return Doubt(
            f"the masks hold the negative value {low}, which may mean no data ({where})",
            _plain([v for v in values if v >= 0], negative),
        )
    between = [v for v in values if 0 < v < 255]
    share = sum(counts[v] for v in between) / counts.total()
    edges = (low, high) == (0, 255) and len(between) > _EDGE_VALUES and share < _EDGE_SHARE
    if not edges and (doubt := _of_greatest(files, counts)) is not None:
        return doubt
    many = len(between) > _EDGE_VALUES and is_edged_grey(counts)
    if (low, high) == (0, 255) and between and (share < _EDGE_SHARE or many):
        return Doubt(
            f"{share:.1%} of the mask pixels hold {counted(len(between), 'value')} between 0 and 255, "
            "as anti-aliased or "
            f"JPEG-compressed edges do ({several(_widest(files))})",
            _HALVES,
        )
    return None


def _of_greatest(files: Sequence[FileCodes], counts: Counter[Code]) -> Doubt | None:
    """The greatest number of a dtype, beside two or more others that are class indices: few and far below, or all the
    numbers up to one that is not the next."""
    *rest, high = sorted(v for v in counts if isinstance(v, int))
    if high not in GREATEST or not 1 < len(rest) <= _MOST_INDICES:
        return None
    far = len(rest) <= MOST_CLASSES and rest[-1] < _INDEX_SHARE * high
    run = rest[-1] - rest[0] == len(rest) - 1 and rest[-1] + 1 < high
    if not (far or run):
        return None
    return Doubt(
        f"{high} stands beside the values {rest[0]} to {rest[-1]} and may mean ignore ({several(_with(files, high))})",
        _two_codings(files, high) or _plain(rest, [high]),
    )


def _two_codings(files: Sequence[FileCodes], high: int) -> tuple[str, ...] | None:
    """Where some masks say `high` for what others say 1: a file that takes them for one class."""
    if any({1, high} <= f.counts.keys() or f.counts.keys() - {0, 1, high} for f in files):
        return None
    return _array(['{name = "class 0", value = 0}', f'{{name = "class 1", values = [1, {high}]}}'])


def _too_many(files: Sequence[FileCodes], counts: Counter[Code]) -> Doubt:
    kind, values = files[0].kind, sorted(v for v in counts if isinstance(v, int))
    what, lines = "", tuple[str, ...]()
    if kind == "values" and is_edged_grey(counts):
        what, lines = ", as anti-aliased grey does", _HALVES
    elif kind == "values" and values[0] == 0 and values[-1] < 1 << 16:
        what = ", as numbered objects do"
        lines = _array(
            ['{name = "background", value = 0}', f'{{name = "object", range = [1, {values[-1]}]}}']
        )
    elif kind == "colours":
        what = ", as JPEG-compressed colours do"
    where = several(_widest(files))
    return Doubt(
        f"the masks hold {len(counts)} different {kind}{what}: too many for classes ({where})", lines
    )


def _mixed(counts: Counter[Code]) -> list[Code]:
    """Colours between two more frequent ones, where most are so and hold as little as edges do."""
    found: list[Code] = []
    codes = [code for code, _ in counts.most_common()]
    colours = np.array(codes, np.float64)
    for k, colour in enumerate(colours):
        before = colours[:k]
        for start in before:
            along = before - start
            length = np.maximum((along**2).sum(axis=1), 1)
            share = along @ (colour - start) / length
            off = np.abs(start + share[:, None] * along - colour).max(axis=1)
            if ((share > 0) & (share < 1) & (off <= 1)).any():  # rounded to whole numbers
                found.append(codes[k])
                break
    few = sum(counts[code] for code in found) < _EDGE_SHARE * counts.total()
    return found if few and len(found) > len(codes) / 2 else []


def _palette_clash(files: Sequence[FileCodes], codes: Sequence[Code]) -> Code | None:
    """The first used entry that two palettes colour differently."""
    for code in codes:
        if len({entry(f, code) for f in files if code in f.counts}) > 1:
            return code
    return None


def _united(files: Sequence[FileCodes]) -> tuple[str, ...]:
    """A file that codes palettes and colours alike by colour, grey beside either of them by its value."""
    kinds = {f.kind for f in files}
    if "labels" in kinds or kinds == {"values", "palette", "colours"}:
        return ()
    codes: set[Code] = {code for f in files for code in f.counts}
    if "values" not in kinds:
        codes = {entry(f, code) or code for f in files for code in f.counts}
    elif "colours" in kinds:
        codes = {c[0] if isinstance(c, tuple) and len(set(c)) == 1 else c for c in codes}
    return _plain(sorted_codes(codes), ()) if len(codes) <= MOST_CLASSES else ()


def _plain(codes: Sequence[Code], ignored: Sequence[Code]) -> tuple[str, ...]:
    """A class for every code, in their order, and what is ignored."""
    if len(codes) < 2:
        return ()
    classes = _array([f'{{name = "class {i}", {_coded(code)}}}' for i, code in enumerate(codes)])
    if not ignored:
        return classes
    return (f"ignore = [{', '.join(_coded(c).partition(' = ')[2] for c in ignored)}]", *classes)


def _coded(code: Code) -> str:
    if isinstance(code, int):
        return f"value = {code}"
    return f'label = "{code}"' if isinstance(code, str) else f'colour = "{written(code)}"'


def _array(entries: Sequence[str]) -> tuple[str, ...]:
    return ("class = [", *(f"  {entry}," for entry in entries), "]")


def _joined(lines: Sequence[str]) -> list[str]:
    """The lines of a classes file, its array in one of them."""
    start = lines.index("class = [")
    entries = ", ".join(line.strip().rstrip(",") for line in lines[start + 1 : -1])
    return [*lines[:start], f"class = [{entries}]"]


_HALVES = _array(['{name = "class 0", range = [0, 127]}', '{name = "class 1", range = [128, 255]}'])


def _with(files: Sequence[FileCodes], code: Code) -> list[FileCodes]:
    return [f for f in files if code in f.counts]


def _widest(files: Sequence[FileCodes]) -> list[FileCodes]:
    return sorted(files, key=lambda f: -len(f.counts))
