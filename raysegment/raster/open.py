"""From a path to a Raster: look at what is there, not at its suffix."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from raysegment.errors import InputError, NotBuiltError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raysegment.raster.protocol import Raster

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_raster(path: str | os.PathLike[str], *, select: Mapping[str, int] | None = None) -> Raster:
    """Open an image of any size without reading its pixels.

    `path`: TIFF, BigTIFF, GeoTIFF/COG, OME-TIFF, SVS and other slide TIFFs; a Zarr v2/v3 array or group,
    OME-Zarr; PNG, JPEG and the like when small. `select` fixes the axes that are neither y, x nor channel:
    ``{"z": 0, "t": 3}``.

    Raises InputError (missing, unreadable, a header that lies), UsageError (an axis that needs `select`, or a
    `select` that does not fit), NotBuiltError (URLs).
    """
    text = os.fspath(path)
    chosen = dict(select or {})
    if _URL.match(text):
        # Here a store for the URL would be made, and handed to the same readers.
        raise NotBuiltError(
            f"{text}: reading from URLs is not built yet: give a path on this machine or a mount"
        )
    place = Path(os.path.abspath(text))
    if not place.exists():
        raise InputError(f"{text} does not exist: give the path of an image")
    if place.is_dir():
        from raysegment.raster.zarr import ZarrRaster

        return ZarrRaster(str(place), chosen)
    head = _head(place)
    if head.startswith(_TIFF):
        from raysegment.raster.tiff import TiffRaster

        return TiffRaster(str(place), chosen)

    from raysegment.raster.picture import PictureRaster

    return PictureRaster(str(place), chosen)


def _head(path: Path) -> bytes:
    """The first bytes of a regular file with something in it."""
    if not path.is_file():
        raise InputError(f"{path} is neither a file nor a folder: give the path of an image")
    try:
        with path.open("rb") as f:
            head = f.read(16)
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e
    if not head:
        raise InputError(f"{path} is empty (0 bytes): it is not an image")
    return head
