"""What files beside an image say in its place: where it lies (GDAL's IMAGE.aux.xml, a world file, a .prj), and which
pixels hold data (GDAL's IMAGE.msk).

On disks alone: at a URL every name that is looked for is a request for each time that an image is opened, and a storage
that shows no listing answers "no right to" where nothing is.
"""

from __future__ import annotations

import html
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from raysegment import console
from raysegment.raster.crs import of_text
from raysegment.raster.identity import content_identity
from raysegment.storage import Url, location

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from raysegment.raster.protocol import Transform

#: What is read of such a file: they are texts of a few lines, but for the statistics at the end of an .aux.xml.
_MOST_BYTES = 1 << 20


def transform_beside(path: str) -> Transform | None:
    """The transform of pixel corners that is told beside an image. A world file that tells none is said."""
    place = location(path)
    if isinstance(place, Url):
        return None
    values = _numbers(_element("GeoTransform", _aux(place)).split(","))
    if values is not None:
        c, a, b, f, d, e = values
        return (a, b, c, d, e, f)
    for file in _first_there(_world_names(place)):
        values = _numbers((_text(file) or "").splitlines()[:6])
        if values is not None:
            a, d, b, e, x, y = values  # of the centre of the first pixel
            if a * e - b * d:
                return (a, b, x - (a + b) / 2, d, e, y - (d + e) / 2)
        console.warn(f"{file} is no world file, which has six numbers, one a line: ignored")
    return None


def crs_beside(path: str) -> str | None:
    """The coordinate system that is told beside an image."""
    place = location(path)
    if isinstance(place, Url):
        return None
    wkt, file = html.unescape(_element("SRS", _aux(place))), _aux_path(place)
    for prj in _first_there(() if wkt else _cases(place, ".prj")):
        wkt, file = (_text(prj) or "").strip(), prj
    return of_text(wkt, str(file)) if wkt else None


def mask_beside(path: str) -> str | None:
    """The TIFF that is 0 where an image has no data, as GDAL writes it unless told to put it into the image."""
    place = location(path)
    mask = None if isinstance(place, Url) else place.with_name(f"{place.name}.msk")
    return str(mask) if mask is not None and mask.is_file() else None


def place_identity(crs: str | None, transform: Transform | None) -> str:
    """A digest of what is told beside an image; not of the files, to which GDAL adds statistics when it pleases."""
    return content_identity([repr((crs, transform)).encode()])


def _world_names(place: Path) -> Iterator[Path]:
    """x.tif: x.tfw, x.tifw, x.wld."""
    kind = place.suffix[1:]
    if kind:
        yield from _cases(place, f".{kind[0]}{kind[-1]}w")
        yield from _cases(place, f".{kind}w")
    yield from _cases(place, ".wld")


def _cases(place: Path, suffix: str) -> Iterator[Path]:
    yield place.with_suffix(suffix.lower())
    yield place.with_suffix(suffix.upper())


def _first_there(files: Iterable[Path]) -> list[Path]:
    found = next((file for file in files if file.is_file()), None)
    return [] if found is None else [found]


def _aux_path(place: Path) -> Path:
    return place.with_name(f"{place.name}.aux.xml")


def _aux(place: Path) -> str:
    path = _aux_path(place)
    return (_text(path) or "") if path.is_file() else ""


def _element(name: str, xml: str) -> str:
    """What stands in the first element of that name; by its letters, since no parser need be trusted with it."""
    found = re.search(rf"<{name}\b[^>]*>(.*?)</{name}>", xml, re.DOTALL)
    return found[1].strip() if found else ""


def _numbers(texts: list[str]) -> tuple[float, ...] | None:
    """Six finite numbers."""
    try:
        values = tuple(float(text) for text in texts)
    except ValueError:
        return None
    return values if len(values) == 6 and all(map(math.isfinite, values)) else None


def _text(file: Path) -> str | None:
    try:
        with file.open("rb") as f:
            return f.read(_MOST_BYTES).decode("utf-8-sig", "replace")
    except OSError as e:
        console.warn(f"cannot read {file}: {e.strerror}: ignored")
        return None
