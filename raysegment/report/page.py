"""Renders pages: templates in, one HTML file out. Whatever is put into a page is escaped."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from raysegment import console
from raysegment.errors import StorageError, WorkError
from raysegment.storage import Location
from raysegment.storage.objects import put

_SPELLED = {"iou": "IoU", "dice": "Dice", "f1": "F1", "v": "V", "rand": "Rand"}
_NARROW_SPACE = "\N{NARROW NO-BREAK SPACE}"


def render(template: str, values: Mapping[str, Any]) -> str:
    """The page that `template` of templates/ makes of `values`. A value that it lacks is an error."""
    return _environment().get_template(template).render(values)


def write_page(path: Location, html: str) -> None:
    """Whole, so that a browser never sees half of it. Raises WorkError."""
    try:
        put(path, html.encode("utf-8", "backslashreplace"))  # a file name need not be valid Unicode
    except StorageError:
        raise
    except OSError as e:
        raise WorkError(f"cannot write {path}: {e.strerror}") from e


def count(number: float) -> str:
    """12345678 → "12 345 678"."""
    return f"{number:,.0f}".replace(",", _NARROW_SPACE)


def counted(number: int, noun: str) -> str:
    """ "1 image", "12 345 images"."""
    return f"{count(number)} {console.counted(number, noun).partition(' ')[2]}"


def share(part: float) -> str:
    """0.1234 → "12.3 %"; what is not nothing is not shown as nothing."""
    text = "< 0.1" if 0 < part < 0.0005 else f"{100 * part:.1f}"
    return f"{text}{_NARROW_SPACE}%"


def score(value: float | None) -> str:
    """0.84321 → "0.843"; None → "–"."""
    return "–" if value is None else f"{value:.3f}"


def spelled(name: str) -> str:
    """mean_iou → "mean IoU"."""
    return " ".join(_SPELLED.get(word, word) for word in name.split("_"))


def duration(seconds: float) -> str:
    """3725 → "1 h 2 min"; 65 → "1 min 5 s"."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    parts = [f"{hours} h", f"{m} min"] if hours else [f"{m} min", f"{s} s"] if m else [f"{s} s"]
    return " ".join(parts).replace(" ", _NARROW_SPACE)


@functools.cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("raysegment.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(
        count=count, counted=counted, share=share, score=score, spelled=spelled, duration=duration
    )
    return found
