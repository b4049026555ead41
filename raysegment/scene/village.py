"""Villages and farms: streets, gardens, houses, and trees between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from raysegment.scene import materials as m
from raysegment.scene.countryside import tree
from raysegment.scene.polygon import Frame, Point, Polygon, area, depth_inside, inside, random_point
from raysegment.scene.sketch import BRIGHT, DIM, SHADOW, Sketch

_STREET_HALF_PX = 5.0
_LEAST_STREET_PX = 60.0
_PX2_PER_TREE = 3200.0


def village(sketch: Sketch, rng: np.random.Generator, cell: Polygon, frame: Frame) -> None:
    """A cell full of streets, with houses on both sides of those that run along p."""
    sketch.parcel(cell, int(rng.choice(m.LAWNS)))
    p0, p1, q0, q1 = frame.bounds(cell)
    across = _spaced(rng, q0 + 40, q1 - 40, 120, 170)  # places q of the streets along p
    along = _spaced(rng, p0 + 60, p1 - 60, 220, 380)  # places p of the streets along q
    for q in across:
        _gardens(sketch, rng, cell, frame, q)
    asphalt = int(rng.choice(m.ASPHALT))
    ends = [(frame.world(p0, q), frame.world(p1, q)) for q in across]
    ends += [(frame.world(p, q0), frame.world(p, q1)) for p in along]
    for a, b in ends:
        street = inside(cell, a, b)
        if street is not None and math.dist(*street) > _LEAST_STREET_PX:
            sketch.road(*street, _STREET_HALF_PX, asphalt, markings=False)
    for q in across:
        for side in (-1, 1):
            _row_of_houses(sketch, rng, cell, frame, q, side, along)
    for _ in range(int(area(cell) / _PX2_PER_TREE)):
        at = random_point(rng, cell)
        p, q = frame.local(at)
        if min(_gap(q, across), _gap(p, along)) > 13:
            tree(sketch, rng, at, (4.0, 7.5))


def farm(sketch: Sketch, rng: np.random.Generator, a: Point, b: Point) -> None:
    """A few large buildings beside the road from a to b."""
    t = rng.uniform(0.35, 0.65)
    middle = (a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1]))
    frame = Frame(middle, math.atan2(b[0] - a[0], b[1] - a[1]))
    side = 1 if rng.uniform() < 0.5 else -1
    sketch.parcel(frame.rectangle(0, side * 46, 58, 36), int(rng.choice(m.LAWNS)), tone=0.95)
    for p in (-34.0, 4.0, 38.0)[: int(rng.integers(1, 4))]:
        _house(sketch, rng, frame, p, side * rng.uniform(34, 52), rng.uniform(12, 16), rng.uniform(10, 20))
    for _ in range(6):
        tree(sketch, rng, frame.world(rng.uniform(-60, 60), side * rng.uniform(60, 80)), (4.0, 9.0))


def _gardens(sketch: Sketch, rng: np.random.Generator, cell: Polygon, frame: Frame, street: float) -> None:
    p, p1, _, _ = frame.bounds(cell)
    while p < p1:
        width = rng.uniform(35, 75)
        for low, high in ((street - 62, street), (street, street + 62)):
            lot = frame.cut(cell, p, p + width, low, high)
            if area(lot) > 0 and rng.uniform() < 0.75:
                sketch.parcel(lot, int(rng.choice(m.LAWNS)), tone=rng.uniform(0.85, 1.15))
        p += width


def _row_of_houses(
    sketch: Sketch,
    rng: np.random.Generator,
    cell: Polygon,
    frame: Frame,
    street: float,
    side: int,
    crossings: Sequence[float],
) -> None:
    """Houses on one side of the street at q = `street`, clear of the streets that cross it."""
    p, p1, _, _ = frame.bounds(cell)
    p += rng.uniform(5, 40)
    while p < p1:
        half_p, half_q = rng.uniform(9, 17), rng.uniform(7, 12)
        q = street + side * (_STREET_HALF_PX + rng.uniform(7, 14) + half_q)
        clear = _gap(p, crossings) > half_p + 9 and depth_inside(cell, frame.world(p, q)) > half_p + 20
        if clear and rng.uniform() < 0.88:
            _house(sketch, rng, frame, p, q, half_p, half_q)
            if rng.uniform() < 0.35:
                behind = q + side * (half_q + rng.uniform(10, 18))
                _house(sketch, rng, frame, p + rng.uniform(-8, 8), behind, 6.0, 5.0)
        p += 2 * half_p + rng.uniform(8, 30)


def _house(
    sketch: Sketch, rng: np.random.Generator, frame: Frame, p: float, q: float, half_p: float, half_q: float
) -> None:
    """A house whose roof is flat, or has two slopes of which one faces the sun."""
    walls = frame.rectangle(p, q, half_p, half_q)
    height = rng.uniform(7, 12) if half_p > 6 else 4.0
    if rng.uniform() < 0.2:
        parts = [(walls, 136)]
    elif half_p >= half_q:
        parts = _slopes(
            frame.q, *(frame.rectangle(p, q + s * half_q / 2, half_p, half_q / 2) for s in (1, -1))
        )
    else:
        parts = _slopes(
            frame.p, *(frame.rectangle(p + s * half_p / 2, q, half_p / 2, half_q) for s in (1, -1))
        )
    sketch.body(frame.world(p, q), parts, walls, height, int(rng.choice(m.ROOFS)))


def _slopes(outward: Point, ahead: list[Point], behind: list[Point]) -> list[tuple[list[Point], int]]:
    """Two slopes, `ahead` of the ridge in the direction `outward` and behind it, with their brightness."""
    is_shaded = outward[0] * SHADOW[0] + outward[1] * SHADOW[1] > 0
    return [(ahead, DIM if is_shaded else BRIGHT), (behind, BRIGHT if is_shaded else DIM)]


def _gap(value: float, lines: Sequence[float]) -> float:
    return min((abs(value - line) for line in lines), default=math.inf)


def _spaced(rng: np.random.Generator, low: float, high: float, least: float, most: float) -> list[float]:
    places: list[float] = []
    while low < high:
        places.append(low)
        low += rng.uniform(least, most)
    return places
