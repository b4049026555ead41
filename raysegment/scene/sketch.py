"""Shapes as they are thought up, in an unbent plane, and as they are drawn: bent, dry, in whole pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from raysegment.scene import materials as m
from raysegment.scene.polygon import Point, Polygon, outline, ribbon, swept
from raysegment.scene.terrain import bend, shore_at

#: Layers, in drawing order. Water comes between GROUND and VERGES.
GROUND, VERGES, ROADS, MARKINGS, SHADOWS, BODIES, CROWNS = range(7)

#: Where shadows fall (y, x), per pixel of height.
SHADOW: Point = (0.62, 0.78)
#: Brightness, in 1/128.
SHADED, DIM, PLAIN, BRIGHT = 62, 104, 128, 150
#: In place of a material or a brightness: what is there stays.
KEEP = -1
#: What stands up keeps this far from the water.
_DRY_PX = 12.0
_BEND_STEP_PX = 40.0


class Shape(NamedTuple):
    """A flat shape, seen from a tile: where it is, what it is made of, how bright it is."""

    layer: int
    points: list[int]
    """x, y, x, y, … as Pillow wants them: a polygon's vertices, or two corners of the box around an ellipse."""
    is_ellipse: bool
    material: int
    """Index into MATERIALS; KEEP leaves the ground as it is (a shadow, a gleam)."""
    brightness: int
    """In 1/128; KEEP leaves it as it is."""
    tone: float
    """A parcel's own brightness."""
    angle: float
    """Direction of a parcel's crop rows."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """The shapes of one district in drawing order, as columns: thousands of them are kept at a time."""

    table: np.ndarray
    """int16 (n, 4): layer, is_ellipse, material, brightness."""
    tones: np.ndarray
    """float32 (n, 2): tone, angle."""
    starts: np.ndarray
    """int32 (n + 1): shape k has the points starts[k] … starts[k + 1] − 1."""
    points: np.ndarray
    """int32 (m, 2): x, y in scene pixels."""
    boxes: np.ndarray
    """int32 (n, 4): left, top, right, bottom."""

    def meeting(self, y: int, x: int, size: int) -> Iterator[Shape]:
        """Those that touch a square of pixels, in its coordinates."""
        b = self.boxes
        meets = (b[:, 1] < y + size) & (b[:, 3] >= y) & (b[:, 0] < x + size) & (b[:, 2] >= x)
        found = np.flatnonzero(meets)
        points = (self.points - np.array((x, y), np.int32)).ravel().tolist()
        rows = zip(
            (2 * self.starts[found]).tolist(),
            (2 * self.starts[found + 1]).tolist(),
            self.table[found].tolist(),
            self.tones[found].tolist(),
            strict=True,
        )
        for start, stop, (layer, is_ellipse, material, brightness), (tone, angle) in rows:
            yield Shape(layer, points[start:stop], bool(is_ellipse), material, brightness, tone, angle)


class _Draft(NamedTuple):
    layer: int
    points: Polygon
    anchor: Point | None
    """What is moved as a whole, by its anchor (houses, trees); None: every vertex is bent by itself."""
    is_ellipse: bool
    material: int = KEEP
    brightness: int = KEEP
    tone: float = 1.0
    angle: float = 0.0


class Sketch:
    """Shapes of one district, being collected."""

    def __init__(self) -> None:
        self._drafts: list[_Draft] = []

    def parcel(self, polygon: Polygon, material: int, tone: float = 1.0, angle: float = 0.0) -> None:
        """A piece of ground."""
        points = outline(polygon, _BEND_STEP_PX)
        self._drafts.append(_Draft(GROUND, points, None, False, material, KEEP, tone, angle))

    def road(self, a: Point, b: Point, half_width: float, asphalt: int, *, markings: bool) -> None:
        """A road from a to b with verges, rounded at both ends so that roads join."""
        for layer, half, material in ((VERGES, half_width + 4, m.VERGE), (ROADS, half_width, asphalt)):
            self._flat(layer, ribbon(a, b, half, _BEND_STEP_PX), material)
            for end in (a, b):
                self._disc(layer, end, end, half, material, PLAIN)
        if markings:
            dashes = [(a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])) for t in _dashes(a, b)]
            for start, stop in zip(dashes[:-1:2], dashes[1::2], strict=False):
                self._flat(MARKINGS, ribbon(start, stop, 0.8, _BEND_STEP_PX), m.PAINT)

    def tree(self, at: Point, radius: float, height: float, material: int, gleam: int) -> None:
        """A crown with its shadow, brighter (`gleam`) on the side of the sun."""
        drop = (at[0] + SHADOW[0] * height, at[1] + SHADOW[1] * height)
        lit = (at[0] - 0.3 * radius, at[1] - 0.35 * radius)
        self._disc(SHADOWS, at, drop, radius, KEEP, SHADED)
        self._disc(CROWNS, at, at, radius, material, 112)
        self._disc(CROWNS, at, lit, 0.55 * radius, KEEP, gleam)

    def body(
        self, at: Point, parts: Sequence[tuple[Polygon, int]], walls: Polygon, height: float, roof: int
    ) -> None:
        """A building: the shadow of its `walls`, and parts of its roof, each with its brightness."""
        shadow = swept(walls, (SHADOW[0] * height, SHADOW[1] * height))
        self._drafts.append(_Draft(SHADOWS, shadow, at, False, KEEP, SHADED))
        for polygon, brightness in parts:
            self._drafts.append(_Draft(BODIES, polygon, at, False, roof, brightness))

    def _flat(self, layer: int, points: Polygon, material: int) -> None:
        self._drafts.append(_Draft(layer, points, None, False, material, PLAIN))

    def _disc(
        self, layer: int, anchor: Point, centre: Point, radius: float, material: int, brightness: int
    ) -> None:
        y, x = centre
        box = ((y - radius, x - radius), (y + radius, x + radius))
        self._drafts.append(_Draft(layer, box, anchor, True, material, brightness))

    def placed(self, seed: int) -> Shapes:
        """Bend the plane, leave out what would stand in water, round to whole pixels.

        Whole pixels, so that a shape covers the same ones in every tile that draws it.
        """
        drafts = sorted(self._drafts, key=lambda draft: draft.layer)
        lengths = [len(d.points) for d in drafts]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        points = np.array([point for d in drafts for point in d.points])
        owner = np.repeat(np.arange(len(drafts)), lengths)
        # A stiff shape moves as its anchor does; a soft one vertex by vertex.
        stiff = np.array([d.anchor is not None for d in drafts])
        anchors = np.array([d.anchor or d.points[0] for d in drafts])
        moved_anchors = bend(seed, anchors)
        soft = ~stiff[owner]
        placed = points + (moved_anchors - anchors)[owner]
        placed[soft] = bend(seed, points[soft])
        keep = ~stiff | (np.array([d.layer for d in drafts]) < SHADOWS)
        keep[~keep] = shore_at(seed, moved_anchors[~keep]) > _DRY_PX
        whole = np.rint(placed[:, ::-1]).astype(np.int32)
        low, high = np.minimum.reduceat(whole, starts[:-1]), np.maximum.reduceat(whole, starts[:-1])
        table = np.array([(d.layer, d.is_ellipse, d.material, d.brightness) for d in drafts], np.int16)
        tones = np.array([(d.tone, d.angle) for d in drafts], np.float32)
        kept = np.array(lengths)[keep]
        return Shapes(
            table[keep],
            tones[keep],
            np.concatenate([[0], np.cumsum(kept)]).astype(np.int32),
            whole[keep[owner]],
            np.concatenate([low, high], axis=1)[keep],
        )


def _dashes(a: Point, b: Point) -> np.ndarray:
    length = float(np.hypot(b[0] - a[0], b[1] - a[1]))
    return np.arange(8.0, length - 20.0, 14.0) / length
