"""LERC tiles and strips of a TIFF, with the masks beside their values: GDAL keeps NaN and opacity in them.

tifffile leaves the masks out, so that NaN would be 0, lacks opacity that is nowhere else, and takes bands that are
stored one after the other for pixels. In a big-endian file libtiff, and so GDAL, codes the numbers with their bytes
swapped.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from tifffile import TiffPage

_LERC = 34887  # Compression
_SEPARATE = 2  # PlanarConfiguration


def decoder_of(key: TiffPage) -> Callable[..., Any] | None:
    """What decodes a tile or strip of a LERC page, called as :attr:`TiffPage.decode` is, with its kind of answer;
    None for other pages."""
    if key.compression != _LERC:
        return None
    width = key.tilewidth if key.is_tiled else key.imagewidth
    samples = 1 if key.planarconfig == _SEPARATE else key.samplesperpixel
    return partial(_decoded, width=width, samples=samples, byteorder=key.parent.byteorder)


def _decoded(
    data: bytes, index: int, *, width: int, samples: int, byteorder: Any, **_: Any
) -> tuple[np.ndarray, int, tuple[int, ...]]:
    """(1, height, width, samples): floats that are masked are NaN; opacity that is not among the values is the mask.

    Raises ValueError for a segment that holds another number of samples.
    """
    import imagecodecs

    pixels, mask = imagecodecs.lerc_decode(data, masks=True)
    pixels = pixels.view(pixels.dtype.newbyteorder(byteorder))
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    elif pixels.shape[1] != width or (mask is not None and mask.ndim == 3):  # band by band
        pixels = np.moveaxis(pixels, 0, 2)
    if mask is not None:
        mask = mask[:, :, None] if mask.ndim == 2 else np.moveaxis(mask, 0, 2)
        if pixels.dtype.kind == "f":
            pixels = np.where(mask, pixels, pixels.dtype.type(np.nan))
    if pixels.dtype == np.uint8 and pixels.shape[2] == samples - 1:
        seen = np.ones((*pixels.shape[:2], 1), bool) if mask is None else mask
        pixels = np.concatenate([pixels, seen * np.uint8(255)], axis=2)
    if pixels.shape[2] != samples:
        raise ValueError(f"it unpacks to {pixels.shape[2]} values a pixel instead of {samples}")
    return pixels[None], index, pixels.shape
