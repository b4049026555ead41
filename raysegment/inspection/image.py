"""What is worth knowing of an image and of a mask."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from raysegment import console
from raysegment.classes import distinct, pixel_codes
from raysegment.geometry import Window
from raysegment.raster.walk import windows
from raysegment.raster.zarr import ZarrRaster

if TYPE_CHECKING:
    from raysegment.mask.coding import Coding, Field
    from raysegment.raster import Raster

#: Edge of a window that is looked at, and how many of them per axis, of an image too big to be read for this.
SAMPLE_PX = 512
SAMPLES = 4


def image_facts(raster: Raster, field: Field | None = None) -> dict[str, Any]:
    """Header, and what the pixels of up to SAMPLES² windows hold; of a mask's side output also what `field` says."""
    height, width, channels = raster.shape
    return {
        **({} if field is None else {"holds": str(field)}),
        "format": raster.format,
        "shape": [height, width, channels],
        **_axes(raster),
        "dtype": str(raster.dtype),
        "megapixels": height * width / 1e6,
        "bytes": height * width * channels * raster.dtype.itemsize,
        **_places(raster),
        "other_images": [{"name": name, "size": list(size)} for name, size in raster.other_images],
        "nodata": None if raster.nodata is None else number(raster.nodata),
        "alpha": raster.alpha,
        "palette": len(raster.palette) if raster.palette is not None else None,
        **_sampled(raster),
    }


def mask_facts(raster: Raster, coding: Coding) -> dict[str, Any]:
    """Header, coding, and the pixels of every class, counted over the whole mask."""
    height, width = raster.shape[:2]
    counts = class_pixels(raster)
    total = sum(counts.get(i, 0) for i in range(len(coding.classes)))
    classes = [
        {
            "index": i,
            "name": c.name,
            "colour": "#{:02x}{:02x}{:02x}".format(*c.colour),
            "value": c.value,
            "pixels": counts.get(i, 0),
            "share": counts.get(i, 0) / total if total else 0.0,
        }
        for i, c in enumerate(coding.classes)
    ]
    return {
        "format": raster.format,
        "shape": [height, width],
        "dtype": str(raster.dtype),
        **_places(raster),
        "nodata": coding.nodata,
        "origin": list(coding.origin),
        "scale": list(coding.scale),
        "classes": classes,
        "nodata_pixels": counts.get(coding.nodata, 0),
        "unknown_pixels": height * width - total - counts.get(coding.nodata, 0),
    }


def class_pixels(raster: Raster) -> Counter[int]:
    """Pixels of every code of a mask, read window by window."""
    height, width = raster.shape[:2]
    counts: Counter[int] = Counter()
    with console.progress("count", height * width / 1e6, "MP") as progress:
        for window in windows(Window(y=0, x=0, height=height, width=width), raster.chunk):
            values, index = distinct(pixel_codes(raster.read(window)))
            counts.update(dict(zip(values.tolist(), np.bincount(index).tolist(), strict=True)))
            progress.advance(window.area / 1e6)
    return counts


def _axes(raster: Raster) -> dict[str, Any]:
    """Of an image that is an array of any axes: a stack of planes without names is easily taken for channels."""
    if not isinstance(raster, ZarrRaster):
        return {}
    return {"axes": raster.axes, "axes_are_named": raster.axes_are_named}


def _places(raster: Raster) -> dict[str, Any]:
    return {
        "levels": [list(size) for size in raster.levels],
        "chunk": list(raster.chunk),
        "pixel_size": list(raster.pixel_size) if raster.pixel_size is not None else None,
        "crs": raster.crs,
        "transform": list(raster.transform) if raster.transform is not None else None,
    }


def _sampled(raster: Raster) -> dict[str, Any]:
    """Range and mean of each channel where there is data, and the share of pixels that have none."""
    read = valid_count = 0
    channels = raster.shape[2]
    low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
    sums, counted = np.zeros(channels), np.zeros(channels)
    for window in sample_windows(raster):
        pixels = raster.read(window)
        valid = raster.valid(window, pixels)
        data = pixels.reshape(-1, channels) if valid is None else pixels[valid]
        read, valid_count = read + window.area, valid_count + len(data)
        if len(data):
            low, high = np.fmin(low, np.fmin.reduce(data)), np.fmax(high, np.fmax.reduce(data))
            sums += np.nansum(data, axis=0, dtype=np.float64)
            counted += np.count_nonzero(data == data, axis=0)  # all but NaN
    measured = [
        {"channel": c, "min": number(low[c]), "max": number(high[c]), "mean": number(sums[c] / counted[c])}
        for c in range(channels)
        if counted[c]
    ]
    return {
        "sampled_share": read / (raster.shape[0] * raster.shape[1]),
        "valid_share": valid_count / read,
        "channels": measured,
    }


def sample_windows(raster: Raster) -> list[Window]:
    """The whole of a small image; of a big one, windows at equal distances."""
    height, width = raster.shape[:2]
    if height * width <= (SAMPLES * SAMPLE_PX) ** 2:
        return list(windows(Window(y=0, x=0, height=height, width=width), raster.chunk))
    tops, lefts = (_starts(length) for length in (height, width))
    return [
        Window(y=y, x=x, height=min(SAMPLE_PX, height), width=min(SAMPLE_PX, width))
        for y in tops
        for x in lefts
    ]


def _starts(length: int) -> list[int]:
    count = max(1, min(SAMPLES, length // SAMPLE_PX))
    room = max(0, length - SAMPLE_PX)
    return [round(i * room / max(1, count - 1)) for i in range(count)]


def number(value: float) -> int | float | str:
    """As JSON has it: whole numbers as such, and what JSON cannot say ("nan", "inf") as text."""
    if not np.isfinite(value):
        return str(float(value))
    return int(value) if float(value).is_integer() else float(value)
