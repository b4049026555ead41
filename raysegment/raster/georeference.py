"""Where a TIFF lies and how big its pixels are: by its tags and, where they do not say it, by files beside it.

GeoTIFF 1.1 (OGC 19-008) for the coordinate system and the transform, GDAL_NODATA for nodata; for slides
Aperio's ImageDescription, OME-XML, ImageJ's unit, and the resolution tags where what they say is plausible
under a microscope.
"""

from __future__ import annotations

import html
import importlib.util
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysegment import console
from raysegment.raster.beside import aux_beside, beside_identity, prj_beside, world_file_beside
from raysegment.raster.crs import of_codes, of_file
from raysegment.raster.validity import parsed_nodata

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tifffile import TiffFile, TiffPage

    from raysegment.raster.protocol import PixelSize, Transform

_PIXEL_SCALE, _TIEPOINT, _MATRIX, _GEO_KEYS = 33550, 33922, 34264, 34735
_GDAL_NODATA = 42113
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_INCH, _CENTIMETRE = 2, 3

# GeoKeys
_MODEL_TYPE, _RASTER_TYPE, _GEOGRAPHIC, _PROJECTED, _LINEAR_UNIT = 1024, 1025, 2048, 3072, 3076
_VERTICAL = 4096
_MODEL_PROJECTED, _MODEL_GEOGRAPHIC = 1, 2
_PIXEL_IS_POINT = 2
_USER_DEFINED = 32767

#: EPSG codes of linear units in metres.
_METRES = {9001: 1.0, 9002: 0.3048, 9003: 1200 / 3937, 9036: 1000.0}
_MICROMETRES = {
    **dict.fromkeys(("µm", "μm", "um", "micron", "microns", "micrometer", "micrometre"), 1.0),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-3),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e4),
    **dict.fromkeys(("m", "meter", "metre"), 1e6),
    **dict.fromkeys(("å", "angstrom"), 1e-4),
    "inch": 25400.0,
}
#: Resolution tags are believed up to this many µm per pixel: 300 dpi, a printer's default, would be 85.
_MOST_MICROSCOPIC_UM = 20.0


@dataclass(frozen=True, slots=True)
class Georeference:
    """What is known of an image's place; None where the file does not say."""

    crs: str | None
    transform: Transform | None
    pixel_size: PixelSize | None
    nodata: float | None
    is_geotiff: bool = False
    """Whether the file itself says its transform."""
    beside: str | None = None
    """A digest of it where files beside the image say some of it."""


def georeference_of(tif: TiffFile, page: TiffPage, path: str) -> Georeference:
    """Read the tags of the full-resolution `page`; what they say wins over what lies beside the file."""
    keys, aux = _geo_keys(page), aux_beside(path)
    own_nodata = _nodata(page)
    nodata = own_nodata if own_nodata is not None else aux.nodata
    told = aux.nodata if own_nodata is None else None
    internal = _transform(page, keys)
    transform = internal or aux.transform or world_file_beside(path)
    if transform is None:  # a CRS without a transform (ground control points) places nothing
        return Georeference(
            None, None, _microscope_pixel_size(tif, page), nodata, beside=beside_identity(None, None, told)
        )
    own = _crs(keys, path)
    crs = own or aux.crs() or prj_beside(path)
    size = pixel_size_of(transform, crs, unit_metres=_unit_metres(keys), geographic=_is_geographic(keys))
    by_others = internal is None or (own is None and crs is not None)
    beside = beside_identity(crs, transform, told) if by_others else beside_identity(None, None, told)
    return Georeference(crs, transform, size, nodata, internal is not None, beside)


def pixel_size_of(
    transform: Transform, crs: str | None, *, unit_metres: float | None = None, geographic: bool | None = None
) -> PixelSize:
    """Edge lengths (y, x) of a pixel under `transform`: metres, degrees, or an unknown unit without a CRS.

    `unit_metres` is the length of the CRS's unit, `geographic` whether it counts degrees. What the source
    does not say is asked of rasterio; without rasterio it is metres, or degrees for EPSG:4000–4999.
    """
    a, b, _, d, e, _ = transform
    y, x = math.hypot(b, e), math.hypot(a, d)
    if crs is None:
        return (y, x, None)
    if geographic is None or (not geographic and unit_metres is None):
        geographic, unit_metres = _asked_unit(crs)
    if geographic:
        return (y, x, "degree")
    metres = unit_metres if unit_metres is not None else 1.0
    return (y * metres, x * metres, "m")


def micrometres(unit: str | None) -> float | None:
    """How many µm a unit of length is, by any of its usual names; None for an unknown one."""
    return _MICROMETRES.get(unit.strip().lower()) if unit else None


def _geo_keys(page: TiffPage) -> dict[int, int]:
    """GeoKeys with a SHORT value."""
    raw = page.tags.valueof(_GEO_KEYS)
    if not isinstance(raw, tuple) or len(raw) < 4:
        return {}
    entries = [raw[i : i + 4] for i in range(4, 4 + 4 * raw[3], 4)]
    return {e[0]: e[3] for e in entries if len(e) == 4 and e[1] == 0}


def _transform(page: TiffPage, keys: Mapping[int, int]) -> Transform | None:
    """The affine transform of pixel corners; under PixelIsPoint the tags speak of pixel centres."""
    matrix = page.tags.valueof(_MATRIX)
    scale = page.tags.valueof(_PIXEL_SCALE)
    ties = page.tags.valueof(_TIEPOINT)
    if matrix is not None and len(matrix) == 16:
        a, b, _, c, d, e, _, f = map(float, matrix[:8])
    elif scale is not None and len(scale) >= 2 and ties is not None and len(ties) >= 6:
        a, b, d = float(scale[0]), 0.0, 0.0
        e = -abs(float(scale[1]))  # GDAL's reading, against the letter: nobody who writes −10 means south-up
        c, f = ties[3] - ties[0] * a, ties[4] - ties[1] * e
    else:
        return None
    if not a * e - b * d:
        return None
    if keys.get(_RASTER_TYPE) == _PIXEL_IS_POINT:
        c, f = c - (a + b) / 2, f - (d + e) / 2
    return (a, b, c, d, e, f)


def _crs(keys: Mapping[int, int], path: str) -> str | None:
    if not keys:
        return None
    geographic = _is_geographic(keys)
    code = keys.get(_GEOGRAPHIC if geographic else _PROJECTED, 0)
    if geographic is not None and 0 < code < _USER_DEFINED and not _counts_otherwise(keys, code):
        vertical = keys.get(_VERTICAL, 0)
        return f"EPSG:{code}" if not vertical else of_codes(code, vertical, path)
    return of_file(path) if keys.get(_MODEL_TYPE, 0) or code else None


def _is_geographic(keys: Mapping[int, int]) -> bool | None:
    if not keys:
        return None
    model = keys.get(_MODEL_TYPE, 0)
    if model in (_MODEL_PROJECTED, _MODEL_GEOGRAPHIC):
        return model == _MODEL_GEOGRAPHIC
    if model == 0 and (_PROJECTED in keys or _GEOGRAPHIC in keys):
        return _PROJECTED not in keys
    return None


def _counts_otherwise(keys: Mapping[int, int], code: int) -> bool:
    """Whether a projected file has another unit than the system of its EPSG code: state planes in feet, often."""
    unit = _unit_metres(keys)
    if unit is None or unit == 1.0 or _is_geographic(keys):
        return False
    _, of_code = _asked_unit(f"EPSG:{code}")
    return of_code is not None and not math.isclose(of_code, unit, rel_tol=1e-9)


def _unit_metres(keys: Mapping[int, int]) -> float | None:
    return _METRES.get(keys.get(_LINEAR_UNIT, 0))


def _looks_geographic(crs: str) -> bool:
    authority, _, code = crs.partition(":")
    if authority == "EPSG" and code.isdecimal():
        return 4000 <= int(code) <= 4999
    return crs.lstrip().upper().startswith(("GEOG", "OGC:CRS84"))


def _asked_unit(crs: str) -> tuple[bool, float | None]:
    """Whether a CRS is geographic and, if not, the metres of its unit; None where nothing can tell."""
    if importlib.util.find_spec("rasterio") is None:
        return _looks_geographic(crs), None
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        known = CRS.from_user_input(crs)
        return known.is_geographic, None if known.is_geographic else float(known.linear_units_factor[1])
    except CRSError:
        return _looks_geographic(crs), None


def _nodata(page: TiffPage) -> float | None:
    text = page.tags.valueof(_GDAL_NODATA)
    if not isinstance(text, str):
        return None
    value = parsed_nodata(text.rstrip("\0"))
    if value is None and text.strip():
        console.detail(f"GDAL_NODATA {text!r} is not a number: ignored")
    return value


def _microscope_pixel_size(tif: TiffFile, page: TiffPage) -> PixelSize | None:
    if tif.is_ome and (found := _ome_pixel_size(tif.ome_metadata or "", page)):
        return found
    aperio = re.search(r"\bMPP\s*=\s*(\d*[.,]?\d+)", page.description)
    # scanners write numbers as their country does
    edge = float(aperio[1].replace(",", ".")) if aperio else 0.0
    if edge > 0:
        return (edge, edge, "um")
    y, x = (_ratio(page.tags.valueof(tag)) for tag in (_Y_RESOLUTION, _X_RESOLUTION))
    if not x or not y:
        return None
    unit: float | None
    if tif.is_imagej:
        unit = micrometres(str((tif.imagej_metadata or {}).get("unit", "")).encode().decode("unicode_escape"))
    else:
        unit = {_INCH: 25400.0, _CENTIMETRE: 10000.0}.get(page.tags.valueof(_RESOLUTION_UNIT, _INCH))
    if unit is None:
        return None
    size = (unit / y, unit / x, "um")
    return size if tif.is_imagej or max(size[:2]) <= _MOST_MICROSCOPIC_UM else None


def _ome_pixel_size(xml: str, page: TiffPage) -> PixelSize | None:
    """PhysicalSizeX/Y of the image of the page's size, else of the first. The schema's default unit is µm."""
    images = [
        {name: html.unescape(value) for name, value in re.findall(r'\b(\w+)="([^"]*)"', pixels)}
        for pixels in re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", xml)
    ]
    size = {"SizeX": str(page.imagewidth), "SizeY": str(page.imagelength)}
    found = next((i for i in images if size.items() <= i.items()), images[0] if images else {})
    sizes = []
    for axis in ("Y", "X"):
        number = found.get(f"PhysicalSize{axis}")
        unit = micrometres(found.get(f"PhysicalSize{axis}Unit") or "µm")
        if number is None or unit is None or not float(number) > 0:
            return None
        sizes.append(float(number) * unit)
    return (sizes[0], sizes[1], "um")


def _ratio(value: Any) -> float:
    """A RATIONAL tag as a number; 0 where it is missing or has no denominator."""
    if isinstance(value, tuple) and len(value) == 2 and value[1]:
        return float(value[0]) / float(value[1])
    return 0.0
