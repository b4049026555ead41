"""Which axis of an array is which: y, x, the channels, and those that `select` has to fix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raysegment.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MEANING = {
    "y": ("y", "lat", "latitude", "height", "row", "rows", "h", "northing"),
    "x": ("x", "lon", "longitude", "width", "col", "cols", "column", "columns", "w", "easting"),
    "c": ("c", "channel", "channels", "band", "bands", "s", "sample", "samples", "spectral"),
    "t": ("t", "time"),
    "z": ("z", "depth"),
}
_SHORT = {name: short for short, names in _MEANING.items() for name in names}

#: A trailing or leading axis of at most this many entries is taken for the channels of an unnamed 3-D array.
MOST_CHANNELS = 16
_PIXELS = ("y", "x", "c")
#: Axes of TIFF pages of which the file says no more than their number.
_UNNAMED = ("page", "q")


@dataclass(frozen=True, slots=True)
class Axes:
    """The roles of an array's axes, by position."""

    y: int
    x: int
    channel: int | None
    fixed: Mapping[int, int]
    """Axis → the index at which it is held."""

    def index(self, rows: slice, columns: slice) -> tuple[int | slice, ...]:
        """The basic index that cuts rows and columns, and every channel, out of the array."""
        count = 2 + (self.channel is not None) + len(self.fixed)
        roles: dict[int, int | slice] = {self.y: rows, self.x: columns, **self.fixed}
        return tuple(roles.get(axis, slice(None)) for axis in range(count))

    def kept_order(self) -> tuple[int, ...]:
        """How to transpose what :meth:`index` leaves so that it is (y, x) or (y, x, channel)."""
        left = sorted(a for a in (self.y, self.x, self.channel) if a is not None)
        wanted = [self.y, self.x] + ([self.channel] if self.channel is not None else [])
        return tuple(left.index(a) for a in wanted)


def short_name(name: str) -> str:
    """ "y", "x", "c", "t" or "z" for the names in use for them; any other name in lower case."""
    return _SHORT.get(name.lower(), name.lower())


def resolve(names: Sequence[str], sizes: Sequence[int], select: Mapping[str, int], path: str) -> Axes:
    """Give every axis its role.

    Raises UsageError when an axis longer than 1 that is neither y, x nor channel is not in `select`, or
    `select` names an axis or an index that is not there; InputError when there is no y or no x.
    """
    short = [short_name(n) for n in names]
    shown = ", ".join(f"{n}={s}" for n, s in zip(short, sizes, strict=True))
    if short.count("y") != 1 or short.count("x") != 1:
        raise InputError(f"{path} has the axes ({shown}): an image needs one y and one x axis")
    if len(set(short)) != len(short):
        raise InputError(f"{path} has the axes ({shown}): two of them have the same name")
    wanted = {short_name(n): index for n, index in select.items()}
    for name, index in wanted.items():
        if name in ("y", "x") or name not in short:
            raise UsageError(f"select {name}={index} does not fit {path}: its axes are ({shown})")
        size = sizes[short.index(name)]
        if not 0 <= index < size:
            raise UsageError(f"select {name}={index} is outside {path}: its axes are ({shown})")
    planar = [i for i, name in enumerate(short) if name not in ("y", "x", "c") or name in wanted]
    open_ = [short[i] for i in planar if sizes[i] != 1 and short[i] not in wanted]
    if open_:
        example = ",".join(f"{name}=0" for name in open_)
        raise UsageError(
            f"{path} has the axes ({shown}): choose one plane, e.g. --select {example}{_hint(open_)} (train takes no "
            "--select: save each plane as an image of its own)"
        )
    fixed = {i: wanted.get(short[i], 0) for i in planar}
    channel = None if "c" not in short or "c" in wanted else short.index("c")
    return Axes(short.index("y"), short.index("x"), channel, fixed)


def _hint(open_: Sequence[str]) -> str:
    """What to do where pages that nothing names may be channels."""
    if set(open_).isdisjoint(_UNNAMED):
        return ""
    return "; if they are channels, let the file say so, as an OME-TIFF with the axes CYX does"


def guess_names(sizes: Sequence[int], path: str, select: Mapping[str, int] | None = None) -> tuple[str, ...]:
    """Names for an array without any: (y, x); (y, x, c) or (c, y, x) by which end is short.

    Nothing but the caller can know that the leading axis is z or t: a `select` that names it says so. Raises InputError
    when nothing tells.
    """
    found = _by_size(sizes)
    named = [short_name(n) for n in select or ()]
    if (
        len(sizes) == 3
        and len(named) == 1
        and named[0] not in ("y", "x", *(found or ()))
        and found != _PIXELS
    ):
        return (named[0], "y", "x")
    if found is not None:
        return found
    hint = ", or, to read one plane of the first axis, --select z=0" if len(sizes) == 3 else ""
    raise InputError(
        f"{path} is an array of shape {tuple(sizes)} without axis names, and which is which cannot be told: "
        f"set dimension_names (Zarr v3) or the attribute _ARRAY_DIMENSIONS{hint}"
    )


def _by_size(sizes: Sequence[int]) -> tuple[str, ...] | None:
    if len(sizes) == 2:
        return ("y", "x")
    if len(sizes) == 3:
        first, middle, last = sizes
        if last <= MOST_CHANNELS and last < min(first, middle):
            return _PIXELS
        if first <= MOST_CHANNELS and first < min(middle, last):
            return ("c", "y", "x")
    return None
