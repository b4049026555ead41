"""JPEG and JPEG 2000 tiles and strips of a TIFF that tifffile and the codecs take for another colour than is in them.

A separate plane of RGB tifffile takes for RGB: libjpeg finds three colours bogus in one component. Three components of
greys it leaves to libjpeg, which guesses YCbCr and turns them into RGB. Both only without a JFIF marker, which GDAL
does not write. Aperio's JPEG 2000 of the kind 33003 is YCbCr, whatever the header says; OpenJPEG sees that by the
fewer pixels of its colours, and leaves it alone where they have as many as the brightness.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from tifffile import TiffPage

_JPEG, _APERIO_YCBCR = 7, 33003  # Compression
_SEPARATE = 2  # PlanarConfiguration
_SIZ, _COD = b"\xff\x51", b"\xff\x52"  # markers of a JPEG 2000 codestream: sizes, coding style
_GREY = (0, 1)  # PhotometricInterpretation: MinIsWhite, MinIsBlack


def decoder_of(key: TiffPage) -> Callable[..., Any] | None:
    """What decodes a tile or strip of such a page, called as :attr:`TiffPage.decode` is, with its kind of answer;
    None for other pages."""
    if key.compression == _APERIO_YCBCR and key.samplesperpixel == 3:
        return partial(_decoded_aperio, key.decode)
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


def _decoded_aperio(
    decode: Callable[..., Any], data: bytes, index: int, **tables: Any
) -> tuple[np.ndarray | None, int, tuple[int, ...]]:
    """As `decode`, what tifffile decodes with, but in RGB: (1, height, width, 3) uint8."""
    import numpy as np
    from PIL import Image

    pixels, place, shape = decode(data, index, **tables)
    if pixels is not None and pixels.dtype == np.uint8 and _holds_ycbcr(data):
        colours = Image.fromarray(pixels.reshape(-1, pixels.shape[-2], 3), "YCbCr").convert("RGB")
        pixels = np.asarray(colours).reshape(pixels.shape)
    return pixels, place, shape


def _holds_ycbcr(codestream: bytes) -> bool:
    """Whether three components of one size were stored without JPEG 2000's own colour transform (ISO 15444-1, A.5)."""
    at = 2
    while (marker := codestream[at : at + 2]) != _COD:
        length = int.from_bytes(codestream[at + 2 : at + 4], "big")
        if marker == _SIZ:  # per component: depth, and the steps of its pixels across and down
            steps = [codestream[at + 41 + 3 * c : at + 43 + 3 * c] for c in range(3)]
            if len(set(steps)) > 1:
                return False
        if length < 2:
            return False
        at += 2 + length
    return codestream[at + 8] == 0
