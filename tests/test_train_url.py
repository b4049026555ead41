"""Training sets at URLs: the same pixels as on a disk, and one line for what cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_forms import _FORMS, _SIZE, _TWO, _csv, _files, _pixels
from test_url_infer import Bucket, bucket  # noqa: F401
from web import serve

from raysegment.errors import InputError
from raysegment.geometry import Window
from raysegment.inspection import inspect
from raysegment.storage import Location, location
from raysegment.storage.objects import entries, put, remove
from raysegment.training.dataset import Scene, find_scenes, identities
from raysegment.training.windows import WindowReader


@pytest.fixture
def memory() -> Iterator[Location]:
    yield location("memory://training")
    remove(location("memory://training"))


def _copied(root: Path, place: Location) -> None:
    for name in entries(root):
        put(place / name, (root / name).read_bytes())


def _assert_as_put_in(scenes: tuple[Scene, ...], count: int) -> None:
    assert [s.size for s in scenes] == [_SIZE] * count
    reader = WindowReader(scenes, (0, 1, 2), _TWO)
    window = Window(y=3, x=7, height=9, width=11)
    for i in range(count):
        image, mask = _pixels(i)
        sample = reader.read(i, window)
        assert np.array_equal(sample.pixels, image[window.slices()])
        assert np.array_equal(sample.target, mask[window.slices()])
    assert len({image for image, _ in identities(scenes)}) == count


@pytest.mark.parametrize("form", _FORMS)
def test_every_form_is_read_from_a_url(tmp_path: Path, memory: Location, form: str) -> None:
    path = _FORMS[form](tmp_path / "set", 3)
    _copied(tmp_path, memory)
    url = f"{memory}/{path.relative_to(tmp_path).as_posix()}"
    _assert_as_put_in(find_scenes(url), 3)
    assert [s.name for s in find_scenes(url)] == [s.name for s in find_scenes(path)]
    facts = inspect(url).facts
    assert (inspect(url).kind, facts["pairs"], facts["problems"]) == ("dataset", 3, [])


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "zarr stack", "ome-zarr"])
def test_what_needs_no_list_of_files_is_read_from_a_web_server(tmp_path: Path, form: str) -> None:
    path = _FORMS[form](tmp_path / "set", 2)
    with serve(tmp_path) as web:
        _assert_as_put_in(find_scenes(f"{web.url}/{path.relative_to(tmp_path).as_posix()}"), 2)


def test_records_are_read_from_a_web_server_and_a_folder_is_refused_there(tmp_path: Path) -> None:
    folder = _FORMS["tfrecords"](tmp_path / "set", 2)
    with serve(tmp_path) as web:
        _assert_as_put_in(find_scenes(f"{web.url}/set/a.tfrecord"), 2)
        with pytest.raises(InputError, match=rf"^{web.url}/set .* web server gives no list: give a manifest"):
            find_scenes(f"{web.url}/{folder.name}")


def test_a_folder_with_polygons_and_marker_objects(tmp_path: Path, memory: Location) -> None:
    row = _files(tmp_path, 1)[0]
    square = {"type": "Polygon", "coordinates": [[[2, 3], [9, 3], [9, 8], [2, 8], [2, 3]]]}
    put(memory / "images" / "a.tif", (tmp_path / row["image"]).read_bytes())
    put(memory / "images" / "notes.txt", b"no image")
    put(memory / "masks" / "a.geojson", json.dumps(square).encode())
    put(memory / "masks" / "sub" / "b.png", b"in a folder of its own")
    (scene,) = find_scenes(str(memory))
    drawn = scene.mask.open().read(Window(y=0, x=0, height=20, width=30))[:, :, 0] != 0
    assert np.array_equal(np.argwhere(drawn).min(axis=0), (3, 2))
    assert drawn.sum() == 5 * 7
    remove(memory / "masks" / "a.geojson")
    put(memory / "masks" / "a.shp", b"")
    with pytest.raises(InputError, match=r"masks/a\.shp: a Shapefile is several files: save it as"):
        find_scenes(str(memory))


def test_rows_beside_and_above_a_manifest_at_a_url(tmp_path: Path, memory: Location) -> None:
    row = _files(tmp_path, 1)[0]
    for name in row.values():
        put(memory / name, (tmp_path / name).read_bytes())
    rows = [
        {"image": "../deep/i0.tif", "mask": f"{memory}/deep/m0.png"},
        {"image": str(tmp_path / row["image"]), "mask": "./../deep/m0.png"},
    ]
    put(memory / "lists" / "set.csv", _csv(tmp_path / "set.csv", rows).read_bytes())
    for scene in find_scenes(f"{memory}/lists/set.csv"):
        assert np.array_equal(scene.image.open().read(Window(y=0, x=0, height=20, width=30)), _pixels(0)[0])
        assert scene.size == _SIZE
    put(memory / "set.csv", b"image,mask\ndeep/i0.tif,deep/none.png\n")
    with pytest.raises(InputError, match=rf"^{memory}/deep/none\.png does not exist"):
        find_scenes(f"{memory}/set.csv")
