"""What the numbers of a mask mean, and of what lies beside it: read back from what is written here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from pydantic import ValidationError

from raysegment.errors import InputError, first_complaint
from raysegment.model.spec import Class
from raysegment.storage import Location, Url, location
from raysegment.storage.url_file import UrlFile

#: Key of the root attributes of an OME-Zarr mask, and name of the item in a TIFF's GDAL metadata.
KEY = "raysegment"
#: The same of what lies beside a mask: class probabilities, uncertainty.
FIELD_KEY = "raysegment_field"
_GDAL_METADATA = 42112


@dataclass(frozen=True, slots=True)
class Coding:
    """Class index → class, of one mask."""

    classes: tuple[Class, ...]
    nodata: int
    """Stored where the source has no data."""
    origin: tuple[float, float] = (0, 0)
    """Full-resolution source pixel (y, x) of the mask's top left corner; whole numbers, or exact."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Full-resolution source pixels per pixel of the mask (y, x); above 1 the mask is the coarser."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)

    @property
    def offset(self) -> tuple[int, int]:
        """The mask's top left corner (y, x) in pixels of its own size, counted from the source's corner.

        Undoes the rounding of `origin`: exactly, unless the mask is finer than the source and `origin` was rounded.
        """
        y, x = (round(o / s) for o, s in zip(self.origin, self.scale, strict=True))
        return y, x


@dataclass(frozen=True, slots=True)
class Field:
    """What the numbers of a side output mean: ``mask.probabilities.zarr``, ``mask.uncertainty.zarr``."""

    scale: float
    """The stored value times this is what is meant."""
    classes: tuple[str, ...] = ()
    """Of each channel, in class probabilities."""
    meaning: str | None = None

    def __str__(self) -> str:
        if self.classes:
            what = f"probabilities of the classes {', '.join(self.classes)}"
        else:
            what = "uncertainty" if self.meaning is None else f"uncertainty, {self.meaning}"
        return f"{what}; stored as a multiple of {self.scale:.4g}"


def read_coding(path: str | os.PathLike[str]) -> Coding | None:
    """The coding that travels in a mask, or None: its pixels then stand for themselves.

    Found in the root attributes of an OME-Zarr mask and in the GDAL metadata of a TIFF (item "raysegment",
    the same JSON). Raises InputError when there is one that cannot be understood.
    """
    place = location(path)
    found = _of_zarr(place, KEY) if (place / "zarr.json").is_file() else _of_tiff(place)
    if found is None or "classes" not in found:
        return None
    try:
        classes = tuple(Class.model_validate(c) for c in found["classes"])
        origin, scale = _pair(found.get("origin", (0, 0))), _pair(found.get("scale", (1.0, 1.0)))
        if min(scale) <= 0:
            raise ValueError(f"its scale is {scale[0]}, {scale[1]}")
        return Coding(classes, int(found["nodata"]), origin, scale)
    except ValidationError as e:
        raise InputError(f"{path}: the class coding in its metadata: {first_complaint(e)}") from e
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"{path}: the class coding in its metadata cannot be understood: {e}") from e


def read_field(path: str | os.PathLike[str]) -> Field | None:
    """What a side output of a mask says of itself, or None: another image. Raises InputError."""
    found = _of_zarr(location(path), FIELD_KEY)
    if found is None:
        return None
    try:
        classes = tuple(str(name) for name in found.get("classes", ()))
        return Field(float(found["scale"]), classes, found.get("meaning"))
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise InputError(f"{path}: what it says of its values cannot be understood: {e!r}") from e


def _pair(values: Sequence[float]) -> tuple[float, float]:
    y, x = values
    if not (isfinite(y) and isfinite(x)):
        raise ValueError(f"{y}, {x} is no place")
    return y, x


def _of_zarr(path: Location, key: str) -> Mapping[str, Any] | None:
    if not (path / "zarr.json").is_file():
        return None
    try:
        root = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
        return root.get("attributes", {}).get(key)
    except (OSError, ValueError, AttributeError) as e:
        raise InputError(f"cannot read {path / 'zarr.json'}: {e}") from e


def _of_tiff(path: Location) -> Mapping[str, Any] | None:
    import tifffile

    try:
        source: Any = UrlFile(path).stream() if isinstance(path, Url) else path
        with tifffile.TiffFile(source) as tiff:
            text = tiff.pages.first.tags.valueof(_GDAL_METADATA)
    except (tifffile.TiffFileError, OSError):
        return None  # no TIFF: a PNG holds no coding, and a file that is no image is open_raster's to refuse
    if not isinstance(text, str) or KEY not in text:
        return None
    from xml.etree import ElementTree

    try:
        items = ElementTree.fromstring(text).iter("Item")
        return next((json.loads(i.text or "") for i in items if i.get("name") == KEY), None)
    except (ElementTree.ParseError, ValueError) as e:
        raise InputError(f"{path}: the class coding in its GDAL metadata cannot be understood: {e}") from e
