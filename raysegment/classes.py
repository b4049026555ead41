"""Classes, and the codes of mask pixels that stand for them; how people write them down: classes_file.py."""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from pydantic import ValidationError

from raysegment.classes_file import ClassesFile, rgb
from raysegment.errors import InputError, first_complaint
from raysegment.model.spec import Class, Colour, default_classes
from raysegment.storage import Location, location
from raysegment.storage.objects import before_work

if TYPE_CHECKING:
    import numpy as np

#: What a code maps to when the pixel is neither learned nor scored.
NO_CLASS = -1
#: The greatest numbers of 8, 15, 16, … bits: what masks of any dtype hold where there is no class.
GREATEST = frozenset((1 << bits) - 1 for bits in (8, 15, 16, 31, 32, 63, 64))
#: Above every stored pixel value that occurs in masks: the codes of colours that are not grey.
_COLOURED = 1 << 40
#: Above those of colours: the codes of polygons' labels.
_LABELLED = 1 << 50


@dataclass(frozen=True, slots=True)
class ClassMap:
    """Classes, and the pixel codes (see :func:`pixel_codes`) that stand for them."""

    classes: tuple[Class, ...]
    codes: Mapping[int, int]
    """Pixel code → class index, or NO_CLASS."""
    source: str
    """Where it came from, for messages."""

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a classes file, at a path or a URL. Raises InputError naming the file and the key."""
        path = location(path)
        try:
            with before_work():
                found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except OSError as e:
            raise InputError(f"cannot read the classes file {path}: {e.strerror}") from e
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise InputError(f"{path} is not valid TOML: {e}") from e
        try:
            file = ClassesFile.model_validate(found)
        except ValidationError as e:
            raise InputError(f"{path}: {first_complaint(e)}") from e
        return cls(*_coded(path, file), source=str(path))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)

    def ignoring(self, value: int) -> Self:
        """The same, and pixels of this value are ignored. Raises InputError where a class holds it."""
        index = self.codes.get(value, NO_CLASS)
        if index != NO_CLASS:
            raise InputError(
                f"the value {value} is to be ignored, and {self.source} says that it is {self.names[index]!r}"
            )
        return replace(self, codes={**self.codes, value: NO_CLASS})

    @property
    def by_colour(self) -> bool:
        """Whether a palette image must be looked at by its colours rather than by its stored indices."""
        return any(_COLOURED <= code < _LABELLED for code in self.codes)

    def map(
        self,
        pixels: np.ndarray,
        valid: np.ndarray | None = None,
        palette: Sequence[Colour] | None = None,
    ) -> np.ndarray:
        """Class indices (h, w) of mask pixels (h, w, channels) as stored; the dtype's maximum = ignore.

        uint8, or uint16 above 254 classes. `valid` (h, w): pixels that are False are ignored, whatever they
        hold. `palette`: of a palette image. Raises InputError when a valid pixel belongs to no class.
        """
        import numpy as np

        codes = pixel_codes(pixels)
        ignore, dtype = (255, np.uint8) if len(self.classes) <= 254 else (65535, np.uint16)
        table, unknown = self.table(palette), -2
        values, place = distinct(codes)
        targets = np.array([table.get(int(v), unknown) for v in values], dtype=np.int32)
        place = place.reshape(codes.shape)
        if (targets == unknown).any():
            lost = targets[place] == unknown
            if valid is not None:
                lost &= valid
            if lost.any():
                self.refuse([int(code) for code in np.unique(codes[lost])])
        index = np.where(targets < 0, ignore, targets).astype(dtype)[place]
        if valid is not None:
            index[~valid] = ignore
        return index

    def table(self, palette: Sequence[Colour] | None = None) -> dict[int, int]:
        """The same as :attr:`codes`, by stored index for a palette image that is coded by colour."""
        if palette is None or not self.by_colour:
            return dict(self.codes)
        coloured = {i: self.codes.get(colour_code(c)) for i, c in enumerate(palette)}
        return {i: target for i, target in coloured.items() if target is not None}

    def refuse(self, codes: Sequence[int]) -> None:
        """Raise InputError: these codes belong to no class."""
        raise InputError(
            f"pixel {describe(codes)} belong{'s' if len(codes) == 1 else ''} to no class of {self.source} "
            f"(classes: {', '.join(self.names)}): add {'it' if len(codes) == 1 else 'them'} to a class or to ignore "
            "in a classes file (--classes FILE.toml)"
        )


def pixel_codes(pixels: np.ndarray) -> np.ndarray:
    """One integer per mask pixel: (h, w) of pixels (h, w, channels) as stored.

    One channel: the stored value. Grey + alpha: the grey. RGB(A): the value where r = g = b, otherwise a
    number that :func:`colour_code` gives for that colour alone. Alpha is for `Raster.valid` to judge.
    Raises InputError for pixels that cannot be a class (fractions, more than four channels).
    """
    import numpy as np

    channels = pixels.shape[2]
    if channels > 4:
        raise InputError(f"a mask of {channels} channels: give one channel of classes, or RGB colours")
    if pixels.dtype.kind == "f":
        numbers = np.nan_to_num(pixels, nan=0.0)  # NaN is nodata: never looked at
        whole = numbers.astype(np.int64)
        if not np.array_equal(whole, numbers):
            raise InputError(f"a mask of {pixels.dtype} with fractions: give whole numbers, one per class")
        pixels = whole
    if channels < 3:
        return pixels[:, :, 0]
    r, g, b = (pixels[:, :, i].astype(np.int64) for i in range(3))
    return np.where((r == g) & (g == b), r, _COLOURED | r << 16 | g << 8 | b)


def colour_code(colour: Colour) -> int:
    """The code of one RGB colour."""
    r, g, b = colour
    return r if r == g == b else _COLOURED | r << 16 | g << 8 | b


def code_colour(code: int) -> Colour:
    """The RGB colour of the code of a colour pixel."""
    if code < _COLOURED:
        return code, code, code
    return code >> 16 & 255, code >> 8 & 255, code & 255


def label_code(label: str) -> int:
    """The code of a polygon's label: the same wherever it occurs, so no set need know of another."""
    return _LABELLED | int.from_bytes(hashlib.blake2b(label.encode(), digest_size=6).digest())


def class_code(value: int | Colour | str) -> int:
    """The code of a class's pixel value, colour or label."""
    if isinstance(value, str):
        return label_code(value)
    return value if isinstance(value, int) else colour_code(value)


def distinct(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct codes, ascending int64, and for each pixel the index of its own: integers (pixels,)."""
    import numpy as np

    flat = codes.reshape(-1)
    if codes.dtype.itemsize > 2:
        values, index = np.unique(flat, return_inverse=True)
        return values.astype(np.int64), index
    lowest = int(np.iinfo(codes.dtype).min)  # counting is ten times as fast as sorting
    shifted = flat.astype(np.intp) - lowest if lowest else flat
    seen = np.flatnonzero(np.bincount(shifted))
    place = np.zeros(int(seen[-1]) + 1 if len(seen) else 1, np.intp)
    place[seen] = np.arange(len(seen))
    return seen + lowest, place[shifted]


def describe(codes: Sequence[int]) -> str:
    """ "values 3, 7, #808000 and 12 more"."""
    shown = [_written(code) for code in codes[:5]]
    more = f" and {len(codes) - 5} more" if len(codes) > 5 else ""
    return f"value{'s' if len(codes) > 1 else ''} {', '.join(shown)}{more}"


def spelled_codes(codes: Iterable[int], *, as_colours: bool = False) -> str:
    """All codes of a class, for people: "0–127, 255", "#800000"; "polygons" for labels, which no code tells.

    `as_colours`: grey codes are colours too.
    """
    known = sorted({code for code in codes if code < _LABELLED})
    if as_colours:
        return ", ".join("#{:02x}{:02x}{:02x}".format(*code_colour(code)) for code in known)
    runs: list[list[int]] = []
    for code in known:
        if runs and code == runs[-1][-1] + 1 and code < _COLOURED:
            runs[-1].append(code)
        else:
            runs.append([code])
    shown = [f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(_written, run)) for run in runs]
    return ", ".join(shown) or "polygons"


def _written(code: int) -> str:
    if code >= _LABELLED:
        return "of a label"
    return "#{:02x}{:02x}{:02x}".format(*code_colour(code)) if code >= _COLOURED else str(code)


def _coded(path: Location, file: ClassesFile) -> tuple[tuple[Class, ...], dict[int, int]]:
    codes: dict[int, int] = {}
    owner: dict[int, str] = {}
    coded: list[tuple[str, Sequence[int | Colour | str], int]]
    coded = [(f"class {e.name!r}", e.coded_by(), i) for i, e in enumerate(file.entries)]
    coded.append(("ignore", [rgb(v) if isinstance(v, str) else v for v in file.ignore], NO_CLASS))
    for who, values, target in coded:
        for code in map(class_code, values):
            if code in owner:
                raise InputError(f"{path}: {describe([code])} is given twice: to {owner[code]} and to {who}")
            codes[code], owner[code] = target, who
    names = [e.name for e in file.entries]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: two classes are named {name!r}: names must differ")
    painted = default_classes(len(names))
    classes = tuple(
        Class(name=e.name, colour=rgb(e.display) if e.display else p.colour, value=e.value_shown())
        for e, p in zip(file.entries, painted, strict=True)
    )
    return classes, codes
