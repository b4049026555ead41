"""Randomness by place: numbers that depend on a seed and a position alone, so any window can be made by itself."""

from __future__ import annotations

from enum import IntEnum, auto

import numpy as np

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_STEP = np.uint64(0x9E3779B97F4A7C15)


class Stream(IntEnum):
    """What a random number is for: one seed gives each use its own, unrelated numbers."""

    CENTRE_Y = auto()
    CENTRE_X = auto()
    KIND = auto()
    WOODED = auto()
    DISTRICT = auto()
    BORDER = auto()
    FARM = auto()
    BEND_Y = auto()
    BEND_X = auto()
    SHIVER_Y = auto()
    SHIVER_X = auto()
    RIVER = auto()
    RIVER_BENDS = auto()
    RIVER_SHIVER = auto()
    RIVER_WIDTH = auto()
    LIGHT = auto()
    CLOUDS = auto()
    SENSOR = auto()
    GRAIN = auto()
    PATCHES = auto()
    CROWNS = auto()


def hash01(seed: int, stream: Stream, *at: np.ndarray | int) -> np.ndarray:
    """Uniform float64 numbers in [0, 1), one per integer position (SplitMix64)."""
    with np.errstate(over="ignore"):
        state = _mixed(np.uint64(seed) + _STEP * np.uint64(stream))
        for coordinate in at:
            state = _mixed((state ^ np.asarray(coordinate, np.int64).astype(np.uint64)) + _STEP)
    return np.asarray((state >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def place_rng(seed: int, stream: Stream, *at: int) -> np.random.Generator:
    """A generator of its own for one integer position."""
    return np.random.default_rng([seed, int(stream), *(a & 0xFFFFFFFF for a in at)])


def value_noise(seed: int, stream: Stream, y: np.ndarray, x: np.ndarray, spacing: float) -> np.ndarray:
    """Smooth noise in [-1, 1]: random numbers on a lattice of `spacing` px, interpolated."""
    (iy, fy), (ix, fx) = _split(y / spacing), _split(x / spacing)
    corner = [[hash01(seed, stream, iy + a, ix + b) for b in (0, 1)] for a in (0, 1)]
    return 2.0 * _blended(corner, _fade(fy), _fade(fx)) - 1.0


def gradient_noise(seed: int, stream: Stream, y: np.ndarray, x: np.ndarray, spacing: float) -> np.ndarray:
    """Perlin's noise, about [-0.8, 0.8]: its zero lines wander in every direction alike."""
    (iy, fy), (ix, fx) = _split(y / spacing), _split(x / spacing)
    corner = []
    for a in (0, 1):
        row = []
        for b in (0, 1):
            angle = 2.0 * np.pi * hash01(seed, stream, iy + a, ix + b)
            row.append(np.sin(angle) * (fy - a) + np.cos(angle) * (fx - b))
        corner.append(row)
    return 1.4 * _blended(corner, _fade(fy), _fade(fx))


def _mixed(state: np.ndarray | np.uint64) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * _MIX[0]
    state = (state ^ (state >> np.uint64(27))) * _MIX[1]
    return np.asarray(state ^ (state >> np.uint64(31)))


def _split(position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    whole = np.floor(position)
    return whole.astype(np.int64), position - whole


def _fade(t: np.ndarray) -> np.ndarray:
    return t * t * t * (t * (6.0 * t - 15.0) + 10.0)


def _blended(corner: list[list[np.ndarray]], wy: np.ndarray, wx: np.ndarray) -> np.ndarray:
    top = corner[0][0] + wx * (corner[0][1] - corner[0][0])
    bottom = corner[1][0] + wx * (corner[1][1] - corner[1][0])
    return np.asarray(top + wy * (bottom - top))
