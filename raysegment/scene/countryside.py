"""Fields, meadows, woods and hedges."""

from __future__ import annotations

import numpy as np

from raysegment.scene import materials as m
from raysegment.scene.polygon import Frame, Point, Polygon, area, outline, random_point, stepped
from raysegment.scene.sketch import Sketch

_LEAST_PARCEL_PX2 = 1500.0


def farmland(sketch: Sketch, rng: np.random.Generator, cell: Polygon, frame: Frame, crops: float) -> None:
    """A cell cut into strips of fields, a share `crops` of them sown, the others meadow or wood."""
    p0, p1, q0, q1 = frame.bounds(cell)
    sketch.parcel(cell, int(rng.choice(m.MEADOWS)))
    p = p0
    while p < p1:
        length = rng.uniform(170, 420)
        q = q0
        while q < q1:
            width = rng.uniform(55, 170)
            # A strip of meadow, two or three pixels wide, is left between parcels.
            strip = frame.cut(cell, p + 2, p + length - 2, q + 1.5, q + width - 1.5)
            if area(strip) > _LEAST_PARCEL_PX2:
                _parcel(sketch, rng, strip, frame, crops)
            q += width
        p += length
    for _ in range(int(rng.poisson(8))):
        tree(sketch, rng, random_point(rng, cell), (5.0, 9.0))


def wood(sketch: Sketch, rng: np.random.Generator, cell: Polygon) -> None:
    """A closed canopy, with crowns that lean over its edge."""
    material = int(rng.choice(m.WOODS))
    sketch.parcel(cell, material, tone=rng.uniform(0.9, 1.1))
    edge = np.array(outline(cell, 9.0))
    edge += rng.normal(0, 2.5, edge.shape)
    radii, gleams = rng.uniform(4, 8, len(edge)).tolist(), rng.integers(124, 148, len(edge)).tolist()
    for (y, x), radius, gleam in zip(edge.tolist(), radii, gleams, strict=True):
        sketch.tree((y, x), radius, 7.0, material, gleam)


def tree(sketch: Sketch, rng: np.random.Generator, at: Point, radii: tuple[float, float]) -> None:
    """A tree by itself."""
    radius = rng.uniform(*radii)
    sketch.tree(at, radius, 1.3 * radius, int(rng.choice(m.TREES)), int(rng.integers(134, 156)))


def _parcel(sketch: Sketch, rng: np.random.Generator, strip: Polygon, frame: Frame, crops: float) -> None:
    u = rng.uniform()
    if u < 0.07:
        wood(sketch, rng, strip)
    elif u < 0.07 + 0.93 * crops:
        along = frame.angle + rng.normal(0, 0.03) + (np.pi / 2 if rng.uniform() < 0.15 else 0.0)
        sketch.parcel(strip, int(rng.choice(m.CROPS)), rng.uniform(0.92, 1.08), along)
    else:
        sketch.parcel(strip, int(rng.choice(m.MEADOWS)), rng.uniform(0.9, 1.1))
    if rng.uniform() < 0.3:
        _hedge(sketch, rng, strip)


def _hedge(sketch: Sketch, rng: np.random.Generator, strip: Polygon) -> None:
    """Trees along one edge of a parcel."""
    k = int(rng.integers(len(strip)))
    for y, x in stepped(strip[k], strip[(k + 1) % len(strip)], rng.uniform(7, 14)):
        if rng.uniform() < 0.8:
            tree(sketch, rng, (y + rng.normal(0, 1.5), x + rng.normal(0, 1.5)), (4.0, 7.0))
