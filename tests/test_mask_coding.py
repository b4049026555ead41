"""The class coding that travels in a mask."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from masks import coding, write_tiff_mask, write_zarr_mask
from PIL import Image

from raysegment.errors import InputError
from raysegment.mask.coding import read_coding

CLASSES = [("land", 0), ("water", 255), ("roof & wall", (128, 0, 0))]


def test_of_an_ome_zarr_mask(tmp_path: Path) -> None:
    found = read_coding(
        write_zarr_mask(tmp_path / "m.zarr", np.zeros((4, 5), np.uint16), CLASSES, origin=(7, 9))
    )
    assert found is not None
    assert [(c.name, c.value) for c in found.classes] == CLASSES
    assert found.names == ("land", "water", "roof & wall")
    assert (found.nodata, found.origin) == (65535, (7, 9))


def test_of_a_tiff_mask(tmp_path: Path) -> None:
    labels = np.zeros((4, 5), np.uint8)
    found = read_coding(write_tiff_mask(tmp_path / "m.tif", labels, [("land", 0), ("water", 1)]))
    assert found is not None
    assert (found.names, found.nodata, found.origin) == (("land", "water"), 255, (0, 0))
    assert read_coding(write_tiff_mask(tmp_path / "plain.tif", labels)) is None


def test_the_scale_and_the_place_on_the_masks_own_grid(tmp_path: Path) -> None:
    labels = np.zeros((4, 5), np.uint8)
    found = read_coding(write_zarr_mask(tmp_path / "old.zarr", labels, CLASSES, origin=(7, 9)))
    assert found is not None
    assert (found.scale, found.offset) == ((1, 1), (7, 9))
    for i, (at, scale) in enumerate(
        [((7, 9), (2, 4)), ((4, 8), (0.5, 0.25)), ((700, 331), (1000 / 667, 7 / 3))]
    ):
        origin = [round(a * s) for a, s in zip(at, scale, strict=True)]
        found = read_coding(write_zarr_mask(tmp_path / f"{i}.zarr", labels, origin=origin, scale=scale))
        assert found is not None
        assert (found.origin, found.scale, found.offset) == (tuple(origin), scale, at)
    found = read_coding(write_zarr_mask(tmp_path / "f.zarr", labels, origin=(1.4, 2.1), scale=(0.7, 0.7)))
    assert found is not None
    assert (found.origin, found.offset) == ((1.4, 2.1), (2, 3))


def test_other_images_have_none(tmp_path: Path) -> None:
    Image.new("L", (3, 3)).save(tmp_path / "m.png")
    (tmp_path / "folder").mkdir()
    assert read_coding(tmp_path / "m.png") is None
    assert read_coding(tmp_path / "folder") is None
    assert read_coding(tmp_path / "missing.tif") is None


def test_a_broken_coding_is_named(tmp_path: Path) -> None:
    path = write_zarr_mask(tmp_path / "m.zarr", np.zeros((4, 5), np.uint8))
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"]["raysegment"] = {**coding([("a", 0)]), "classes": [{"nam": "a"}]}
    (path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(InputError, match=r"m\.zarr: the class coding"):
        read_coding(path)
    for wrong in (0, -1, "two", float("nan")):
        root["attributes"]["raysegment"] = {**coding([("a", 0)]), "scale": [1, wrong]}
        (path / "zarr.json").write_text(json.dumps(root))
        with pytest.raises(InputError, match=r"m\.zarr: the class coding"):
            read_coding(path)
    (path / "zarr.json").write_text("{")
    with pytest.raises(InputError, match=r"zarr\.json"):
        read_coding(path)
