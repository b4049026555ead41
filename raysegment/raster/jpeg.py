"""JPEG tiles and strips of a TIFF that tifffile and libjpeg take for another colour than is in them.

A separate plane of RGB tifffile takes for RGB: libjpeg finds three colours bogus in one component. Three components of
greys it leaves to libjpeg, which guesses YCbCr and turns them into RGB. Both only without a JFIF marker, which GDAL
does not write.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from tifffile import TiffPage

_JPEG = 7  # Compression
_SEPARATE = 2  # PlanarConfiguration
_GREY = (0, 1)  # PhotometricInterpretation: MinIsWhite, MinIsBlack


def decoder_of(key: TiffPage) -> Callable[..., Any] | None:
    """What decodes a tile or strip of such a page, called as :attr:`TiffPage.decode` is, with its kind of answer;
    None for other pages."""
    is_plane = key.planarconfig == _SEPARATE
    is_raw = is_plane or (key.photometric in _GREY and key.samplesperpixel == 3)
    if key.compression != _JPEG or key.is_jfif or not is_raw:
        return None
    return partial(_decoded, components=1 if is_plane else 3)


def _decoded(
    data: bytes, index: int, *, jpegtables: bytes | None, jpegheader: bytes | None, components: int
) -> tuple[np.ndarray, int, tuple[int, ...]]:
    """The components as they are: (1, height, width, components)."""
    import imagecodecs

    colour = "RGB" if components == 3 else None  # asked for by the name it goes by, nothing is converted
    pixels = imagecodecs.jpeg_decode(
        data, tables=jpegtables, header=jpegheader, colorspace=colour, outcolorspace=colour
    )
    return pixels.reshape(1, *pixels.shape[:2], components), index, pixels.shape
