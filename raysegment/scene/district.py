"""One district of the landscape: a cell of a jittered Voronoi diagram, and all that is in it.

A district depends on the seed and on its place in the lattice alone: every tile of a scene calls up those that it
sees, in any order, and draws the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from raysegment.scene import materials as m
from raysegment.scene.countryside import farmland, wood
from raysegment.scene.noise import Stream, hash01, place_rng, value_noise
from raysegment.scene.polygon import Frame, Point, clipped, inset
from raysegment.scene.sketch import Shapes, Sketch
from raysegment.scene.village import farm, village

#: Distance between the centres of neighbouring districts, before jitter.
DISTRICT_PX = 640
#: No shape of a district lies further than this from its lattice cell: no point is further than 0.82 √2 · 640 px
#: from the nearest centre, a centre lies 0.18 · 640 px inside, and farms and bends add 150.
REACH_PX = 780
_AROUND_PX = 150.0

_LEAST_ROAD_PX = 12.0
#: Forests keep this far from the borders, where roads run.
_CLEARING_PX = 20.0
_LEAST_FARM_ROAD_PX = 150.0
_MAIN_HALF_PX, _LANE_HALF_PX = 9.0, 6.0


def district(seed: int, row: int, column: int) -> Shapes:
    """Everything in the district at a place of the lattice."""
    rng = place_rng(seed, Stream.DISTRICT, row, column)
    cell, behind = _cell(seed, row, column)
    frame = Frame(_centre(seed, row, column), rng.uniform(0, math.pi))
    sketch = Sketch()
    kind = _kind(seed, row, column)
    if kind == "village":
        village(sketch, rng, cell, frame)
    elif kind == "forest":
        sketch.parcel(cell, m.VERGE)
        wood(sketch, rng, inset(cell, _CLEARING_PX))
    else:
        farmland(sketch, rng, cell, frame, crops=0.86 if kind == "farmland" else 0.15)
    _borders(sketch, seed, (row, column), cell, behind)
    return sketch.placed(seed)


def near(seed: int, row: int, column: int, y: int, x: int, size: int) -> bool:
    """Whether a district may have a shape in a square of pixels: cheap, and right when it says no."""
    cell, _ = _cell(seed, row, column)
    ys, xs = zip(*cell, strict=True)
    return (
        min(ys) - _AROUND_PX < y + size
        and max(ys) + _AROUND_PX > y
        and min(xs) - _AROUND_PX < x + size
        and max(xs) + _AROUND_PX > x
    )


@lru_cache(4096)
def _kind(seed: int, row: int, column: int) -> str:
    """Forests come in regions, by slow noise; a quarter is villages, the rest fields and meadows."""
    cy, cx = _centre(seed, row, column)
    wooded = float(value_noise(seed, Stream.WOODED, np.array([cy]), np.array([cx]), 2600.0)[0])
    u = float(hash01(seed, Stream.KIND, row, column))
    if u < 0.26:
        return "village"
    if u < 0.40 + 0.12 * wooded:
        return "forest"
    return "meadow" if u < 0.53 else "farmland"


def _borders(
    sketch: Sketch, seed: int, place: tuple[int, int], cell: Sequence[Point], behind: Sequence[int]
) -> None:
    """Roads run along borders. Of two districts, the one that comes first in the lattice draws the border."""
    around = _around(*place)
    for k, label in enumerate(behind):
        if label < 0 or around[label] < place:
            continue
        a, b = cell[k], cell[(k + 1) % len(cell)]
        u = float(hash01(seed, Stream.BORDER, *place, label))
        inhabited = "village" in (_kind(seed, *place), _kind(seed, *around[label]))
        if math.dist(a, b) < _LEAST_ROAD_PX or (u > 0.72 and not inhabited):
            continue
        is_main = u < 0.30
        asphalt = m.ASPHALT[int(u * 1e4) % len(m.ASPHALT)]
        sketch.road(a, b, _MAIN_HALF_PX if is_main else _LANE_HALF_PX, asphalt, markings=is_main)
        if 0.30 < u < 0.60 and not inhabited and math.dist(a, b) > _LEAST_FARM_ROAD_PX:
            farm(sketch, place_rng(seed, Stream.FARM, *place, label), a, b)


@lru_cache(1024)
def _cell(seed: int, row: int, column: int) -> tuple[list[Point], list[int]]:
    """The Voronoi cell, and for the edge from each vertex on the district behind it (index into _around)."""
    cy, cx = _centre(seed, row, column)
    far = 2.0 * DISTRICT_PX
    cell = [(cy + a * far, cx + b * far) for a, b in ((-1, -1), (-1, 1), (1, 1), (1, -1))]
    labels = [-1] * 4
    for label, (i, j) in enumerate(_around(row, column)):
        if (i, j) != (row, column):
            ny, nx = _centre(seed, i, j)
            normal = (ny - cy, nx - cx)
            middle = normal[0] * (ny + cy) / 2 + normal[1] * (nx + cx) / 2
            cell, labels = clipped(cell, labels, normal, middle, label)
    return cell, labels


@lru_cache(4096)
def _centre(seed: int, row: int, column: int) -> Point:
    y, x = (float(hash01(seed, stream, row, column)) for stream in (Stream.CENTRE_Y, Stream.CENTRE_X))
    return ((row + 0.18 + 0.64 * y) * DISTRICT_PX, (column + 0.18 + 0.64 * x) * DISTRICT_PX)


def _around(row: int, column: int) -> list[tuple[int, int]]:
    return [(row + i, column + j) for i in range(-2, 3) for j in range(-2, 3)]
