"""What the numbers of a mask mean: read back from the masks that are written here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raysegment.errors import InputError, first_complaint
from raysegment.model.spec import Class

#: Key of the root attributes of an OME-Zarr mask, and name of the item in a TIFF's GDAL metadata.
KEY = "raysegment"
_GDAL_METADATA = 42112


@dataclass(frozen=True, slots=True)
class Coding:
    """Class index → class, of one mask."""

    classes: tuple[Class, ...]
    nodata: int
    """Stored where the source has no data."""
    origin: tuple[int, int] = (0, 0)
    """Full-resolution source pixel (y, x) of the mask's top left corner."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)


def read_coding(path: str | os.PathLike[str]) -> Coding | None:
    """The coding that travels in a mask, or None: its pixels then stand for themselves.

    Found in the root attributes of an OME-Zarr mask and in the GDAL metadata of a TIFF (item "raysegment",
    the same JSON). Raises InputError when there is one that cannot be understood.
    """
    path = Path(path)
    found = _of_zarr(path) if path.is_dir() else _of_tiff(path)
    if found is None or "classes" not in found:
        return None
    try:
        classes = tuple(Class.model_validate(c) for c in found["classes"])
        y, x = found.get("origin", (0, 0))
        return Coding(classes, int(found["nodata"]), (int(y), int(x)))
    except ValidationError as e:
        raise InputError(f"{path}: the class coding in its metadata: {first_complaint(e)}") from e
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"{path}: the class coding in its metadata cannot be understood: {e}") from e


def _of_zarr(path: Path) -> Mapping[str, Any] | None:
    if not (path / "zarr.json").is_file():
        return None
    try:
        root = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
        return root.get("attributes", {}).get(KEY)
    except (OSError, ValueError, AttributeError) as e:
        raise InputError(f"cannot read {path / 'zarr.json'}: {e}") from e


def _of_tiff(path: Path) -> Mapping[str, Any] | None:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
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
