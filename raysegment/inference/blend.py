"""Blend weights, normalised before they are used.

A weight w(y)·w(x) is separable, so everything is a vector per axis. With
n(y) = Σ_k w(y − start_k) over the tiles that exist, the weights used are ŵ_k(y) = w(y − start_k) / n(y):
they sum to 1 at every pixel of the image, corners included, so nothing is divided afterwards.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from raysegment.inference.grid import Axis

Blend = Literal["hann", "gaussian", "linear", "none"]

FIXED_POINT_BITS = 30
"""Weighted probabilities are rounded once to multiples of 2⁻³⁰ and then summed exactly, in any order."""


def window(blend: Blend, tile: int, overlap: int) -> np.ndarray:
    """Unnormalised weights of one tile along one axis: float64 (tile,), > 0 wherever the tile counts.

    hann, linear: a ramp over the `overlap` pixels shared with each neighbour, at pixel centres, 1 between;
    gaussian: σ = tile/8 around the centre (nnU-Net's choice); none: the cell alone.
    """
    i = np.arange(tile, dtype=np.float64)
    if blend == "gaussian":
        return np.exp(-0.5 * ((i - (tile - 1) / 2) / (tile / 8)) ** 2)
    if blend == "none":
        half = overlap // 2
        return ((i >= half) & (i < tile - half)).astype(np.float64)
    up = np.minimum((i + 0.5) / overlap, 1.0) if overlap else np.ones(tile)
    if blend == "hann":
        up = np.sin(np.pi / 2 * up) ** 2
    return up * up[::-1]


@lru_cache(maxsize=4096)
def weights(axis: Axis, k: int, blend: Blend) -> np.ndarray:
    """Normalised weights ŵ_k of tile k on an axis: float64 (tile,), read-only.

    Pixels outside the image get what the formula says; nobody looks at them.
    """
    w = window(blend, axis.tile, axis.overlap)
    total = np.zeros_like(w)
    reach = (axis.tile - 1) // axis.stride
    for other in range(max(0, k - reach), min(axis.cells, k + reach + 1)):
        shift = (other - k) * axis.stride
        a, b = max(0, shift), min(axis.tile, axis.tile + shift)
        total[a:b] += w[a - shift : b - shift]
    used = np.divide(w, total, out=np.zeros_like(w), where=w > 0)
    used.setflags(write=False)
    return used
