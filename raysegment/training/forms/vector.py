"""Polygons with their labels out of a GIS or QuPath file, as they stand there.

GeoJSON by the standard library (QuPath nests what a class is called, which GDAL would hand over as text), GeoPackage,
FlatGeobuf and Shapefile by pyogrio (extra ``vector``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from raysegment import console
from raysegment.errors import InputError, StorageError, UsageError
from raysegment.storage import Url, location
from raysegment.storage.objects import fetched
from raysegment.training.forms.masks import GEOJSON

#: Properties that name a class, in any case of letters, the first that any polygon has.
CLASS_PROPERTIES = ("classification", "class", "class_name", "label", "category")
#: The class of all polygons where none has a property that names one.
UNNAMED = "object"
_POLYGONS = ("Polygon", "MultiPolygon")
#: Different words that a property may have to be taken for one of classes under another name.
_MOST_WORDS = 32


@dataclass(frozen=True, slots=True)
class Layer:
    """The polygons of one file."""

    geometries: tuple[Mapping[str, Any], ...]
    """GeoJSON geometries, Polygon or MultiPolygon, (x, y) as in the file."""
    labels: tuple[str | None, ...]
    """Per geometry its class; None: the file leaves it open."""
    crs: str | None
    """As the file says it."""
    in_pixels: bool
    """Written by QuPath: full-resolution pixels from the top left."""


def read_layer(path: str) -> Layer:
    """Raises InputError naming the file, UsageError where a library is missing, StorageError for a URL."""
    place = location(path)
    if isinstance(place, Url) and place.suffix.lower() == ".shp":
        raise InputError(
            f"{path}: a Shapefile is several files: save it as .gpkg or .geojson, or copy it here"
        )
    try:
        file = fetched(place) if isinstance(place, Url) else place
        stat = file.stat()
    except StorageError:
        raise
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e
    return _read(path, str(file), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)  # one file may hold the polygons of many scenes
def _read(path: str, file: str, _modified: int, _size: int) -> Layer:
    return _of_geojson(path, file) if Path(file).suffix.lower() in GEOJSON else _of_gis(path, file)


def _of_geojson(path: str, file: str) -> Layer:
    try:
        with open(file, encoding="utf-8-sig") as f:
            found = json.load(f)
    except (OSError, ValueError) as e:
        raise InputError(f"{path} is no readable GeoJSON: {e}") from e
    features = list(_features(found, path))
    properties = [f.get("properties") or {} for f in features]
    crs = (found.get("crs") if isinstance(found, dict) else None) or {}
    name = (crs.get("properties") or {}).get("name")
    return _layer(
        path,
        [f.get("geometry") for f in features],
        properties,
        None if name is None else str(name),
        in_pixels=any("objectType" in p or isinstance(p.get("classification"), dict) for p in properties),
    )


def _features(found: Any, path: str) -> Iterator[Mapping[str, Any]]:
    """Of a collection, a list of features (as QuPath writes), one feature or one geometry."""
    if isinstance(found, dict) and found.get("type") == "FeatureCollection":
        found = found.get("features", [])
    for feature in found if isinstance(found, list) else [found]:
        if not isinstance(feature, dict) or "type" not in feature:
            raise InputError(f"{path} is JSON, but no GeoJSON: give a FeatureCollection of polygons")
        yield feature if feature["type"] == "Feature" else {"geometry": feature}


def _of_gis(path: str, file: str) -> Layer:
    try:
        import pyogrio
        import shapely
    except ImportError as e:
        raise UsageError(
            f"{path}: polygons in {Path(path).suffix} files need pyogrio and shapely: "
            "pip install 'raysegment[vector]', or save them as GeoJSON"
        ) from e
    from pyogrio.errors import DataLayerError, DataSourceError

    try:
        layers = [name for name, kind in pyogrio.list_layers(file) if kind is not None]
        if len(layers) != 1:
            raise InputError(
                f"{path} has {len(layers)} layers of shapes ({', '.join(layers)}): keep one, of polygons"
            )
        about, _, blobs, columns = pyogrio.raw.read(file, layer=layers[0], force_2d=True)
    except (DataSourceError, DataLayerError) as e:
        raise InputError(f"cannot read the polygons of {path}: {e}") from e
    shapes = [None if g is None else shapely.geometry.mapping(g) for g in shapely.from_wkb(blobs)]
    names = [str(name) for name in about["fields"]]
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)] or [{}] * len(
        shapes
    )
    return _layer(path, shapes, rows, about["crs"], in_pixels=False)


def _layer(
    path: str,
    geometries: Sequence[Mapping[str, Any] | None],
    properties: Sequence[Mapping[str, Any]],
    crs: str | None,
    *,
    in_pixels: bool,
) -> Layer:
    drawn = [
        (g, p)
        for g, p in zip(geometries, properties, strict=True)
        if g and g.get("coordinates") not in ([], ())  # empty: nothing to draw
    ]
    odd = sorted({str(g.get("type")) for g, _ in drawn} - set(_POLYGONS))
    if odd:
        raise InputError(
            f"{path} holds shapes that have no area ({', '.join(odd)}): a mask needs polygons, buffer them"
        )
    names = sorted({name for _, p in drawn for name in p}, reverse=True)  # "class" before "CLASS"
    keys = [name for known in CLASS_PROPERTIES for name in names if name.lower() == known]
    key = next((k for k in keys if any(_name(p.get(k)) for _, p in drawn)), None)
    if key is None:
        telling = [name for name in reversed(names) if _may_be_classes(p.get(name) for _, p in drawn)]
        if telling:
            _say_unnamed(tuple(telling))
    labels = [UNNAMED if key is None else _name(p.get(key)) for _, p in drawn]
    return Layer(tuple(g for g, _ in drawn), tuple(labels), crs, in_pixels)


def _may_be_classes(values: Iterator[Any]) -> bool:
    """Whether a property has a few words, as classes have, and neither one for all nor one for each."""
    named = [_name(value) for value in values if isinstance(value, str)]
    return 1 < len(set(named)) <= min(_MOST_WORDS, len(named) / 2)


@lru_cache(maxsize=16)
def _say_unnamed(telling: tuple[str, ...]) -> None:
    """Once for all files that are alike in this."""
    console.say(
        f"polygons: no property is called {', '.join(CLASS_PROPERTIES[:-1])} or {CLASS_PROPERTIES[-1]}, so all are of "
        f"one class, {UNNAMED!r}; if {' or '.join(telling)} says their classes, call it class"
    )


def _name(value: Any) -> str | None:
    """A class as text: QuPath's {"name": …}, a word or a whole number."""
    if isinstance(value, dict):
        value = value.get("name")
    if value is None or value != value:  # NaN: an empty cell of a GIS table
        return None
    if isinstance(value, float | np.floating) and value.is_integer():
        value = int(value)
    return str(value).strip() or None
