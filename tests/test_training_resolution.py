"""Training at an asked pixel size: images averaged, masks picked, both on one grid."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
from masks import write_tiff_mask
from PIL import Image

from raysegment.classes import ClassMap
from raysegment.errors import InputError, UsageError
from raysegment.geometry import Size, Window
from raysegment.model.spec import default_classes
from raysegment.training import windows
from raysegment.training.dataset import common_format, find_scenes
from raysegment.training.prepare import prepare, request
from raysegment.training.resolution import Resampled, at_pixel_size
from raysegment.training.settings import Settings
from raysegment.training.survey import survey
from raysegment.training.windows import WindowReader

_TWO = ClassMap(default_classes(2), {0: 0, 255: 1}, source="a test")


def _slide(root: Path, name: str, um: float, image: np.ndarray, mask: np.ndarray) -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    per_cm = (1e4 / um, 1e4 / um)
    tifffile.imwrite(
        root / "images" / f"{name}.tif", image, resolution=per_cm, resolutionunit="CENTIMETER", tile=(16, 16)
    )
    Image.fromarray(mask).save(root / "masks" / f"{name}.png")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The same field seen at 0.25 µm and at 0.5 µm."""
    rng = np.random.default_rng(0)
    fine = rng.integers(0, 256, (80, 120), dtype=np.uint8)
    mask = rng.choice(np.array([0, 255], np.uint8), (80, 120))
    _slide(tmp_path / "data", "fine", 0.25, fine, mask)
    _slide(tmp_path / "data", "same", 0.5, _halved(fine), mask[1::2, 1::2])
    return tmp_path / "data"


def _halved(fine: np.ndarray) -> np.ndarray:
    """Means of 2 × 2 pixels, half to even as rint does."""
    h, w = fine.shape
    return np.rint(fine.reshape(h // 2, 2, w // 2, 2).mean(axis=(1, 3))).astype(np.uint8)


@pytest.mark.parametrize("whole_px", [0, 1 << 20])
def test_images_of_two_pixel_sizes_become_one_grid(
    data: Path, monkeypatch: pytest.MonkeyPatch, whole_px: int
) -> None:
    monkeypatch.setattr(windows, "_WHOLE_PX", whole_px)
    scenes, asked = at_pixel_size(find_scenes(data), 0.5)
    assert asked == (0.5, 0.5, "um")
    assert [s.size for s in scenes] == [Size(40, 60)] * 2
    assert not isinstance(scenes[1].image, Resampled)
    read = WindowReader(scenes, (0,), _TWO)
    for window in (
        Window(y=0, x=0, height=40, width=60),
        Window(y=7, x=11, height=9, width=5),
        Window(y=-3, x=50, height=20, width=20),
    ):
        fine, same = read.read(0, window), read.read(1, window)
        assert np.array_equal(fine.pixels, same.pixels)
        assert np.array_equal(fine.target, same.target)
    assert np.array_equal(fine.valid, same.valid)
    whole = dict(read.targets(0))
    stored = np.asarray(Image.open(data / "masks" / "fine.png"))[1::2, 1::2]
    assert all(np.array_equal(t, stored[w.slices()] == 255) for w, t in whole.items())
    assert sum(w.area for w in whole) == 40 * 60


def test_a_run_at_an_asked_pixel_size_teaches_the_model_that_size(data: Path) -> None:
    twin = data / "images" / "same.tif"
    _slide(
        data, "same", 0.5, 255 - tifffile.imread(twin), np.asarray(Image.open(data / "masks" / "same.png"))
    )
    asked = request(Settings(pixel_size=0.5, tile=32, depth=2), data, 0.5, None)
    record = prepare(asked)
    assert record["spec"]["pixel_size"] == [0.5, 0.5, "um"]
    assert record["data"]["pixels"] == 40 * 60
    pixels = (
        at_pixel_size(find_scenes(data), 0.5)[0][0].image.open().read(Window(y=0, x=0, height=40, width=60))
    )
    assert record["data"]["std"] == pytest.approx(
        [pixels.std()]
    )  # as the network sees it: averages vary less
    plain = request(Settings(tile=32, depth=2), data, 0.5, None)
    assert plain.pixel_size is None
    assert [s.size for s in plain.train + plain.val] == [Size(80, 120), Size(40, 60)]
    assert plain.fingerprint != asked.fingerprint


def test_one_picture_at_two_pixel_sizes_is_one_picture(data: Path) -> None:
    with pytest.raises(
        InputError, match=r"the same picture is in training and in validation: fine\.tif and same"
    ):
        prepare(request(Settings(pixel_size=0.5, tile=32, depth=2), data, 0.5, None))


def test_what_no_pixel_size_fits_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"--pixel-size 500, .* would make .*fine\.tif .* px: check the unit$"
    ):
        at_pixel_size(find_scenes(data), 500)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(data / "images" / "plain.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(data / "masks" / "plain.png")
    with pytest.raises(UsageError, match=r"--pixel-size 0\.5 cannot be met: .*plain\.png does not say"):
        at_pixel_size(find_scenes(data), 0.5)


def test_images_in_two_units_are_refused(data: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="writes the GeoTIFF")
    profile = {"driver": "GTiff", "height": 8, "width": 8, "count": 1, "dtype": "uint8", "crs": "EPSG:32643"}
    at = rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000)
    with rasterio.open(data / "images" / "ground.tif", "w", **profile, transform=at) as file:
        file.write(np.zeros((1, 8, 8), np.uint8))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(data / "masks" / "ground.png")
    with pytest.raises(UsageError, match=r"0\.5 um in .*fine\.tif and 0\.5 m in .*ground\.tif"):
        at_pixel_size(find_scenes(data), 0.5)


def test_a_resampled_mask_travels_with_its_values(data: Path) -> None:
    scenes, _ = at_pixel_size(find_scenes(data), 0.4)
    mask = scenes[0].mask.open()
    window = Window(y=0, x=0, height=50, width=75)
    assert mask.shape == (50, 75, 1)
    values = mask.read(window)
    assert set(np.unique(values)) == {0, 255}
    assert np.array_equal(pickle.loads(pickle.dumps(mask)).read(window), values)


def test_a_mask_s_own_coding_and_the_names_of_polygons_survive_another_pixel_size(tmp_path: Path) -> None:
    pytest.importorskip("rasterio", reason="draws the polygons")
    image = np.random.default_rng(1).integers(0, 256, (40, 60), dtype=np.uint8)
    labels = np.repeat(np.arange(3, dtype=np.uint8), 20)[None].repeat(40, axis=0)
    for root in ("own", "drawn"):
        _slide(tmp_path / root, "a", 0.25, image, labels)
        (tmp_path / root / "masks" / "a.png").unlink()
    write_tiff_mask(tmp_path / "own" / "masks" / "a.tif", labels, [("sea", 10), ("coast", 5), ("land", 7)])
    boxes = {name: [[[x, 1], [x + 12, 1], [x + 12, 39], [x, 39], [x, 1]]] for x, name in
             ((2, "cedar"), (22, "ash"), (42, "birch"))}  # fmt: skip
    features = [
        {"type": "Feature", "properties": {"class": n}, "geometry": {"type": "Polygon", "coordinates": c}}
        for n, c in boxes.items()
    ]
    (tmp_path / "drawn" / "masks" / "a.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "features": features})
    )
    for root, names in (
        ("own", ("sea", "coast", "land")),
        ("drawn", ("background", "ash", "birch", "cedar")),
    ):
        stored = find_scenes(tmp_path / root)
        halved, _ = at_pixel_size(stored, 0.5)
        assert isinstance(halved[0].mask, Resampled)
        seen = [survey(scenes, (), common_format(scenes)) for scenes in (stored, halved)]
        assert [s.classes.names for s in seen] == [names] * 2
        assert seen[0].classes.codes == seen[1].classes.codes
        assert seen[0].frequencies == pytest.approx(seen[1].frequencies, abs=0.02)
