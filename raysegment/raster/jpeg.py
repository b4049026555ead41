"""JPEG tiles and strips of a TIFF of which each holds one sample's plane.

tifffile decodes all others. A plane of RGB it takes for RGB where no JFIF marker tells otherwise (GDAL writes none),
and libjpeg finds three colours bogus in one component.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from tifffile import TiffPage

_JPEG = 7  # Compression
_SEPARATE = 2  # PlanarConfiguration


def decoder_of(key: TiffPage) -> Callable[..., Any]:
    """What decodes a tile or strip of any page, called as :attr:`TiffPage.decode` is, with its kind of answer."""
    is_plane = key.compression == _JPEG and key.planarconfig == _SEPARATE
    return _decode_plane if is_plane else key.decode


def _decode_plane(
    data: bytes, index: int, *, jpegtables: bytes | None = None, jpegheader: bytes | None = None
) -> Any:
    import imagecodecs

    pixels = imagecodecs.jpeg_decode(data, tables=jpegtables, header=jpegheader)
    return pixels.reshape(1, *pixels.shape[:2], 1), index, pixels.shape
