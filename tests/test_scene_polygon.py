"""Convex polygons of the synthetic landscape, against brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raysegment.scene.polygon import (
    Frame,
    Point,
    area,
    clipped,
    depth_inside,
    inset,
    inside,
    outline,
    random_point,
    ribbon,
    swept,
)

numbers = st.floats(-100, 100, allow_nan=False).map(lambda v: round(v, 2))


@st.composite
def convex(draw: st.DrawFn) -> list[Point]:
    """A polygon on an ellipse, either way round."""
    count = draw(st.integers(3, 8))
    angles = [2 * math.pi * (k + draw(st.floats(0, 0.8))) / count for k in range(count)]
    height, width = draw(st.floats(20, 90)), draw(st.floats(20, 90))
    polygon = [(height * math.sin(a), width * math.cos(a)) for a in angles]
    assume(area(polygon) > 400)
    return polygon[::-1] if draw(st.booleans()) else polygon


def holds(polygon: list[Point], at: Point) -> bool:
    """Whether a point is inside, by the crossing number."""
    odd = False
    for (ay, ax), (by, bx) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        if (ay > at[0]) != (by > at[0]) and at[1] < ax + (at[0] - ay) / (by - ay) * (bx - ax):
            odd = not odd
    return odd


@given(convex(), st.floats(0, math.pi), numbers, numbers)
def test_a_cut_keeps_what_is_on_its_side(polygon: list[Point], angle: float, offset: float, y: float) -> None:
    normal = (math.sin(angle), math.cos(angle))
    part, labels = clipped(polygon, list(range(len(polygon))), normal, offset, 99)
    assert len(part) == len(labels)
    assert labels.count(99) <= 1
    for x in range(-95, 96, 19):
        away = normal[0] * y + normal[1] * x - offset
        if abs(away) > 1e-6 and abs(depth_inside(polygon, (y, x))) > 1e-6:
            assert holds(part, (y, x)) == (holds(polygon, (y, x)) and away < 0)


@given(convex(), numbers, numbers)
def test_depth_is_the_distance_to_the_edge(polygon: list[Point], y: float, x: float) -> None:
    depth = depth_inside(polygon, (y, x))
    if abs(depth) > 1e-6:
        assert (depth > 0) == holds(polygon, (y, x))
    if depth > 0:
        edge = np.array(outline(polygon, 0.1))
        assert depth == pytest.approx(np.hypot(*(edge - (y, x)).T).min(), abs=0.06)


@given(convex(), st.floats(1, 30), numbers, numbers)
def test_inset_moves_every_edge_inwards(polygon: list[Point], by: float, y: float, x: float) -> None:
    depth = depth_inside(polygon, (y, x))
    assume(abs(depth - by) > 1e-6)
    part = inset(polygon, by)
    assert (len(part) > 2 and holds(part, (y, x))) == (depth > by)


@given(convex(), st.integers(0, 1000))
def test_random_points_are_inside(polygon: list[Point], seed: int) -> None:
    at = random_point(np.random.default_rng(seed), polygon)
    assert depth_inside(polygon, at) > -1e-6


@given(convex(), st.floats(0, math.pi))
def test_the_boxes_of_a_frame_share_out_a_polygon(polygon: list[Point], angle: float) -> None:
    frame = Frame((3.0, -5.0), angle)
    p0, p1, q0, q1 = frame.bounds(polygon)
    middle_p, middle_q = (p0 + p1) / 2, (q0 + q1) / 2
    quarters = [
        frame.cut(polygon, *ps, *qs)
        for ps in ((p0 - 1, middle_p), (middle_p, p1 + 1))
        for qs in ((q0 - 1, middle_q), (middle_q, q1 + 1))
    ]
    assert sum(area(q) for q in quarters) == pytest.approx(area(polygon))
    at = frame.world(7.0, 11.0)
    assert frame.local(at) == pytest.approx((7.0, 11.0))


@given(convex(), numbers, numbers)
def test_a_shadow_covers_the_body_and_its_foot(polygon: list[Point], dy: float, dx: float) -> None:
    shadow = swept(polygon, (dy, dx))
    for y, x in polygon:
        for t in (0.0, 0.5, 1.0):
            assert depth_inside(shadow, (y + t * dy, x + t * dx)) > -1e-6


@given(convex(), numbers, numbers, numbers, numbers)
def test_a_line_is_cut_at_the_edge(polygon: list[Point], ay: float, ax: float, by: float, bx: float) -> None:
    assume(math.dist((ay, ax), (by, bx)) > 1)
    found = inside(polygon, (ay, ax), (by, bx))
    if found is None:
        middle = ((ay + by) / 2, (ax + bx) / 2)
        assert depth_inside(polygon, middle) < 1e-6
        return
    for end in found:
        assert depth_inside(polygon, end) == pytest.approx(0, abs=1e-6)


def test_a_ribbon_is_as_wide_as_it_should_be() -> None:
    a, b = (10.0, 20.0), (40.0, 60.0)
    band = ribbon(a, b, 4.0, 10.0)
    assert area(band) == pytest.approx(8 * math.dist(a, b))
    assert max(math.dist(p, q) for p, q in itertools.pairwise(band)) <= 10.0 + 1e-9
