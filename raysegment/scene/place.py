"""Where a synthetic scene lies on the map, and what its mask says of its numbers."""

from __future__ import annotations

from raysegment.scene.materials import CLASSES

EPSG = 32632
CRS = f"EPSG:{EPSG}"
#: Metres. Houses are ten to fifteen, roads six to nine, fields fifty to two hundred of them.
PIXEL_M = 0.5
#: UTM zone 32, in the Alpine foreland.
EASTING, NORTHING = 560_000.0, 5_340_000.0
TRANSFORM = (PIXEL_M, 0.0, EASTING, 0.0, -PIXEL_M, NORTHING)

NODATA = 255

CODING = {"classes": [c.model_dump(mode="json") for c in CLASSES], "nodata": NODATA}
