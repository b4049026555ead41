"""Means over pixels: what a pixel of another size is made of, and pixels made so.

Each axis has its own weights. Shrinking: the area that a target pixel and a stored pixel share (box). Enlarging:
bilinear between pixel centres, the edge pixel going on outside. Both are ratios of whole numbers, and the
weights are kept as such (:class:`Taps`), so they depend on a target pixel's place alone; sums run over the taps in
one order, element by element. Whatever window asks for a pixel, its bits are the same, and in float64 sums
of integers are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import numpy as np

#: Values that are summed at once: 1 MiB of float32, so that a band's sums stay in the cache.
_BAND_VALUES = 1 << 18


@dataclass(frozen=True, slots=True)
class Taps:
    """The stored pixels of one axis that each target pixel is made of, and their shares."""

    index: np.ndarray
    """int64 (targets, taps), ascending along both axes; a tap of weight 0 repeats a neighbour's index."""
    weight: np.ndarray
    """float64 (targets, taps): whole numbers times one power of two, at most 1."""
    total: float
    """What the weights of every target pixel sum to, exactly."""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def start(self) -> int:
        """First stored pixel in use."""
        return int(self.index[0, 0])

    @property
    def stop(self) -> int:
        """One past the last stored pixel in use."""
        return int(self.index[-1, -1]) + 1

    def part(self, first: int, last: int, origin: int = 0) -> Taps:
        """Target pixels `first … last - 1` of these, over stored pixels counted from `origin`."""
        return Taps(self.index[first:last] - origin, self.weight[first:last], self.total)


def taps(start: int, stop: int, length: int, stored: int) -> Taps:
    """Taps of target pixels `start … stop - 1` on an axis of `length` pixels over one of `stored` pixels."""
    common = gcd(length, stored)
    p, q = stored // common, length // common  # a target pixel is p/q stored ones wide
    target = np.arange(start, stop, dtype=np.int64)
    if p >= q:
        count = (p + q - 2) // q + 1  # the most that p/q of a pixel can touch
        first = target * p // q
        index = first[:, None] + np.arange(count)
        shared = np.minimum((index + 1) * q, ((target + 1) * p)[:, None]) - np.maximum(
            index * q, (target * p)[:, None]
        )
        shares, total = np.maximum(shared, 0), p
        last = ((target + 1) * p - 1) // q
    else:
        # centre of target i: ((2i + 1) p − q) / 2q, counted from the centre of stored pixel 0
        first, part = np.divmod((2 * target + 1) * p - q, 2 * q)
        index = first[:, None] + np.arange(2)
        shares, total = np.stack([2 * q - part, part], axis=1), 2 * q
        last = first + (part > 0)
    index = np.minimum(index, last[:, None]).clip(0, stored - 1)
    scale = 2.0 ** -total.bit_length()  # sums of the largest floats must not overflow
    return Taps(index, shares * scale, total * scale)


def nearest(start: int, stop: int, length: int, stored: int) -> Taps:
    """The same, of the one stored pixel under each target pixel's centre."""
    index = (2 * np.arange(start, stop, dtype=np.int64)[:, None] + 1) * stored // (2 * length)
    return Taps(index, np.ones(index.shape), 1.0)


def picked(
    pixels: np.ndarray, valid: np.ndarray | None, rows: Taps, cols: Taps
) -> tuple[np.ndarray, np.ndarray | None]:
    """The pixels (h, w, channels) at the first taps, and their validity: no arithmetic."""
    ys, xs = rows.index[:, 0], cols.index[:, 0]
    return pixels[ys][:, xs], None if valid is None else valid[ys][:, xs]


def averaged(
    pixels: np.ndarray,
    valid: np.ndarray | None,
    rows: Taps,
    cols: Taps,
    *,
    fill: float,
    alpha: int | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Weighted means of `pixels` (h, w, channels), in their dtype (integers rounded to nearest, ties to even).

    Returns them (targets of `rows`, targets of `cols`, channels) and where they have data, bool or None for
    everywhere: where at least half of the weight has. Pixels that are not `valid` (h, w; None = all are) have
    no weight, except in the opacity channel `alpha`; so has NaN in its channel, which is NaN where more than half of
    the weight is. Pixels without data are `fill`, of opacity 0; those that inf has a share in are inf.
    """
    channels = pixels.shape[2]
    out = np.empty((len(rows), len(cols), channels), pixels.dtype)
    seen = np.ones(out.shape[:2], bool)
    step = max(1, _BAND_VALUES // (pixels.shape[1] * channels))
    for top in range(0, len(rows), step):
        bottom = min(top + step, len(rows))
        start, stop = int(rows.index[top, 0]), int(rows.index[bottom - 1, -1]) + 1
        _average(
            pixels[start:stop],
            None if valid is None else valid[start:stop],
            rows.part(top, bottom, origin=start),
            cols,
            alpha,
            fill,
            out[top:bottom],
            seen[top:bottom],
        )
    return out, None if seen.all() else seen


def _average(
    pixels: np.ndarray,
    valid: np.ndarray | None,
    rows: Taps,
    cols: Taps,
    alpha: int | None,
    fill: float,
    out: np.ndarray,
    seen: np.ndarray,
) -> None:
    """:func:`averaged` of one band, into `out` and `seen`."""
    height, _, channels = pixels.shape
    # float32 holds means of bytes to 1e-4; anything wider is summed in float64
    work = np.dtype(np.float32 if pixels.dtype.itemsize == 1 else np.float64)
    total = rows.total * cols.total
    if valid is not None and valid.all():
        valid = None
    values = pixels.reshape(height, -1)
    has = _weighable(values, valid, channels, alpha)
    if has is None:
        sums = _sums(values, channels, rows, cols, work)
        _store(np.divide(sums, work.type(total), out=sums), out)
        return
    values = np.where(has, values, values.dtype.type(0))
    sums = _sums(values, channels, rows, cols, work)
    # exact, so that a value whose own weight is whole is divided by the very `total`
    exact = np.dtype(np.float64)
    share = None if valid is None else _sums(valid.view(np.uint8), 1, rows, cols, exact)
    if share is not None and alpha is None and values.dtype.kind != "f":
        weights = np.repeat(share, channels, axis=1)  # all channels alike
    else:
        weights = _sums(has.view(np.uint8), channels, rows, cols, exact)
    divisors = np.maximum(weights, 1e-30).astype(work, copy=False)  # where nothing has weight, 0 stays 0
    _store(np.divide(sums, divisors, out=sums), out)
    if out.dtype.kind == "f":
        np.copyto(out, np.nan, where=(2 * weights < total).reshape(out.shape))
    if share is not None:
        np.greater_equal(2 * share, total, out=seen)
        out[~seen] = fill
        if alpha is not None:
            out[~seen, alpha] = 0


def _weighable(
    values: np.ndarray, valid: np.ndarray | None, channels: int, alpha: int | None
) -> np.ndarray | None:
    """Which values (h, w · channels) have weight, as bool; None = all."""
    has = None
    if valid is not None:
        has = np.repeat(valid, channels, axis=1)
        if alpha is not None:
            has[:, alpha::channels] = True
    if values.dtype.kind == "f":
        number = values == values  # False at NaN alone
        if not number.all():
            has = number if has is None else np.logical_and(has, number, out=has)
    return has


def _sums(values: np.ndarray, channels: int, rows: Taps, cols: Taps, work: np.dtype) -> np.ndarray:
    """Σ weight · value (h, w · channels) over the taps of both axes, rows first: `work` (rows, cols · channels)."""
    weight = rows.weight.astype(work)
    places = (cols.index[:, :, None] * channels + np.arange(channels)).transpose(1, 0, 2)
    shares = np.repeat(cols.weight.T.astype(work), channels, axis=1)
    with np.errstate(invalid="ignore"):  # 0 · inf and inf − inf: see below
        tall = np.multiply(values[rows.index[:, 0]], weight[:, 0, None], dtype=work)
        term = np.empty_like(tall)
        for k in range(1, weight.shape[1]):
            np.multiply(values[rows.index[:, k]], weight[:, k, None], out=term, dtype=work)
            tall += term
        # mode="clip" writes to `out` without a detour; no index is out of range
        sums = np.empty((len(rows), shares.shape[1]), work)
        np.take(tall, places[0].reshape(-1), axis=1, out=sums, mode="clip")
        sums *= shares[0]
        term = np.empty_like(sums)
        for k in range(1, len(shares)):
            np.take(tall, places[k].reshape(-1), axis=1, out=term, mode="clip")
            term *= shares[k]
            sums += term
    if values.dtype.kind == "f":
        sums[np.isnan(sums)] = np.inf  # NaN had no weight: only inf makes one
    return sums


def _store(means: np.ndarray, out: np.ndarray) -> None:
    """Write means (rows, cols · channels) to `out` in its dtype; `means` is spoilt."""
    if out.dtype.kind in "iu":
        np.rint(means, out=means)
        if out.dtype.itemsize == 8:  # a float64 near their ends may lie beyond them
            info = np.iinfo(out.dtype)
            np.clip(means, float(info.min), np.nextafter(float(info.max), 0), out=means)
    np.copyto(out, means.reshape(out.shape), casting="unsafe")
