"""What stands in training and in validation alike, so that the scores would praise memory.

Two things are looked for: the same picture (by content, so under any name, in any lossless format, with alpha or
without), and images whose footprints on the ground overlap.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from raysegment import console
from raysegment.console import counted
from raysegment.geometry import Size, Window
from raysegment.raster import Raster
from raysegment.raster.walk import windows
from raysegment.threads import OPENERS, READERS, in_order
from raysegment.training.forms.scene import Scene

#: Edge of the window in the middle by which pictures are compared before they are compared whole.
_PROBE_PX = 256
#: An overlap thinner than this, in pixels, is how far rounded coordinates are off.
_THIN_PX = 0.5
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Leak:
    """A training and a validation image that show the same."""

    train: str
    val: str
    share: float
    """Of the smaller image's pixels; 1 = the same picture."""

    def __str__(self) -> str:
        return f"{self.train} and {self.val}"


def same_pictures(train: Sequence[Scene], val: Sequence[Scene], contents: Sequence[str]) -> list[Leak]:
    """Pairs that hold the same pixels. `contents`: digests of all images, training first; what is equal there is not
    compared again. Pictures whose middle is of a single colour, as tiles without data are, are no leak."""
    by_look: dict[object, list[int]] = defaultdict(list)
    found: list[Leak] = []
    scenes = [*train, *val]
    with (
        console.progress("look for leaks", len(scenes), "images") as bar,
        closing(in_order(_look, scenes, READERS)) as looks,
    ):
        for i, look in enumerate(looks):
            bar.advance()
            if i < len(train):
                by_look[look].append(i)
            elif look is not None:
                same = [k for k in by_look[look] if contents[k] == contents[i] or _equal(train[k], scenes[i])]
                found += [Leak(train[k].name, scenes[i].name, 1.0) for k in same]
    return found


def overlaps(train: Sequence[Scene], val: Sequence[Scene]) -> list[Leak]:
    """Pairs whose footprints overlap by more than rounding, with the share of the smaller one. Footprints in different
    coordinate systems are compared in the first one's, with rasterio; without it they are not."""
    placed = list(in_order(_footprint, [*train, *val], OPENERS))
    first = next((p.crs for p in placed if p is not None), None)
    known = [None if p is None else _in_crs(p, first) for p in placed]
    held = [(j, place) for j, place in enumerate(known[len(train) :]) if place is not None]
    low, high = (np.array([f(p.corners, axis=0) for _, p in held]).reshape(-1, 2) for f in (np.min, np.max))
    found = []
    for i, a in enumerate(known[: len(train)]):
        if a is None:
            continue
        meet = (low < a.corners.max(axis=0)).all(axis=1) & (high > a.corners.min(axis=0)).all(axis=1)
        for j, b in (held[k] for k in np.flatnonzero(meet)):
            smaller = min(a, b, key=lambda p: p.area)
            shared = _area(_clipped(a.corners, b.corners))
            if shared > _THIN_PX * smaller.pixel_area * min(smaller.size):
                found.append(Leak(train[i].name, val[j].name, min(1.0, shared / smaller.area)))
    return found


def named(leaks: Sequence[Leak]) -> str:
    """The first few, one after the other, and how many more there are."""
    shown = ", ".join(map(str, leaks[:_SHOWN]))
    return shown if len(leaks) <= _SHOWN else f"{shown} and {counted(len(leaks) - _SHOWN, 'more pair')}"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an image lies on the ground."""

    corners: np.ndarray
    """(4, 2) in turn, (x, y) in `crs`."""
    crs: str | None
    size: Size

    @property
    def area(self) -> float:
        return _area(self.corners)

    @property
    def pixel_area(self) -> float:
        return self.area / self.size.area


def _look(scene: Scene) -> tuple[object, ...] | None:
    """What two pictures must share to be the same; None where the middle is of one colour."""
    image = scene.image.open()
    try:
        height, width = scene.size
        edge = Size(min(height, _PROBE_PX), min(width, _PROBE_PX))
        window = Window(
            y=(height - edge.height) // 2, x=(width - edge.width) // 2, height=edge.height, width=edge.width
        )
        pixels = _colours(image, window)
        if (pixels == pixels[:1, :1]).all():
            return None
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
        return (height, width, pixels.shape[2], str(image.dtype), digest)
    finally:
        image.close()


def _colours(image: Raster, window: Window) -> np.ndarray:
    """Pixels (h, w, channels) without alpha, which networks do not see and formats add."""
    pixels = image.read(window)
    return pixels if image.alpha is None else np.delete(pixels, image.alpha, axis=2)


def _equal(one: Scene, other: Scene) -> bool:
    """Whether all pixels are the same but for alpha."""
    a, b = one.image.open(), other.image.open()
    try:
        whole = Window(y=0, x=0, height=one.size.height, width=one.size.width)
        return all(
            np.array_equal(_colours(a, w), _colours(b, w), equal_nan=a.dtype.kind == "f")
            for w in windows(whole, a.chunk)
        )
    finally:
        a.close()
        b.close()


def _footprint(scene: Scene) -> _Place | None:
    image = scene.image.open()
    image.close()
    if image.transform is None:
        return None
    a, b, c, d, e, f = image.transform
    height, width = scene.size
    corners = [
        (a * x + b * y + c, d * x + e * y + f) for x, y in ((0, 0), (width, 0), (width, height), (0, height))
    ]
    return _Place(np.array(corners), image.crs, scene.size)


def _in_crs(place: _Place, crs: str | None) -> _Place | None:
    if place.crs == crs:
        return place
    if crs is None or place.crs is None or importlib.util.find_spec("rasterio") is None:
        return None
    from rasterio.errors import CRSError, RasterioError
    from rasterio.warp import transform

    try:
        xs, ys = transform(place.crs, crs, *place.corners.T)
    except (CRSError, RasterioError) as e:
        console.detail(f"{place.crs} and {crs} cannot be compared: {e}")
        return None
    return _Place(np.column_stack([xs, ys]), crs, place.size)


def _clipped(subject: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The part (n, 2) of one convex polygon that lies in another (Sutherland and Hodgman 1974)."""
    if _signed_area(by) < 0:
        by = by[::-1]
    for start, end in zip(by, np.roll(by, -1, axis=0), strict=True):
        if not len(subject):
            break
        along, off = end - start, subject - start
        side = along[0] * off[:, 1] - along[1] * off[:, 0]  # at least 0: inside
        kept = []
        for i in range(len(subject)):
            here, last = side[i], side[i - 1]
            if (here < 0) != (last < 0):
                kept.append(subject[i - 1] + (subject[i] - subject[i - 1]) * last / (last - here))
            if here >= 0:
                kept.append(subject[i])
        subject = np.array(kept).reshape(-1, 2)
    return subject


def _area(corners: np.ndarray) -> float:
    return abs(_signed_area(corners))


def _signed_area(corners: np.ndarray) -> float:
    if not len(corners):
        return 0.0
    x, y = (corners - corners[0]).T  # large coordinates would lose the digits that count
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)
