"""The codes of masks: what stands for a class in them, counted file by file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from raysegment.classes import class_code, pixel_codes
from raysegment.console import counted
from raysegment.errors import InputError
from raysegment.model.spec import Colour

if TYPE_CHECKING:
    from raysegment.raster import Raster

#: More distinct codes than this are not classes.
MOST_CLASSES = 64
_SHOWN = 3
#: More values than this are anti-aliased grey rather than classes where few pixels lie in the middle.
_MANY_GREYS = 16
#: Anti-aliased grey holds less than this share between these values; numbered objects are spread evenly.
_MIDDLE, _MIDDLE_SHARE = (64, 192), 0.2

Kind = Literal["values", "palette", "colours", "labels"]
#: A stored value (of a palette mask: the index), a colour, or the label of a polygon.
Code = int | Colour | str


@dataclass(frozen=True)
class FileCodes:
    """What one mask holds."""

    path: str
    kind: Kind
    counts: Counter[Code]
    """Pixels per code, where the mask has data."""
    palette: tuple[Colour, ...] | None = None
    alpha: bool = False
    """Whether a channel says where the mask has data."""
    nodata: int | None = None
    """The value that the file tags as nodata, where it is a whole number."""
    hidden: int = 0
    """Pixels of that value, which `counts` leaves out."""
    transparent: int = 0
    """Pixels that `counts` leaves out for another reason: alpha, NaN, a mask page, or a polygon
    without a class."""

    @property
    def coding(self) -> str:
        """The coding in the field's words, as far as this file alone shows it."""
        if self.kind == "labels":
            return "polygons"
        if self.kind == "palette":
            return "palette"
        if self.kind == "colours":
            return "RGBA colours" if self.alpha else "RGB colours"
        return ("grey + alpha, " if self.alpha else "") + self._of_values()

    def _of_values(self) -> str:
        values = sorted(v for v in self.counts if isinstance(v, int))
        if not values:
            return "no data"
        if values[0] < 0:
            return "signed, with a negative value"
        if len(values) == 1:
            return f"{values[0]} alone"
        if values == [0, 255]:
            return "0/255"
        if len(values) > _MANY_GREYS and is_edged_grey(self.counts):
            return "anti-aliased grey"
        return "class index" if len(values) <= 256 else "numbered objects"

    def without(self, value: int) -> FileCodes:
        """The same, as if no pixel had this value (of a colour picture: this grey)."""
        kept = {code: n for code, n in self.counts.items() if class_code(code) != value}
        return replace(self, counts=Counter(kept))

    @property
    def held(self) -> str:
        """ "values 0, 255"."""
        of_labels = self.kind == "labels"  # where 0 is what no polygon covers
        codes = [written(c) for c in sorted_codes(self.counts) if not of_labels or c != 0]
        if of_labels and not codes:
            return "no polygons"
        nouns: Mapping[str, str] = {"palette": "palette entries", "labels": "labels"}
        noun = nouns.get(self.kind, self.kind)
        many = f"{len(codes)} {noun} from {codes[0]} to {codes[-1]}" if codes else "no data"
        return f"{noun} {', '.join(codes)}" if 0 < len(codes) <= 6 else many

    def __str__(self) -> str:
        return f"{Path(self.path).name}: {self.held}"


def codings(files: Sequence[FileCodes], *, are_classes: bool) -> list[str]:
    """The coding of each mask as the whole set shows it: numbers that are too many for classes are those of objects, in
    a mask of few of them, too. `are_classes`: somebody said that they are classes."""
    names = [file.coding for file in files]
    if are_classes or len(total(files)) <= MOST_CLASSES or 0 not in total(files):
        return names
    return ["numbered objects" if name == "class index" else name for name in names]


def kind_of(mask: Raster) -> Kind:
    """How a mask codes its classes. Raises InputError when it has no one or three channels besides alpha."""
    if labels_of(mask) is not None:
        return "labels"
    channels = mask.shape[2] - (mask.alpha is not None)
    if channels not in (1, 3):
        raise InputError(
            f"{mask.path} has {counted(channels, 'channel')}: a mask has one (values) or three (colours)"
        )
    if channels == 3:
        return "colours"
    return "palette" if mask.palette is not None else "values"


def labels_of(mask: Raster) -> Mapping[int, str] | None:
    """Code → label of a mask of polygons, None for any other."""
    from raysegment.raster.sampling import SampledRaster
    from raysegment.training.forms.polygons import PolygonRaster

    if isinstance(mask, SampledRaster):
        mask = mask.raster
    return mask.labels if isinstance(mask, PolygonRaster) else None


def count_codes(
    kind: Kind, pixels: np.ndarray, valid: np.ndarray | None, labels: Mapping[int, str] | None = None
) -> Counter[Code]:
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
    if labels is not None:
        codes = [labels.get(int(v), int(v)) for v in found]
    return Counter(dict(zip(codes, map(int, counts), strict=True)))


def greys_as_values(files: Sequence[FileCodes]) -> list[FileCodes]:
    """The same, with pictures of three equal channels taken for the grey that they are, if all of a set are so and no
    palette says what grey might mean."""
    coloured = [f for f in files if f.kind == "colours"]
    if any(f.kind == "palette" for f in files) or any(
        isinstance(c, tuple) and len(set(c)) > 1 for f in coloured for c in f.counts
    ):
        return list(files)
    return [_as_values(f) if f.kind == "colours" else f for f in files]


def _as_values(file: FileCodes) -> FileCodes:
    counts: Counter[Code] = Counter({c[0]: n for c, n in file.counts.items() if isinstance(c, tuple)})
    return replace(file, kind="values", counts=counts, palette=None)


def is_edged_grey(counts: Counter[Code]) -> bool:
    """Whether values fit a byte and lie near its ends, as two classes with soft edges do."""
    values = [v for v in counts if isinstance(v, int)]
    middle = sum(counts[v] for v in values if _MIDDLE[0] <= v < _MIDDLE[1])
    return min(values) >= 0 and _MIDDLE[1] <= max(values) <= 255 and middle < _MIDDLE_SHARE * counts.total()


def sorted_codes(codes: Iterable[Code]) -> list[Code]:
    """Values ascending, then colours by packed RGB, then labels by name."""
    order = {int: 0, tuple: 1, str: 2}
    return sorted(codes, key=lambda c: (order[type(c)], c))


def entry(file: FileCodes, code: Code) -> Colour | None:
    """The colour that the palette of a mask gives a code."""
    known = file.palette is not None and isinstance(code, int) and code < len(file.palette)
    return file.palette[code] if known else None  # type: ignore[index]


def total(files: Collection[FileCodes]) -> Counter[Code]:
    return sum((f.counts for f in files), Counter[Code]())


def several(files: Sequence[FileCodes]) -> str:
    """The first few, one after the other, and how many more there are."""
    shown = "; ".join(map(str, files[:_SHOWN]))
    return shown if len(files) <= _SHOWN else f"{shown}; and {len(files) - _SHOWN} more"


def written(code: Code) -> str:
    return "#" + "".join(f"{c:02x}" for c in code) if isinstance(code, tuple) else str(code)
