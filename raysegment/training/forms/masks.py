"""Which source a mask's path is: pixels, or polygons to be drawn on the grid of its image."""

from __future__ import annotations

from raysegment.storage import Location
from raysegment.training.forms.scene import File, Source

#: Polygons, by suffix; the first are read with the standard library, the others with pyogrio.
GEOJSON = (".geojson", ".json")
VECTOR = (*GEOJSON, ".gpkg", ".fgb", ".shp")


def mask_source(path: Location, image: Source | None) -> Source | None:
    """None for polygons without an image: nothing says where their pixels are."""
    if path.suffix.lower() not in VECTOR:
        return File.at(path)
    if image is None:
        return None
    from raysegment.training.forms.polygons import Polygons, check_drawable

    check_drawable(path)
    return Polygons(File.at(path).path, image)
