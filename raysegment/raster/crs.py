"""Coordinate systems as the rest of the house knows them: by EPSG code or, where there is none, as WKT 2.

rasterio, an extra, knows them; without it what needs it is left out with a warning.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from raysegment import console

if TYPE_CHECKING:
    from rasterio.crs import CRS


def of_codes(horizontal: int, vertical: int, path: str) -> str:
    """A horizontal and a vertical system by their EPSG codes: the code of both together or, where there is none, WKT 2.
    Where the vertical one is unknown, the horizontal one alone, said."""
    kept = f"EPSG:{horizontal}"
    if importlib.util.find_spec("rasterio") is None:
        console.warn(f"{path}: its heights' EPSG:{vertical} is left out; install raysegment[geo] to keep it")
        return kept
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        return told(CRS.from_user_input(f"{kept}+{vertical}"))
    except CRSError:
        console.warn(f"{path}: its heights' system {vertical} is no known EPSG code: {kept} alone is kept")
        return kept


def told(crs: CRS) -> str:
    """By its EPSG code or, where it has none, by WKT 2."""
    authority, code = crs.to_authority(confidence_threshold=100) or ("", "")
    return f"EPSG:{code}" if authority == "EPSG" else str(crs.to_wkt(version="WKT2_2019"))


def of_file(path: str) -> str | None:
    """A coordinate system without a code in the tags: rasterio finds its EPSG code, or spells it out as WKT 2."""
    if importlib.util.find_spec("rasterio") is None:
        console.warn(f"{path}: its coordinate system has no EPSG code; install raysegment[geo] to keep it")
        return None
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with rasterio.open(path) as dataset:
            return told(dataset.crs) if dataset.crs else None
    except RasterioError as e:
        console.warn(f"{path}: its coordinate system has no EPSG code and cannot be read: {e}")
        return None


def of_text(wkt: str, source: str) -> str | None:
    """A coordinate system by the WKT, of any age, that the file `source` holds."""
    if importlib.util.find_spec("rasterio") is None:
        console.warn(f"{source}: a coordinate system as text; install raysegment[geo] to keep it")
        return None
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        return told(CRS.from_wkt(wkt))
    except CRSError as e:
        console.warn(f"{source} holds no coordinate system that can be read: {e}: ignored")
        return None
