"""From a path to a Raster: look at what is there, not at its suffix."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from raysegment.errors import GoneError, InputError, UsageError
from raysegment.storage import Url, location
from raysegment.storage.objects import before_work, open_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raysegment.raster.protocol import Raster

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_raster(path: str | os.PathLike[str], *, select: Mapping[str, int] | None = None) -> Raster:
    """Open an image of any size without reading its pixels.

    `path`: a path or a URL (s3://, gs://, https://) of a TIFF, BigTIFF, GeoTIFF/COG, OME-TIFF, SVS and other slide
    TIFFs; a Zarr v2/v3 array or group, OME-Zarr; PNG, JPEG and the like when small.
    `select` fixes the axes that are neither y, x nor channel:
    ``{"z": 0, "t": 3}``.

    Raises InputError (missing, unreadable, no rights, a header that lies), UsageError (an axis that needs `select`, a
    `select` that does not fit, or a URL that needs a package).
    """
    text = os.fspath(path)
    chosen = dict(select or {})
    place = location(text)
    if isinstance(place, Url):
        with before_work():
            return _open_url(place, chosen)
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


def open_plane(path: str | os.PathLike[str], select: Mapping[str, int] | None) -> Raster:
    """Open a mask that may be a stack as its image is: at `select` where it has such axes, else as it is.

    Raises what :func:`open_raster` does.
    """
    try:
        return open_raster(path)
    except UsageError:
        if not select:
            raise
        return open_raster(path, select=select)


def _open_url(url: Url, select: Mapping[str, int]) -> Raster:
    """The same at a URL; what is a folder on a disk is there by the names of what it holds."""
    try:
        file = open_bytes(url)
        head = file.read(0, min(16, file.size))
    except GoneError:
        head = b""
    if head.startswith(_TIFF):
        from raysegment.raster.tiff import TiffRaster

        return TiffRaster(str(url), select)

    from raysegment.raster.zarr import ZarrRaster, has_metadata

    if has_metadata(url):
        return ZarrRaster(str(url), select)
    if not head:
        raise InputError(f"{url} does not exist, or is empty: give the URL of an image")

    from raysegment.raster.picture import PictureRaster

    return PictureRaster(str(url), select)


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
