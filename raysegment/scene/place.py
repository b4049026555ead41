"""Where a synthetic scene lies on the map, and what its mask says of its numbers."""

from __future__ import annotations

from raysegment.scene.materials import CLASSES

EPSG = 32632
CRS = f"EPSG:{EPSG}"
#: Metres. Houses are ten to fifteen, roads six to nine, fields fifty to two hundred of them.
PIXEL_M = 0.5
#: UTM zone 32, in the Alpine foreland.
_EASTING, _NORTHING = 560_000.0, 5_340_000.0
#: Metres from the scene of one seed to that of the next, southwards; after so many seeds it begins again in the north.
_APART_M, _PLACES = 20_000.0, 200


def transform(seed: int) -> tuple[float, float, float, float, float, float]:
    """Six floats in rasterio's order. Scenes of different seeds, other landscapes, do not lie on the same ground."""
    return (PIXEL_M, 0.0, _EASTING, 0.0, -PIXEL_M, _NORTHING - _APART_M * (seed % _PLACES))


NODATA = 255

CODING = {"classes": [c.model_dump(mode="json") for c in CLASSES], "nodata": NODATA}
