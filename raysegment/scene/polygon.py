"""Convex polygons in the plane: cut them, widen lines into them, throw their shadow. Points are (y, x) in px."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

Point = tuple[float, float]
Polygon = Sequence[Point]


class Frame:
    """A turned coordinate system: p along `angle`, q across it."""

    def __init__(self, origin: Point, angle: float) -> None:
        self.origin = origin
        self.angle = angle
        self.p: Point = (math.sin(angle), math.cos(angle))
        self.q: Point = (math.cos(angle), -math.sin(angle))

    def world(self, p: float, q: float) -> Point:
        """The point (y, x) at p, q."""
        return (
            self.origin[0] + p * self.p[0] + q * self.q[0],
            self.origin[1] + p * self.p[1] + q * self.q[1],
        )

    def local(self, at: Point) -> Point:
        """p and q of a point (y, x)."""
        y, x = at[0] - self.origin[0], at[1] - self.origin[1]
        return (y * self.p[0] + x * self.p[1], y * self.q[0] + x * self.q[1])

    def bounds(self, polygon: Polygon) -> tuple[float, float, float, float]:
        """p0, p1, q0, q1 around a polygon."""
        ps, qs = zip(*(self.local(point) for point in polygon), strict=True)
        return min(ps), max(ps), min(qs), max(qs)

    def rectangle(self, p: float, q: float, half_p: float, half_q: float) -> list[Point]:
        """The rectangle around p, q."""
        corners = ((-1, -1), (-1, 1), (1, 1), (1, -1))
        return [self.world(p + a * half_p, q + b * half_q) for a, b in corners]

    def cut(self, polygon: Polygon, p0: float, p1: float, q0: float, q1: float) -> list[Point]:
        """The part of a convex polygon with p0 ≤ p ≤ p1 and q0 ≤ q ≤ q1; empty or degenerate if none."""
        part, labels = list(polygon), [0] * len(polygon)
        for axis, low, high in ((self.p, p0, p1), (self.q, q0, q1)):
            base = axis[0] * self.origin[0] + axis[1] * self.origin[1]
            part, labels = clipped(part, labels, axis, base + high, 0)
            part, labels = clipped(part, labels, (-axis[0], -axis[1]), -(base + low), 0)
        return part


def edges(polygon: Polygon) -> Iterator[tuple[Point, Point]]:
    """Its edges, in order."""
    return zip(polygon, (*polygon[1:], *polygon[:1]), strict=True)


def clipped(
    polygon: Polygon, labels: Sequence[int], normal: Point, offset: float, label: int
) -> tuple[list[Point], list[int]]:
    """The part where normal · p ≤ offset. `labels` name the edge from each vertex on, `label` the cut."""
    points: list[Point] = []
    names: list[int] = []
    depth = [normal[0] * y + normal[1] * x - offset for y, x in polygon]
    for k, a in enumerate(polygon):
        following = (k + 1) % len(polygon)
        b, da, db = polygon[following], depth[k], depth[following]
        if da <= 0:
            points.append(a)
            names.append(labels[k])
        if (da <= 0) != (db <= 0):
            t = da / (da - db)
            points.append((a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])))
            names.append(label if da <= 0 else labels[k])
    return points, names


def signed_area(polygon: Polygon) -> float:
    """Area in px², negative for one orientation."""
    return sum(a[0] * b[1] - a[1] * b[0] for a, b in edges(polygon)) / 2


def area(polygon: Polygon) -> float:
    """Area in px²."""
    return abs(signed_area(polygon)) if len(polygon) > 2 else 0.0


def depth_inside(polygon: Polygon, at: Point) -> float:
    """Distance of a point from the edge of a convex polygon; negative outside."""
    sign = 1.0 if signed_area(polygon) > 0 else -1.0
    return min(
        sign * ((b[0] - a[0]) * (at[1] - a[1]) - (b[1] - a[1]) * (at[0] - a[0])) / math.dist(a, b)
        for a, b in edges(polygon)
        if math.dist(a, b) > 1e-9
    )


def inset(polygon: Polygon, by: float) -> list[Point]:
    """What is left of a convex polygon when every edge moves `by` inwards; empty if nothing is."""
    sign = 1.0 if signed_area(polygon) > 0 else -1.0
    part, labels = list(polygon), [0] * len(polygon)
    for a, b in edges(polygon):
        length = math.dist(a, b)
        if length > 1e-9:
            outward = (sign * (b[1] - a[1]) / length, -sign * (b[0] - a[0]) / length)
            part, labels = clipped(part, labels, outward, outward[0] * a[0] + outward[1] * a[1] - by, 0)
    return part


def random_point(rng: np.random.Generator, polygon: Polygon) -> Point:
    """A point of a convex polygon, every place alike."""
    fan = [(polygon[0], b, c) for b, c in itertools.pairwise(polygon[1:])]
    weights = np.array([area(t) for t in fan])
    a, b, c = fan[int(rng.choice(len(fan), p=weights / weights.sum()))]
    u, v = rng.uniform(size=2).tolist()
    if u + v > 1:
        u, v = 1 - u, 1 - v
    return (a[0] + u * (b[0] - a[0]) + v * (c[0] - a[0]), a[1] + u * (b[1] - a[1]) + v * (c[1] - a[1]))


def stepped(a: Point, b: Point, step: float) -> list[Point]:
    """Points from a on, at most `step` apart, without b."""
    count = max(1, math.ceil(math.dist(a, b) / step))
    dy, dx = (b[0] - a[0]) / count, (b[1] - a[1]) / count
    return [(a[0] + k * dy, a[1] + k * dx) for k in range(count)]


def outline(polygon: Polygon, step: float) -> list[Point]:
    """The polygon with vertices at most `step` apart, so that it can be bent."""
    return [point for a, b in edges(polygon) for point in stepped(a, b, step)]


def ribbon(a: Point, b: Point, half_width: float, step: float) -> list[Point]:
    """The outline of a line drawn `2 · half_width` wide, with vertices at most `step` apart."""
    length = math.dist(a, b)
    across = ((b[1] - a[1]) / length * half_width, -(b[0] - a[0]) / length * half_width)
    line = [*stepped(a, b, step), b]
    there = [(y + across[0], x + across[1]) for y, x in line]
    back = [(y - across[0], x - across[1]) for y, x in reversed(line)]
    return there + back


def inside(polygon: Polygon, a: Point, b: Point) -> tuple[Point, Point] | None:
    """The part of the line through a and b that lies in a convex polygon."""
    found = sorted(_crossings(polygon, a, b))
    if len(found) < 2:
        return None
    start, stop = ((a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])) for t in (found[0], found[-1]))
    return start, stop


def _crossings(polygon: Polygon, a: Point, b: Point) -> Iterator[float]:
    dy, dx = b[0] - a[0], b[1] - a[1]
    for c, d in edges(polygon):
        side_c = dy * (c[1] - a[1]) - dx * (c[0] - a[0])
        side_d = dy * (d[1] - a[1]) - dx * (d[0] - a[0])
        if (side_c < 0) != (side_d < 0):
            s = side_c / (side_c - side_d)
            y, x = c[0] + s * (d[0] - c[0]), c[1] + s * (d[1] - c[1])
            yield ((y - a[0]) * dy + (x - a[1]) * dx) / (dy * dy + dx * dx)


def swept(polygon: Polygon, by: Point) -> list[Point]:
    """The convex hull of a polygon and its copy moved `by`: the shadow of an upright body on flat ground."""
    points = sorted({*polygon, *((y + by[0], x + by[1]) for y, x in polygon)})
    return _half_hull(points)[:-1] + _half_hull(points[::-1])[:-1]


def _half_hull(points: Polygon) -> list[Point]:
    hull: list[Point] = []
    for p in points:
        while len(hull) > 1 and _turn(hull[-2], hull[-1], p) <= 0:
            hull.pop()
        hull.append(p)
    return hull


def _turn(a: Point, b: Point, c: Point) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
