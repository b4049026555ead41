"""Polygons as masks: against drawing them whole, against a mask that others drew, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from hypothesis import given
from hypothesis import strategies as st
from made import ArrayRaster
from rasterio.features import rasterize
from rasterio.transform import Affine
from rasterio.warp import transform_geom

from raysegment import console
from raysegment.classes import NO_CLASS, ClassMap
from raysegment.errors import InputError
from raysegment.geometry import Window
from raysegment.inspection import inspect
from raysegment.training.dataset import common_format, find_scenes
from raysegment.training.forms.polygons import PolygonRaster
from raysegment.training.forms.vector import Layer, read_layer
from raysegment.training.survey import survey
from raysegment.training.windows import IGNORE as NOTHING
from raysegment.training.windows import WindowReader

_SQUARE = [[[2, 2], [8, 2], [8, 8], [2, 8], [2, 2]], [[4, 4], [4, 6], [6, 6], [6, 4], [4, 4]]]
"""6 × 6 pixels with a hole of 2 × 2."""


def _feature(coordinates: Any, **properties: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "properties": properties,
        "geometry": {"type": "Polygon", "coordinates": coordinates},
    }


def _moved(by: float) -> list[Any]:
    return [[[x + by, y + by] for x, y in ring] for ring in _SQUARE]


def _set(root: Path, polygons: Any, name: str = "a.geojson", **image: Any) -> Path:
    """A folder of one image of 20 × 30 pixels and the polygons on it."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        root / "images" / "a.tif", "w", width=30, height=20, count=1, dtype="uint8", **image
    ) as out:
        out.write(np.random.default_rng(0).integers(0, 255, (1, 20, 30), dtype=np.uint8))
    (root / "masks" / name).write_text(json.dumps(polygons))
    return root


def _collection(*features: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features), **more}


_LINE = {"type": "LineString", "coordinates": [[1, 2], [3, 4]]}
_UTM: dict[str, Any] = {"crs": "EPSG:32616", "transform": Affine(0.5, 0, 500000, 0, -0.5, 4000000)}


def _on_earth(coordinates: list[Any]) -> list[Any]:
    """Pixels to UTM."""
    return [[(500000 + x / 2, 4000000 - y / 2) for x, y in ring] for ring in coordinates]


_pytest_warning = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@_pytest_warning
def test_qupath_annotations_give_classes_their_names(tmp_path: Path) -> None:
    marks = [
        _feature(_SQUARE, objectType="annotation", classification={"name": "Tumor", "color": [200, 0, 0]}),
        _feature(_moved(9), objectType="annotation", classification={"name": "Stroma"}),
        _feature([[[20, 0], [25, 0], [25, 5], [20, 5], [20, 0]]], objectType="annotation"),
    ]
    data = _set(tmp_path, marks)  # a bare list, as QuPath exports
    scenes = find_scenes(data)
    seen = survey(scenes, (), common_format(scenes))
    assert seen.classes.names == ("background", "Stroma", "Tumor")
    sample = WindowReader(scenes, (0,), seen.classes).read(0, Window(y=0, x=0, height=20, width=30))
    expected = np.zeros((20, 30), np.uint8)
    expected[2:8, 2:8], expected[11:17, 11:17] = 2, 1
    expected[4:6, 4:6] = expected[13:15, 13:15] = 0
    expected[0:5, 20:25] = NOTHING  # an annotation without a class is not background
    assert np.array_equal(sample.target, expected)
    facts = inspect(data).facts
    assert facts["problems"] == []
    assert "class 'Tumor' has 32 px in the training masks (a.tif), too few to learn" in facts["notes"][2]
    assert "polygons without a class in 1 mask are left out, 4.2% of all pixels" in facts["notes"][0]
    assert facts["files"][0]["coding"] == "polygons"
    assert facts["files"][0]["mask"] == "labels Stroma, Tumor"
    assert [c["value"] for c in facts["classes"]] == [0, "polygons", "polygons"]


@_pytest_warning
def test_a_classes_file_names_labels(tmp_path: Path) -> None:
    marks = _collection(_feature(_SQUARE, **{"class": 7}), _feature(_moved(9), **{"class": "road"}))
    scenes = find_scenes(_set(tmp_path, marks))
    toml = tmp_path / "classes.toml"
    toml.write_text(
        'ignore = [0]\n[[class]]\nname = "a"\nlabel = "7"\n[[class]]\nname = "b"\nlabels = ["road"]\n'
    )
    seen = survey(scenes, (), common_format(scenes), toml)
    assert seen.frequencies == (0.5, 0.5)
    assert NO_CLASS in ClassMap.load(toml).codes.values()
    toml.write_text('[[class]]\nname = "a"\nlabel = "7"\n[[class]]\nname = "b"\nvalue = 0\n')
    with pytest.raises(
        InputError, match=r"a\.geojson: the label 'road' belongs to no class of .*classes\.toml"
    ):
        survey(scenes, (), common_format(scenes), toml)


@pytest.mark.parametrize(
    "kind", ["named crs", "lon/lat", "the image's own, unnamed", "gpkg", "gpkg in lon/lat"]
)
def test_coordinate_systems_lead_to_the_same_pixels(tmp_path: Path, kind: str) -> None:
    ground = _on_earth(_SQUARE)
    lonlat = transform_geom("EPSG:32616", "EPSG:4326", {"type": "Polygon", "coordinates": ground})[
        "coordinates"
    ]
    at = lonlat if "lon/lat" in kind else ground
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32616"}}
    more = {"crs": crs} if kind == "named crs" else {}
    data = _set(tmp_path, _collection(_feature(at), **more), **_UTM)
    if "gpkg" in kind:
        (data / "masks" / "a.geojson").unlink()
        pyogrio.raw.write(
            data / "masks" / "a.gpkg", shapely.to_wkb([shapely.Polygon(at[0], at[1:])]), [np.array([1])], ["osm_id"],
            geometry_type="Polygon", crs="EPSG:4326" if "lon/lat" in kind else "EPSG:32616",
        )  # fmt: skip
    scenes = find_scenes(data)
    seen = survey(scenes, (), common_format(scenes))
    assert seen.classes.names == ("background", "object")
    target = WindowReader(scenes, (0,), seen.classes).read(0, Window(y=0, x=0, height=20, width=30)).target
    expected = np.zeros((20, 30), np.uint8)
    expected[2:8, 2:8] = 1
    expected[4:6, 4:6] = 0
    assert np.array_equal(target, expected)


def test_classes_under_another_name_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    covers = ["water", "forest", "water", "water"]
    marks = [_feature(_moved(3 * i), id=f"f{i}", cover=c, source="survey") for i, c in enumerate(covers)]
    console.configure("human")
    for name in ("a", "b"):
        (tmp_path / f"{name}.geojson").write_text(json.dumps(_collection(*marks)))
        assert set(read_layer(str(tmp_path / f"{name}.geojson")).labels) == {"object"}
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith("all are of one class, 'object'; if cover says their classes, call it class")


@pytest.mark.parametrize("suffix", [".gpkg", ".shp"])
@pytest.mark.parametrize(
    ("field", "values", "labels"),
    [
        ("CLASS", np.array(["water", "forest", "water"], object), ("water", "forest")),
        ("Label", np.array([3, 1, 1], np.int32), ("3", "1")),
        ("class", np.array([3, 1, 1], np.float32), ("3", "1")),
    ],
)
def test_classes_of_gis_files_whatever_the_case_and_the_type_and_without_empty_shapes(
    tmp_path: Path, suffix: str, field: str, values: np.ndarray, labels: tuple[str, ...]
) -> None:
    path = tmp_path / f"x{suffix}"
    shapes = [shapely.box(0, 0, 1, 1), shapely.box(2, 2, 3, 3), shapely.Polygon()]
    pyogrio.raw.write(
        path, shapely.to_wkb(shapes), [values, np.array(["a", "b", "c"], object)], [field, "name"],
        geometry_type="Polygon", crs="EPSG:32616",
    )  # fmt: skip
    layer = read_layer(str(path))
    assert layer.labels == labels
    assert [shape["type"] for shape in layer.geometries] == ["Polygon", "Polygon"]


_POINT = st.tuples(st.floats(-5, 55), st.floats(-5, 45))


@given(st.lists(st.lists(_POINT, min_size=3, max_size=6), min_size=1, max_size=5), st.data())
def test_a_window_is_the_whole_drawing_cropped(
    rings: list[list[tuple[float, float]]], data: st.DataObject
) -> None:
    shapes = [{"type": "Polygon", "coordinates": [[*ring, ring[0]]]} for ring in rings]
    layer = Layer(tuple(shapes), tuple("abcde"[: len(rings)]), None, in_pixels=True)
    image = ArrayRaster(np.zeros((40, 50, 1), np.uint8))
    try:
        mask = PolygonRaster("p.geojson", layer, image)
    except InputError:
        return  # none of them is near the image
    whole = rasterize([(s, i) for i, s in enumerate(shapes, 1)], out_shape=(40, 50), dtype=np.uint8)
    codes = {"": 0, **{name: code for code, name in mask.labels.items()}}
    y, x = data.draw(st.integers(0, 39)), data.draw(st.integers(0, 49))
    window = Window(
        y=y, x=x, height=data.draw(st.integers(1, 40 - y)), width=data.draw(st.integers(1, 50 - x))
    )
    names = ["", *"abcde"]
    expected = np.vectorize(lambda i: codes.get(names[i], 0), otypes=[np.int64])(whole)
    assert np.array_equal(mask.read(window)[:, :, 0], expected[window.slices()])


@pytest.mark.parametrize(
    ("polygons", "image", "says"),
    [
        (_collection(_feature([[[900, 900], [910, 900], [910, 910], [900, 900]]])), {}, r"lie at x 900–910, .*20 × 30"),
        (_collection({"type": "Feature", "properties": {}, "geometry": _LINE}),
         {}, r"no area \(LineString\)"),
        (_collection(_feature(_SQUARE), crs={"properties": {"name": "EPSG:32616"}}), {}, "has no georeference"),
        (_collection(_feature(_on_earth(_SQUARE)), crs={"properties": {"name": "EPSG:99999999"}}), _UTM,
         "coordinate system cannot be understood"),
        ({"hello": 1}, {}, "no GeoJSON"),
        (_collection(_feature([[1, 2], [3, 4]])), {}, "no list of rings"),
        (_collection(_feature(None)), _UTM, "no list of rings"),
    ],
)  # fmt: skip
@_pytest_warning
def test_polygons_that_cannot_be_drawn_say_why(
    tmp_path: Path, polygons: Any, image: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says) as e:
        find_scenes(_set(tmp_path, polygons, **image))
    assert "a.geojson" in str(e.value)


def test_real_footprints_on_a_real_scene(shared_data: Path, tmp_path: Path) -> None:
    """Against the mask that rasterio draws from the same file by itself, with the classes of every building."""
    folder = shared_data / "solaris_spacenet"
    (tmp_path / "set.csv").write_text(
        f"image,mask\n{folder / 'sample_geotiff.tif'},{folder / 'geotiff_labels.geojson'}\n"
    )
    (scene,) = find_scenes(tmp_path / "set.csv")
    with rasterio.open(folder / "sample_geotiff.tif") as image:
        shapes = [
            f["geometry"] for f in json.loads((folder / "geotiff_labels.geojson").read_text())["features"]
        ]
        expected = rasterize(shapes, out_shape=image.shape, transform=image.transform) > 0
    mask = scene.mask.open()
    drawn = np.zeros(scene.size, bool)
    for y in range(0, 900, 300):
        for x in range(0, 900, 450):
            window = Window(y=y, x=x, height=300, width=450)
            drawn[window.slices()] = mask.read(window)[:, :, 0] != 0
    assert np.array_equal(drawn, expected)
    assert 0.01 < drawn.mean() < 0.5
