"""Synthetic scenes: the same pixel from any window, whole and right files, memory that does not grow."""

from __future__ import annotations

import errno
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from raysegment.errors import OutputExistsError, UsageError, WorkError
from raysegment.geometry import Size, Window
from raysegment.inspection import inspect
from raysegment.mask.coding import read_coding
from raysegment.raster import open_raster
from raysegment.scene import CLASSES, Landscape, scene_tiff, scene_zarr, synth
from raysegment.scene.landscape import TILE_PX

NAMES = tuple(c.name for c in CLASSES)


@pytest.fixture(scope="module")
def scene() -> Landscape:
    return Landscape(5)


@pytest.fixture(scope="module")
def large(scene: Landscape) -> tuple[np.ndarray, np.ndarray]:
    return scene.read(Window(y=0, x=0, height=2048, width=2048))


# ---- the landscape


@settings(max_examples=4)
@given(st.integers(0, 1748), st.integers(0, 1748))
def test_a_window_made_alone_is_the_crop_of_the_whole(
    large: tuple[np.ndarray, np.ndarray], y: int, x: int
) -> None:
    window = Window(y=y, x=x, height=300, width=300)
    pixels, classes = Landscape(5).read(window)
    np.testing.assert_array_equal(pixels, large[0][window.slices()])
    np.testing.assert_array_equal(classes, large[1][window.slices()])


def test_seeds_differ_and_repeat() -> None:
    window = Window(y=0, x=0, height=200, width=200)
    first, again, other = (Landscape(seed).read(window)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9


def test_every_class_is_there_and_none_is_everywhere(large: tuple[np.ndarray, np.ndarray]) -> None:
    share = np.bincount(large[1].ravel(), minlength=len(NAMES)) / large[1].size
    assert len(share) == len(NAMES)
    assert share.min() > 0.003, dict(zip(NAMES, share, strict=True))
    assert share.max() < 0.7, dict(zip(NAMES, share, strict=True))


def test_tiles_join_without_a_seam(large: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, classes = large[0].astype(float), large[1]
    for axis in (0, 1):
        steps = np.abs(np.diff(pixels, axis=axis)).mean(axis=(1 - axis, 2))
        changes = (np.diff(classes, axis=axis) != 0).mean(axis=1 - axis)
        for border in (TILE_PX, 2 * TILE_PX, 3 * TILE_PX):
            around = np.r_[border - 12 : border - 2, border + 1 : border + 11]
            assert steps[border - 1] < 1.15 * steps[around].max()
            assert changes[border - 1] < changes[around].max() + 0.01


def test_colour_alone_does_not_tell_the_classes_apart(large: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, classes = large[0][::4, ::4].reshape(-1, 3).astype(float), large[1][::4, ::4].ravel()
    distances = []
    for index in range(len(NAMES)):
        own = pixels[classes == index]
        away = pixels - own.mean(axis=0)
        covariance = np.cov(own.T)
        bend = np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)
        distances.append(bend + np.log(np.linalg.det(covariance)) - 2 * np.log(len(own)))
    found = np.argmin(distances, axis=0)
    iou = [((found == k) & (classes == k)).sum() / ((found == k) | (classes == k)).sum() for k in range(6)]
    assert np.mean(iou) < 0.8, iou


# ---- the files


def test_tiff_pair(tmp_path: Path, scene: Landscape) -> None:
    result = synth(tmp_path / "deep" / "a.tif", size=700, seed=5)
    assert result.to_json() == {
        "image": str(tmp_path / "deep" / "a.tif"),
        "mask": str(tmp_path / "deep" / "a.mask.tif"),
        "classes": list(NAMES),
        "shape": [700, 700],
    }
    window = Window(y=0, x=0, height=700, width=700)
    pixels, classes = scene.read(window)
    image, mask = open_raster(result.image), open_raster(result.mask)
    np.testing.assert_array_equal(image.read(window), pixels)
    np.testing.assert_array_equal(mask.read(window)[:, :, 0], classes)
    assert mask.palette is not None
    assert mask.palette[: len(CLASSES)] == tuple(c.colour for c in CLASSES)
    coding = read_coding(result.mask)
    assert coding is not None
    assert coding.classes == CLASSES
    assert coding.nodata == mask.nodata == 255
    for raster, path in ((image, result.image), (mask, result.mask)):
        assert raster.chunk == Size(512, 512)
        assert raster.pixel_size == (0.5, 0.5, "m")
        with rasterio.open(path) as dataset:
            assert dataset.crs == rasterio.CRS.from_epsg(32632)
            assert raster.transform == tuple(dataset.transform)[:6]
            assert (dataset.dataset_mask() == 255).all()
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["a.mask.tif", "a.tif"]


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_scenes_of_other_seeds_do_not_lie_on_the_same_ground(tmp_path: Path, suffix: str) -> None:
    for seed in (1, 2, 3):
        image = synth(tmp_path / "images" / f"{seed}{suffix}", size=64, seed=seed)
        raster, mask = open_raster(image.image), open_raster(image.mask)
        assert raster.transform == mask.transform
        (tmp_path / "masks").mkdir(exist_ok=True)
        Path(image.mask).rename(tmp_path / "masks" / f"{seed}{suffix}")
    assert [note for note in inspect(tmp_path).facts["notes"] if "ground" in note] == []


def test_large_scenes_are_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_tiff, "_CLASSIC_BYTES", 500_000)
    result = synth(tmp_path / "a.tif", size=600)
    for path, expected in ((result.image, True), (result.mask, False)):
        with tifffile.TiffFile(path) as tif:
            assert tif.is_bigtiff == expected
        open_raster(path).read(Window(y=0, x=0, height=600, width=600))


def test_zarr_pair(tmp_path: Path, scene: Landscape, monkeypatch: pytest.MonkeyPatch) -> None:
    from ome_zarr_models.v05.image import Image
    from ome_zarr_models.v05.image_label import ImageLabel

    monkeypatch.setattr(scene_zarr, "_TILES_PER_SHARD", 2)
    monkeypatch.setattr(scene_zarr, "_SHARD_PX", 1024)
    result = synth(tmp_path / "a.zarr", size=1301, seed=5)
    assert result.mask == str(tmp_path / "a.mask.zarr")
    window = Window(y=0, x=0, height=1301, width=1301)
    pixels, classes = scene.read(window)
    image, mask = open_raster(result.image), open_raster(result.mask)
    np.testing.assert_array_equal(image.read(window), pixels)
    np.testing.assert_array_equal(mask.read(window)[:, :, 0], classes)
    assert image.levels == mask.levels == (Size(1301, 1301), Size(651, 651))
    for raster in (image, mask):
        assert raster.format == "OME-Zarr 0.5"
        assert raster.crs == "EPSG:32632"
        assert raster.pixel_size == (0.5, 0.5, "m")
    small = image.read(Window(y=0, x=0, height=651, width=651), 1)
    padded = np.pad(pixels, ((0, 1), (0, 1), (0, 0)), mode="edge").astype(int)
    expected = padded.reshape(651, 2, 651, 2, 3).sum(axis=(1, 3))
    np.testing.assert_array_equal(small, (expected + 2) // 4)
    coding = read_coding(result.mask)
    assert coding is not None
    assert coding.classes == CLASSES
    Image.from_zarr(zarr.open_group(result.image, mode="r"))
    ImageLabel.from_zarr(zarr.open_group(result.mask, mode="r"))


def test_what_exists_is_kept_unless_overwritten(tmp_path: Path) -> None:
    for name in ("a.tif", "a.mask.tif"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(OutputExistsError, match=rf"{name} exists: pass --overwrite"):
            synth(tmp_path / "a.tif", size=64)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    for suffix in ("tif", "zarr"):
        out = tmp_path / f"b.{suffix}"
        synth(out, size=64, seed=1)
        synth(out, size=80, seed=2, overwrite=True)
        assert open_raster(out).shape == (80, 80, 3)
        assert open_raster(tmp_path / f"b.mask.{suffix}").shape == (80, 80, 1)


@pytest.mark.parametrize("suffix", ["tif", "zarr"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def tile(self: Landscape, row: int, column: int) -> tuple[np.ndarray, np.ndarray]:
        made.append((row, column))
        if len(made) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return np.zeros((512, 512, 3), np.uint8), np.zeros((512, 512), np.uint8)

    monkeypatch.setattr(Landscape, "tile", tile)
    (tmp_path / f"a.{suffix}").write_text("mine")
    with pytest.raises(WorkError, match=rf"cannot write .*a\.{suffix}: No space left on device$"):
        synth(tmp_path / f"a.{suffix}", size=2000, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == [f"a.{suffix}"]
    assert (tmp_path / f"a.{suffix}").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "size", "seed", "what"),
    [
        ("a.png", 64, 0, "name it"),
        ("a", 64, 0, "name it"),
        ("a.tif", 0, 0, "size 0"),
        ("a.tif", 64, -1, "seed -1"),
    ],
)
def test_wrong_calls_are_refused(tmp_path: Path, name: str, size: int, seed: int, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        synth(tmp_path / name, size=size, seed=seed)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_a_wrong_call(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot make the folder"):
        synth(tmp_path / "file" / "a.tif", size=64)


def _peak_bytes(path: Path, size: int) -> int:
    tracemalloc.start()
    synth(path, size=size, overwrite=True)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


@pytest.mark.parametrize("suffix", ["tif", "zarr"])
def test_writing_takes_no_more_memory_for_a_larger_scene(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile = (
        np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8),
        np.zeros((512, 512), np.uint8),
    )
    monkeypatch.setattr(Landscape, "tile", lambda self, row, column: tile)
    monkeypatch.setattr(scene_zarr, "_TILES_PER_SHARD", 2)
    monkeypatch.setattr(scene_zarr, "_SHARD_PX", 1024)
    path = tmp_path / f"a.{suffix}"
    _peak_bytes(path, 64)  # what is imported and made once
    small, large = _peak_bytes(path, 1024), _peak_bytes(path, 3072)
    assert large < 1.3 * small, f"{small} → {large} bytes"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_scene(tmp_path: Path) -> None:
    _peak_bytes(tmp_path / "a.tif", 64)
    small, large = _peak_bytes(tmp_path / "a.tif", 1024), _peak_bytes(tmp_path / "a.tif", 4096)
    assert large < 1.25 * small, f"{small} → {large} bytes"


def test_a_landscape_forgets_what_it_has_passed(scene: Landscape) -> None:
    """Districts are what a landscape keeps: a hundred kilobytes each, and not more than a thousand."""
    kept = [scene._district(row, column) for row in range(3) for column in range(3)]
    sizes = [
        d.points.nbytes + d.table.nbytes + d.tones.nbytes + d.starts.nbytes + d.boxes.nbytes for d in kept
    ]
    assert max(sizes) < 400_000
    assert scene._district.cache_info().maxsize == 1024


# ---- the command


def test_the_command(tmp_path: Path) -> None:
    from raysegment.cli.app import app

    out = tmp_path / "a.tif"
    runner = CliRunner()
    done = runner.invoke(app, ["synth", str(out), "--size", "128", "--seed", "3", "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["shape"] == [128, 128]
    assert answer["classes"] == list(NAMES)
    again = runner.invoke(app, ["synth", str(out), "--size", "128"])
    assert again.exit_code == 2
    assert "--overwrite" in again.output
    assert runner.invoke(app, ["synth", str(out), "--size", "96", "--overwrite", "--quiet"]).exit_code == 0
    assert open_raster(out).shape == (96, 96, 3)
