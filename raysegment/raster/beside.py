"""What files beside an image say in its place: where it lies (GDAL's IMAGE.aux.xml, a world file, a .prj), and which
pixels hold data (GDAL's IMAGE.aux.xml and IMAGE.msk).

On disks alone: at a URL every name that is looked for is a request for each time that an image is opened, and a storage
that shows no listing answers "no right to" where nothing is.
"""

from __future__ import annotations

import html
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raysegment import console
from raysegment.raster.crs import of_text
from raysegment.raster.identity import content_identity
from raysegment.raster.validity import parsed_nodata
from raysegment.storage import Url, location

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from raysegment.raster.protocol import Transform

#: What is read of such a file: they are texts of a few lines, but for the statistics at the end of an .aux.xml.
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Aux:
    """What IMAGE.aux.xml says; None where it does not."""

    path: str = ""
    wkt: str = ""
    transform: Transform | None = None
    """Of pixel corners."""
    nodata: float | None = None
    """As written: whether a pixel can hold it is not looked at."""

    def crs(self) -> str | None:
        """The coordinate system; asked for only where it is wanted, for rasterio to read it."""
        return of_text(self.wkt, self.path) if self.wkt else None


def aux_beside(path: str) -> Aux:
    """What GDAL's IMAGE.aux.xml says. Values of nodata that differ from band to band are said and ignored."""
    place = location(path)
    if isinstance(place, Url):
        return Aux()
    file = place.with_name(f"{place.name}.aux.xml")
    xml = (_text(file) or "") if file.is_file() else ""
    wkt = html.unescape(_first(_elements("SRS", xml)))
    transform = _numbers(_first(_elements("GeoTransform", xml)).split(","))
    if transform is not None:
        c, a, b, f, d, e = transform
        transform = (a, b, c, d, e, f)
    told = [parsed_nodata(text) for text in _elements("NoDataValue", xml)]
    values = {f"{value:.17g}": value for value in told if value is not None}  # no NaN is equal to another
    if len(values) > 1:
        console.warn(f"{file} gives the bands different values of nodata, {', '.join(values)}: ignored")
        values.clear()
    return Aux(str(file), wkt, transform, next(iter(values.values()), None))


def world_file_beside(path: str) -> Transform | None:
    """The transform of pixel corners by a world file. One that tells none is said."""
    place = location(path)
    if isinstance(place, Url):
        return None
    for file in _first_there(_world_names(place)):
        values = _numbers((_text(file) or "").splitlines()[:6])
        if values is not None:
            a, d, b, e, x, y = values  # of the centre of the first pixel
            if a * e - b * d:
                return (a, b, x - (a + b) / 2, d, e, y - (d + e) / 2)
        console.warn(f"{file} is no world file, which has six numbers, one a line: ignored")
    return None


def prj_beside(path: str) -> str | None:
    """The coordinate system by a .prj."""
    place = location(path)
    if isinstance(place, Url):
        return None
    for file in _first_there(_cases(place, ".prj")):
        wkt = (_text(file) or "").strip()
        return of_text(wkt, str(file)) if wkt else None
    return None


def mask_beside(path: str) -> str | None:
    """The TIFF that is 0 where an image has no data, as GDAL writes it unless told to put it into the image."""
    place = location(path)
    mask = None if isinstance(place, Url) else place.with_name(f"{place.name}.msk")
    return str(mask) if mask is not None and mask.is_file() else None


def beside_identity(crs: str | None, transform: Transform | None, nodata: float | None) -> str | None:
    """A digest of what counts of what is told beside an image, None where nothing does; not of the files, to which GDAL
    adds statistics when it pleases."""
    told = (crs, transform) if nodata is None else (crs, transform, nodata)
    return content_identity([repr(told).encode()]) if any(value is not None for value in told) else None


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


def _elements(name: str, xml: str) -> list[str]:
    """What stands in each element of that name; by its letters, since no parser need be trusted with it."""
    return [text.strip() for text in re.findall(rf"<{name}\b[^>]*>(.*?)</{name}>", xml, re.DOTALL)]


def _first(texts: list[str]) -> str:
    return texts[0] if texts else ""


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
