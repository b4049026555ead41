"""How far the contestants' masks are the same, and right: read band by band, whatever their size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from lineup import YARDSTICK
from material import FOREST, truth_of

from raysegment import open_raster
from raysegment.geometry import Window

_BAND_PX = 1024


def compare(masks: dict[str, Path], source: Path, network: str) -> list[dict[str, Any]]:
    """For each mask the share of pixels that equal the yardstick's and, of the real network, the truth.

    Of the constant network the truth is class 1 everywhere.
    """
    opened = {program: _open(path) for program, path in masks.items()}
    same: Counter[str] = Counter()
    right: Counter[str] = Counter()
    pixels = 0
    for rows, true in _truth(source):
        wanted = np.ones_like(true) if network == "constant" else true == FOREST
        bands = {program: mask[rows] for program, mask in opened.items()}
        pixels += true.size
        for program, band in bands.items():
            right[program] += int((band == wanted).sum())
            if YARDSTICK in bands:
                same[program] += int((band == bands[YARDSTICK]).sum())
    return [
        {
            "program": program,
            "as_yardstick": same[program] / pixels if YARDSTICK in opened else None,
            "right": right[program] / pixels,
        }
        for program in masks
    ]


def _open(path: Path) -> zarr.Array:
    """Labels at full resolution, of an OME-Zarr or of a plain array."""
    node = zarr.open(path, mode="r")
    return node if isinstance(node, zarr.Array) else node["0"]


def _truth(source: Path) -> Iterator[tuple[slice, np.ndarray]]:
    """The true classes (h, w) of the scene, band by band."""
    raster = open_raster(truth_of(source))
    height, width, _ = raster.shape
    for y in range(0, height, _BAND_PX):
        window = Window.between(y, 0, min(y + _BAND_PX, height), width)
        yield slice(y, window.bottom), raster.read(window)[..., 0]
    raster.close()
