"""Which class each stored value of a prediction and of its truth stands for.

Decided from the values that occur, and refused where it would be a guess.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raysegment import console
from raysegment.classes import GREATEST, NO_CLASS, ClassMap, class_code, describe
from raysegment.errors import InputError
from raysegment.geometry import Size
from raysegment.mask.coding import Coding, read_coding
from raysegment.model.spec import default_classes
from raysegment.raster.open import open_plane

if TYPE_CHECKING:
    from raysegment.raster import Raster

#: What a predicted code maps to where nothing was predicted.
MISS = -2
#: Without any coding, classes are 0 … the largest value; above this the values are not indices.
MOST_PLAIN_CLASSES = 1024


@dataclass(frozen=True)
class Side:
    """One of the two images, with what is known of its coding."""

    role: str
    path: str
    raster: Raster
    coding: Coding | None

    @classmethod
    def open(cls, role: str, path: str | os.PathLike[str], select: Mapping[str, int] | None) -> Side:
        return cls(role, str(path), open_plane(path, select), read_coding(path))

    @property
    def size(self) -> Size:
        return Size(*self.raster.shape[:2])


def meanings(
    p: Side, t: Side, p_codes: Sequence[int], t_codes: Sequence[int], classes: ClassMap | None
) -> tuple[tuple[str, ...], dict[int, int], dict[int, int]]:
    """Class names, and what each code stands for: a class index, MISS (prediction) or NO_CLASS (truth).

    `p_codes`, `t_codes`: the codes that occur in the prediction `p` and in the truth `t`. Names and order are
    the prediction's own, or those of `classes`, or the truth's own, or plain indices. Raises InputError.
    """
    if p.coding is not None:
        names = p.coding.names
        by_value = p.coding
        of_prediction = _fit(p, p_codes, [_indices(names)], names, MISS)
    elif classes is not None:
        names = classes.names
        of_prediction = _fit(p, p_codes, [classes.table(p.raster.palette), _indices(names)], names, MISS)
    elif t.coding is not None:
        names = t.coding.names
        of_prediction = _fit(p, p_codes, [_indices(names), _by_value(p.raster, t.coding)], names, MISS)
    else:
        return _plain(p, t, p_codes, t_codes)

    if classes is not None:
        candidates = [_renamed(classes.table(t.raster.palette), classes.names, names, classes.source)]
    elif t.coding is not None:
        candidates = [_renamed(_indices(t.coding.names), t.coding.names, names, t.path)]
    else:
        candidates = [_by_value(t.raster, by_value), _indices(names)]
    return names, of_prediction, _fit(t, t_codes, candidates, names, NO_CLASS)


def classes_named(p: Side, t: Side, classes: ClassMap | None) -> frozenset[int]:
    """Codes of the truth that are said to be classes, whatever else the file says of them.

    (0 is often tagged as nodata in masks and meant as background.)
    """
    table = _by_value(t.raster, p.coding) if classes is None and p.coding is not None else {}
    if classes is not None:
        table = classes.table(t.raster.palette)
    return frozenset(code for code, index in table.items() if index != NO_CLASS)


def _indices(names: Sequence[str]) -> dict[int, int]:
    return {i: i for i in range(len(names))}


def _by_value(raster: Raster, coding: Coding) -> dict[int, int]:
    """The coding's source values or colours, as the codes that `raster` stores; empty if it names none."""
    values = [c.value for c in coding.classes]
    codes = {class_code(v): i for i, v in enumerate(values) if v is not None}
    if len(codes) < len(values):
        return {}
    return ClassMap(coding.classes, codes, "the mask's coding").table(raster.palette)


def _renamed(
    table: Mapping[int, int], own: Sequence[str], names: Sequence[str], source: str
) -> dict[int, int]:
    """`table` with the indices of `names` in place of those of `own`: the same classes in another order."""
    if set(own) == set(names):
        return {code: i if i < 0 else names.index(own[i]) for code, i in table.items()}
    if len(own) != len(names):
        raise InputError(
            f"{source} has the classes {', '.join(own)}, the prediction {', '.join(names)}: "
            "they must be the same"
        )
    console.warn(
        f"{source} names its classes {', '.join(own)}, the prediction {', '.join(names)}: matched by order"
    )
    return dict(table)


def _fit(
    side: Side,
    codes: Sequence[int],
    candidates: Sequence[Mapping[int, int]],
    names: Sequence[str],
    absent: int,
) -> dict[int, int]:
    """The first candidate that gives every code a meaning.

    A code that none names may still mean "no class": a mask's nodata, negative numbers, the greatest number of a dtype,
    not only of the file's own, for masks are often stored wider than they were made.
    """
    for table in candidates:
        unknown = [code for code in codes if code not in table and not _means_nothing(side, code)]
        if not unknown:
            high = max(codes, default=0)
            if (
                set(codes) == {0, high}
                and high in GREATEST - table.keys()
                and side.coding is None
                and len(names) == 2
            ):
                raise InputError(
                    f"the {side.role} {side.path} holds 0 and {high}, but the classes {', '.join(names)} are "
                    f"coded otherwise: say in a classes file (--classes) whether {high} is a class or ignored"
                )
            return {code: table.get(code, absent) for code in codes}
    raise InputError(
        f"the {side.role} {side.path} holds {describe(unknown)}, no class of {', '.join(names)}: "
        "say what they mean in a classes file (--classes)"
    )


def _means_nothing(side: Side, code: int) -> bool:
    if side.coding is not None:
        return code == side.coding.nodata
    return code < 0 or (side.raster.shape[2] < 3 and code in GREATEST | {_maximum(side)})


def _maximum(side: Side) -> int | None:
    """The greatest number that the file can store, where it stores whole numbers."""
    dtype = np.dtype(side.raster.dtype)
    return int(np.iinfo(dtype).max) if dtype.kind in "iu" else None


def _plain(
    p: Side, t: Side, p_codes: Sequence[int], t_codes: Sequence[int]
) -> tuple[tuple[str, ...], dict[int, int], dict[int, int]]:
    """Nobody says what the values mean: 0 and the greatest number of a dtype are two classes, as training takes them,
    anything else is the class index."""
    tables = [_plain_table(p, p_codes), _plain_table(t, t_codes)]
    highest = max((i for table in tables for i in table.values()), default=0)
    if highest >= MOST_PLAIN_CLASSES:
        raise InputError(
            f"{p.path} and {t.path} hold values up to {highest} and nothing says what they mean: "
            "name the classes in a classes file (--classes)"
        )
    names = tuple(c.name for c in default_classes(max(2, highest + 1)))
    return names, _fit(p, p_codes, tables[:1], names, MISS), _fit(t, t_codes, tables[1:], names, NO_CLASS)


def _plain_table(side: Side, codes: Sequence[int]) -> dict[int, int]:
    """What each code stands for; 255 in a file of more than 8 bits is a class where 254 is one, too."""
    high = max(codes, default=0)
    if high in GREATEST and set(codes) <= {0, high}:
        return {0: 0, high: 1}
    nothing = {_maximum(side), high if high in GREATEST and high - 1 not in codes else None}
    is_index = side.raster.shape[2] < 3
    return {c: c for c in codes if c >= 0 and not (is_index and c in nothing)}
