"""Line charts as inline SVG: where everything lies. templates/charts.html draws it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: The drawing's own units; style.css scales it to the column.
WIDTH, HEIGHT = 440, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 18, 34
#: Charts of more points are drawn without dots.
_MOST_DOTS = 200


@dataclass(frozen=True, slots=True)
class Line:
    """A name and points (x, y), finite, in the order of x."""

    name: str
    points: Sequence[tuple[float, float]]
    look: str
    """CSS class."""


@dataclass(frozen=True, slots=True)
class Dot:
    """One point with the text that hovering shows."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True)
class Drawn:
    """A line in the drawing's units."""

    name: str
    look: str
    points: str
    """As the attribute of <polyline>."""
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart in the drawing's units."""

    title: str
    summary: str
    """What it shows, for those who cannot see it."""
    x_name: str
    lines: tuple[Drawn, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    mark: tuple[float, str] | None
    """A vertical line and its name."""
    level: tuple[float, str] | None
    """A horizontal line and its name."""
    size: tuple[int, int] = (WIDTH, HEIGHT)
    frame: tuple[int, int, int, int] = (_LEFT, _TOP, WIDTH - _RIGHT, HEIGHT - _BOTTOM)
    """Left, top, right, bottom of the plot itself."""


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_name: str,
    mark: tuple[float, str] | None = None,
    level: tuple[float, str] | None = None,
    low: float | None = None,
) -> Chart:
    """A chart of one line or more, with at least one point. `low`: where the y axis begins at the latest."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    ys += [] if level is None else [level[0]]
    ys += [] if low is None else [low]
    x_from, x_to = min(xs), max(xs)
    y_marks = ticks(min(ys), max(ys))
    y_from, y_to = min(y_marks[0], min(ys)), max(y_marks[-1], max(ys))

    def x_of(x: float) -> float:
        return _place(x, x_from, x_to, _LEFT, WIDTH - _RIGHT)

    def y_of(y: float) -> float:
        return _place(y, y_from, y_to, HEIGHT - _BOTTOM, _TOP)

    def drawn(line: Line) -> Drawn:
        places = [(x_of(x), y_of(y)) for x, y in line.points]
        dots = zip(places, line.points, strict=True) if len(xs) <= _MOST_DOTS else ()
        return Drawn(
            line.name,
            line.look,
            " ".join(f"{x:g},{y:g}" for x, y in places),
            tuple(Dot(*p, f"{line.name}, {x_name} {x:g}: {y:.4g}") for p, (x, y) in dots),
        )

    return Chart(
        title,
        "; ".join(_told(line, x_name) for line in lines),
        x_name,
        tuple(map(drawn, lines)),
        tuple((x_of(x), f"{x:g}") for x in ticks(x_from, x_to, whole=True) if x_from <= x <= x_to),
        tuple((y_of(y), f"{y:g}") for y in y_marks),
        None if mark is None else (x_of(mark[0]), mark[1]),
        None if level is None else (y_of(level[0]), level[1]),
    )


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Three to seven round numbers (1, 2 or 5 times a power of ten apart) from below `low` to above `high`."""
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-9):
        low, high = (low - 1, high + 1) if whole else (low - 0.05 * abs(low), high + 0.05 * abs(high) + 1e-9)
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * 0.999)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(i * step, digits) + 0.0 for i in range(first, last + 1)]


def _place(value: float, low: float, high: float, start: float, end: float) -> float:
    if high <= low:
        return round((start + end) / 2, 1)
    return round(start + (end - start) * (value - low) / (high - low), 1)


def _told(line: Line, x_name: str) -> str:
    (x0, y0), (x1, y1) = line.points[0], line.points[-1]
    if x0 == x1:
        return f"{line.name}: {y0:.4g} at {x_name} {x0:g}"
    return f"{line.name}: from {y0:.4g} at {x_name} {x0:g} to {y1:.4g} at {x_name} {x1:g}"
