"""What the land itself does: it bends everything a little, and a river runs through it."""

from __future__ import annotations

import numpy as np

from raysegment.scene.noise import Stream, gradient_noise, value_noise

#: Below this slope the river spreads into a lake instead of keeping its width.
_LEVEL = 4.5e-4


def bend(seed: int, points: np.ndarray) -> np.ndarray:
    """Move points (n, 2) by slow noise, so that nothing in the landscape is quite straight."""
    y, x = points[:, 0], points[:, 1]
    moved = points.copy()
    for axis, slow, quick in ((0, Stream.BEND_Y, Stream.SHIVER_Y), (1, Stream.BEND_X, Stream.SHIVER_X)):
        moved[:, axis] += 46 * value_noise(seed, slow, y, x, 380.0)
        moved[:, axis] += 7 * value_noise(seed, quick, y, x, 95.0)
    return moved


def shore_at(seed: int, points: np.ndarray) -> np.ndarray:
    """Distance (n,) in px of points (n, 2) from the river bank, negative in the water; about right near it."""
    y, x = points[:, 0], points[:, 1]
    step = 6.0
    here = _height(seed, y, x)
    slope = np.hypot(_height(seed, y + step, x) - here, _height(seed, y, x + step) - here) / step
    return _from_bank(seed, y, x, here, slope)


def shore_on(seed: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The same on a lattice (h, w) of evenly spaced rows (h,) and columns (w,)."""
    step = float(rows[1] - rows[0])
    # A rim of one, so that slopes at the edge are what the neighbouring tile sees.
    y, x = np.meshgrid(_rimmed(rows, step), _rimmed(columns, step), indexing="ij")
    height = _height(seed, y, x)
    slope_y = (height[2:, 1:-1] - height[:-2, 1:-1]) / (2 * step)
    slope_x = (height[1:-1, 2:] - height[1:-1, :-2]) / (2 * step)
    inner = (slice(1, -1), slice(1, -1))
    return _from_bank(seed, y[inner], x[inner], height[inner], np.hypot(slope_y, slope_x))


def _from_bank(seed: int, y: np.ndarray, x: np.ndarray, height: np.ndarray, slope: np.ndarray) -> np.ndarray:
    half_width = 24 + 13 * value_noise(seed, Stream.RIVER_WIDTH, y, x, 700.0)
    return np.abs(height) / np.maximum(slope, _LEVEL) - half_width


def _height(seed: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A slow landscape. Its zero line is the river."""
    return (
        gradient_noise(seed, Stream.RIVER, y, x, 1300.0)
        + 0.32 * gradient_noise(seed, Stream.RIVER_BENDS, y, x, 430.0)
        + 0.07 * gradient_noise(seed, Stream.RIVER_SHIVER, y, x, 140.0)
    )


def _rimmed(places: np.ndarray, step: float) -> np.ndarray:
    return np.concatenate([places[:1] - step, places, places[-1:] + step])
