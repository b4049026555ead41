"""Where an image has data, told from its pixels."""

from __future__ import annotations

import contextlib
import math
import sys
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from raysegment.raster.protocol import Raster

#: Beyond this no pixel is a measurement: float32 ends at 3.4e38.
_HUGE = 1e38
#: Above this share of a huge nodata, a pixel is nodata too.
_AS_HUGE = 0.999
#: Every whole number up to this one is a float.
_EXACT = 2**53


def parsed_nodata(text: str) -> float | None:
    """A value of nodata as tools write it, or None; whole numbers beyond 2⁵³, which a float would round, as int.

    The lowest double, written with 15 digits, lies beyond all doubles: it is taken for the lowest.
    """
    try:
        value = float(text)
    except ValueError:
        return None
    if math.isinf(value) and "inf" not in text.lower():
        return math.copysign(sys.float_info.max, value)
    with contextlib.suppress(ValueError):
        return int(text) if abs(value) >= _EXACT else value
    return value


def representable(nodata: float | None, dtype: np.dtype) -> float | None:
    """`nodata` as a pixel of `dtype` could hold it, or None when none can (−9999 in a uint8 image)."""
    if nodata is None:
        return None
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            stored = float(dtype.type(nodata))
        return None if math.isinf(stored) and not math.isinf(nodata) else stored
    if not math.isfinite(nodata) or nodata != int(nodata):
        return None
    info = np.iinfo(dtype)
    return nodata if info.min <= nodata <= info.max else None


def declare_nodata(raster: Raster, nodata: float | None) -> Raster:
    """`raster`, which takes `nodata` for no data where it has no such value of its own; a value that its dtype cannot
    hold means nothing. Known to this object alone: whoever opens the image again declares it again."""
    if raster.nodata is None:
        raster.nodata = representable(nodata, raster.dtype)
    return raster


def valid_pixels(pixels: np.ndarray, nodata: float | None, alpha: int | None) -> np.ndarray | None:
    """Where `pixels` (height, width, channels) hold data: bool (height, width), True = data; None = all.

    False where every colour channel is nodata or NaN, or where the `alpha` channel is 0.
    """
    valid: np.ndarray | None = None
    if nodata is not None or pixels.dtype.kind == "f":
        for c in range(pixels.shape[2]):
            if c != alpha:
                has = _has_data(pixels[:, :, c], nodata)
                valid = has if valid is None else np.logical_or(valid, has, out=valid)
    if alpha is not None:
        opaque = pixels[:, :, alpha] != 0
        valid = opaque if valid is None else np.logical_and(valid, opaque, out=valid)
    return valid


def unusable(values: np.ndarray) -> str | None:
    """What of `values` no network can take, in words; None where there is nothing: inf, and what becomes inf as
    float32, in which networks compute. (No integer does.)"""
    if values.dtype.kind != "f":
        return None
    if np.isinf(values).any():
        return "inf"
    if values.dtype.itemsize > np.float32().itemsize:
        with np.errstate(over="ignore"):
            beyond = np.isinf(values.astype(np.float32))
        if beyond.any():
            return f"{values[beyond][0]:g}, which is beyond float32,"
    return None


def _has_data(channel: np.ndarray, nodata: float | None) -> np.ndarray:
    if channel.dtype.kind != "f":
        return channel != channel.dtype.type(int(nodata))  # type: ignore[arg-type]
    has = channel == channel  # False at NaN alone
    if nodata is not None and not math.isnan(nodata):
        has &= channel != channel.dtype.type(nodata)
        if _HUGE < abs(nodata) < math.inf:
            # The lowest float, in a header with 6 to 15 of its digits: what is as low as that is meant.
            low = channel if nodata < 0 else -channel
            has &= (low > -_AS_HUGE * abs(nodata)) | np.isinf(low)
        if channel.dtype == np.float64 and abs(nodata) < float(np.finfo(np.float32).max):
            # Overviews of float64 images are often computed in float32, and their nodata rounded with them.
            has &= channel != np.float64(np.float32(nodata))
    return has
