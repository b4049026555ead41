"""Every option from file to mask: what `infer` and its command make of images on a disk.

Where workers matter, through real Ray; where they do not, in this process alone (see alone.py).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
import torch
import zarr
from alone import without_ray
from networks import contrasting, convolutional, identity
from ome_zarr_models.v05 import Image as OmeImage
from reference import whole_image
from torch import nn
from typer.testing import CliRunner

import raysegment as rs
from raysegment import console
from raysegment.cli.app import app
from raysegment.errors import InputError, OutputExistsError, WorkError
from raysegment.geometry import Size, Window
from raysegment.inference.estimate import plan
from raysegment.inference.job import check_in_the_way
from raysegment.inference.plan import Plan
from raysegment.inference.record import RecordFile
from raysegment.inference.results import InferResult, InferResults
from raysegment.inference.run import infer
from raysegment.mask import store
from raysegment.mask.coding import read_coding, read_field
from raysegment.mask.outputs import side_path
from raysegment.mask.store import MaskStore, finished, is_ours, remove_store
from raysegment.model.architectures import build
from raysegment.model.file import load_model, save_model
from raysegment.model.model import Model
from raysegment.model.spec import default_classes
from raysegment.raster import transcode as transcoding

pytestmark = pytest.mark.ray

#: Blocks of 4 cells, 192 px.
SETTINGS: dict[str, Any] = {
    "tile": 64,
    "overlap": 16,
    "block": 180,
    "precision": "fp32",
    "batch_size": 1,
    "workers": 1,
}


def noise(height: int, width: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (height, width, channels), dtype=np.uint8)


def write(path: Path, pixels: np.ndarray, **how: Any) -> Path:
    """A tiled TIFF."""
    how = {"tile": (64, 64), "compression": "deflate", "metadata": None, "photometric": "minisblack", **how}
    if pixels.shape[2] > 1:
        how["planarconfig"] = "contig"
    tifffile.imwrite(path, pixels if pixels.shape[2] > 1 else pixels[..., 0], **how)
    return path


def write_geo(path: Path, pixels: np.ndarray) -> Path:
    """A GeoTIFF of 10 m pixels with one overview of half its size."""
    height, width, channels = pixels.shape
    with rasterio.open(
        path, "w", "GTiff", width, height, channels, dtype="uint8", crs="EPSG:32643",
        transform=rasterio.Affine(10, 0, 500_000, 0, -10, 4_000_000),
        tiled=True, blockxsize=64, blockysize=64, compress="deflate", interleave="pixel",
    ) as file:  # fmt: skip
        file.write(pixels.transpose(2, 0, 1))
        file.build_overviews([2], rasterio.enums.Resampling.average)
    return path


def damage(path: Path, page: int, *tiles: int) -> Path:
    """Overwrite the data of some tiles."""
    with tifffile.TiffFile(path) as tif:
        places = [(tif.pages[page].dataoffsets[n], tif.pages[page].databytecounts[n]) for n in tiles]
    with open(path, "r+b") as file:
        for offset, count in places:
            file.seek(offset)
            file.write(b"\xff" * count)
    return path


def labels(out: Path, level: int = 0) -> np.ndarray:
    return zarr.open_array(out / str(level), mode="r")[:]


def side(out: Path, name: str) -> np.ndarray:
    return zarr.open_array(side_path(out, name) / "0", mode="r")[:]


def files(*folders: Path) -> dict[str, bytes]:
    return {
        f"{i}/{p.relative_to(folder)}": p.read_bytes()
        for i, folder in enumerate(folders)
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def attributes(out: Path) -> dict[str, Any]:
    return dict(zarr.open_group(out, mode="r").attrs)


def one(result: InferResult | InferResults) -> InferResult:
    assert isinstance(result, InferResult)
    return result


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained U-Net of two classes as a model file, for one channel."""
    torch.manual_seed(1)
    architecture = {"name": "unet", "in_channels": 1, "out_channels": 2, "base_width": 8, "depth": 2}
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    spec = rs.ModelSpec(
        classes=[rs.Class(name=n, colour=(0, 0, 0)) for n in ("land", "water")],
        channels=1,
        scale=1 / 64,
        mean=(2.0,),
        tile=64,
        multiple=4,
        architecture=architecture,
    )
    save_model(build(architecture), spec, path)
    return path


@pytest.fixture
def here() -> Iterator[None]:
    """`infer` works in this process alone."""
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def command() -> Iterator[Any]:
    """`raysegment …` in this process: exit code, the last JSON line, what was said."""

    def run(*words: object) -> tuple[int, dict[str, Any], str]:
        result = CliRunner().invoke(app, [str(word) for word in words])
        lines = result.stdout.strip().splitlines()
        answer = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
        return result.exit_code, answer, result.stderr

    yield run
    console.configure("human")


def as_words(settings: dict[str, Any]) -> list[object]:
    return [word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", value)]


# ── side outputs ─────────────────────────────────────────────────────────────────


def test_side_outputs_are_the_reference_on_any_number_of_workers(tmp_path: Path, ray_cluster: None) -> None:
    pixels = noise(300, 410)
    pixels[:, 200:] = pixels[:, 200:] // 4 + 1
    pixels[:50, :70] = 0
    source = write(tmp_path / "a.tif", pixels, extratags=[(42113, "s", 0, "0", True)])
    model, wanted = contrasting(2), {"probabilities": True, "uncertainty": True}
    outs = [tmp_path / f"{name}.zarr" for name in ("two", "one", "block")]
    infer(source, model=model, out=outs[0], **{**SETTINGS, "workers": 2}, **wanted)
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        infer(source, model=model, out=outs[1], **SETTINGS, **wanted)
        infer(source, model=model, out=outs[2], **{**SETTINGS, "block": 90}, **wanted)
    stores = [(out, side_path(out, "probabilities"), side_path(out, "uncertainty")) for out in outs]
    assert files(*stores[0]) == files(*stores[1])
    for array in (labels, lambda out: side(out, "probabilities"), lambda out: side(out, "uncertainty")):
        assert np.array_equal(array(outs[0]), array(outs[2]))

    seen = np.where(pixels == 0, 128, pixels).astype(np.uint8)  # 128 enters as 0
    p, valid = whole_image(model, seen, 64, 16, "hann"), pixels[..., 0] != 0
    got = side(outs[0], "probabilities")
    assert np.abs(got - 255 * p)[:, valid].max() <= 0.51
    assert not got[:, ~valid].any()
    assert (side(outs[0], "uncertainty") > 5).mean() > 0.01

    group = zarr.open_group(stores[0][1], mode="r")
    OmeImage.from_zarr(group)
    assert [axis["name"] for axis in group.attrs["ome"]["multiscales"][0]["axes"]] == ["c", "y", "x"]
    array = zarr.open_array(stores[0][1] / "0", mode="r")
    assert (array.shape, array.dtype, array.metadata.dimension_names) == (
        (2, 300, 410),
        np.uint8,
        ("c", "y", "x"),
    )
    OmeImage.from_zarr(zarr.open_group(stores[0][2], mode="r"))
    assert zarr.open_array(stores[0][2] / "0", mode="r").shape == (300, 410)


# ── foreground ───────────────────────────────────────────────────────────────────


def test_a_foreground_mask_skips_tiles_and_changes_no_pixel(tmp_path: Path, here: None) -> None:
    pixels = noise(400, 400)
    source = write(tmp_path / "a.tif", pixels)
    small = np.zeros((100, 100), np.uint8)  # a quarter of the image's resolution
    small[30:55, 5:40], small[90:, 90:] = 7, 1
    mask = write(tmp_path / "mask.tif", small[..., None], tile=(16, 16))
    counts = small.repeat(4, 0).repeat(4, 1) != 0
    model = convolutional()
    infer(source, model=model, out=tmp_path / "all.zarr", **SETTINGS)
    want = np.where(counts, labels(tmp_path / "all.zarr"), 255)
    some = one(infer(source, model=model, out=tmp_path / "m.zarr", foreground=str(mask), **SETTINGS))
    assert np.array_equal(labels(tmp_path / "m.zarr"), want)
    assert 0.5 * some.tiles < some.tiles_skipped < some.tiles
    assert some.forward_pixels == (some.tiles - some.tiles_skipped) * 64**2
    assert sum(some.class_pixels.values()) == counts.sum()
    planned = plan(source, model=model, foreground=str(mask), **SETTINGS)
    assert (planned.tiles, planned.tiles_skipped) == (some.tiles, some.tiles_skipped)
    assert planned.forward_pixels == some.forward_pixels

    region = rs.Window(y=101, x=33, height=170, width=203)  # the mask is still one of the whole image
    infer(source, model=model, out=tmp_path / "r.zarr", foreground=str(mask), region=region, **SETTINGS)
    assert np.array_equal(labels(tmp_path / "r.zarr"), want[region.slices()])


def test_what_a_sparse_file_leaves_out_is_background(tmp_path: Path, here: None) -> None:
    pixels = np.zeros((384, 320, 1), np.uint8)
    pixels[64:192, 128:256] = noise(128, 128)
    with rasterio.open(
        tmp_path / "a.tif", "w", "GTiff", 320, 384, 1, dtype="uint8", tiled=True, blockxsize=64, blockysize=64,
        sparse_ok=True, compress="deflate", transform=rasterio.Affine(2, 0, 0, 0, -2, 0),
    ) as file:  # fmt: skip
        file.write(pixels.transpose(2, 0, 1))
    there = np.zeros((384, 320), bool)
    there[64:192, 128:256] = True
    model = convolutional()
    infer(tmp_path / "a.tif", model=model, out=tmp_path / "all.zarr", **SETTINGS)
    some = one(infer(tmp_path / "a.tif", model=model, out=tmp_path / "m.zarr", foreground="auto", **SETTINGS))
    assert np.array_equal(labels(tmp_path / "m.zarr"), np.where(there, labels(tmp_path / "all.zarr"), 255))
    assert some.tiles_skipped == 8 * 7 - 4 * 4  # tiles of 48 k − 8 … 48 k + 56 on 384 × 320 px
    assert some.forward_pixels == 4 * 4 * 64**2


def test_a_plan_says_that_it_reads_no_pixels_to_find_what_is_skipped(tmp_path: Path, here: None) -> None:
    pixels = noise(256, 256) | 1
    pixels[:, 128:] = 0
    source = write(tmp_path / "a.tif", pixels, tile=(64, 64), extratags=[(42113, 2, 0, "0", True)])
    model = convolutional()
    planned = plan(source, model=model, foreground="auto", **SETTINGS)
    done = one(infer(source, model=model, out=tmp_path / "m.zarr", foreground="auto", **SETTINGS))
    assert planned.tiles_skipped < done.tiles_skipped
    assert f"; at least {planned.tiles_skipped} skipped, told without reading pixels" in planned.summary()
    assert f"at most {planned.forward_passes} (" in planned.summary()
    whole = plan(source, model=model, **SETTINGS)
    assert "; 0 skipped\n" in whole.summary()
    assert "at most" not in whole.summary().partition("reading")[0]
    assert planned.to_json().keys() == whole.to_json().keys()
    assert "looks" not in planned.to_json()


# ── what cannot be read, or answered ─────────────────────────────────────────────


def reach(lost: np.ndarray) -> np.ndarray:
    """Pixels of every tile of 64 px, overlap 16, that sees a lost pixel."""
    reached = np.zeros_like(lost)
    for y in range(-8, lost.shape[0], 48):
        for x in range(-8, lost.shape[1], 48):
            at = np.s_[max(0, y) : y + 64, max(0, x) : x + 64]
            reached[at] |= lost[at].any()
    return reached


def test_a_broken_tile_is_nodata_and_a_line_in_the_report(
    tmp_path: Path, unet: Path, command: Any, here: None
) -> None:
    pixels = noise(390, 330)
    sound = write(tmp_path / "sound.tif", pixels)
    infer(sound, model=unet, out=tmp_path / "sound.zarr", **SETTINGS)
    broken = damage(
        write(tmp_path / "broken.tif", pixels), 0, 8, 9, 41
    )  # 6 tiles a row: (1, 2), (1, 3), (6, 5)
    lost = np.zeros((390, 330), bool)
    lost[64:128, 128:256] = lost[384:, 320:] = True
    masks = []
    for block in (180, 90):
        out = tmp_path / f"{block}.zarr"
        words = ["infer", broken, "--model", unet, "--out", out, "--on-error", "skip", "--json"]
        code, answer, _ = command(*words, *as_words({**SETTINGS, "block": block}))
        assert code == 3
        regions = [
            {k: v for k, v in r.items() if k not in ("image", "reason")} for r in answer["failed_regions"]
        ]
        assert regions == [
            {"y": 64, "x": 128, "height": 64, "width": 128},
            {"y": 384, "x": 320, "height": 6, "width": 10},
        ]
        assert all(r["image"] == str(broken) and r["reason"] for r in answer["failed_regions"])
        masks.append(labels(out))
    assert np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[0] == 255, lost)
    outside = ~reach(lost)
    assert 0.4 < outside.mean() < 0.95
    assert np.array_equal(masks[0][outside], labels(tmp_path / "sound.zarr")[outside])
    assert attributes(tmp_path / "90.zarr")["raysegment"]["failed_regions"][0]["x"] == 128
    code, answer, _ = command(*words, *as_words({**SETTINGS, "block": 90}))  # done, and still not all of it
    assert (code, answer["already_done"], len(answer["failed_regions"])) == (3, True, 2)


def place(region: dict[str, Any]) -> tuple[int, int, int, int]:
    return region["y"], region["x"], region["height"], region["width"]


def test_a_broken_tile_is_told_in_full_resolution_pixels(tmp_path: Path, here: None) -> None:
    pixels = noise(400, 400)
    source = damage(write_geo(tmp_path / "a.tif", pixels), 0, 8)  # 7 tiles a row: (1, 1)
    with rasterio.open(write_geo(tmp_path / "sound.tif", pixels), overview_level=0) as file:
        overview = file.read(1)
    how: dict[str, Any] = {"model": identity(), "on_error": "skip", **SETTINGS}
    made = one(infer(source, out=tmp_path / "13.zarr", pixel_size=13, **how))
    assert labels(tmp_path / "13.zarr").shape == (308, 308)
    (region,) = made.failed_regions
    top, left, height, width = place(region)
    grid = 400 / 308  # what is lost is whole pixels of the grid that was segmented
    assert 64 - grid <= top == left <= 64
    assert 128 <= top + height == left + width <= 128 + grid + 1
    nodata = np.argwhere(labels(tmp_path / "13.zarr") == 255)
    assert np.abs(nodata.min(axis=0) * grid - 64).max() <= grid
    assert np.abs((nodata.max(axis=0) + 1) * grid - 128).max() <= grid
    made = one(infer(source, out=tmp_path / "20.zarr", pixel_size=20, **how))
    assert (made.failed_regions, made.exit_code) == ([], 0), "20 m is the overview, which is sound"
    assert np.array_equal(labels(tmp_path / "20.zarr"), overview > 127)

    damage(source, 1, 5)  # of the overview, 4 tiles a row: (1, 1)
    made = one(infer(source, out=tmp_path / "level.zarr", level=1, **how))
    assert made.exit_code == 3
    assert [place(region) for region in made.failed_regions] == [(128, 128, 128, 128)]
    lost = np.zeros((200, 200), bool)
    lost[64:128, 64:128] = True
    assert np.array_equal(labels(tmp_path / "level.zarr"), np.where(lost, 255, overview > 127))


class Deadly(nn.Module):
    """Ends its process where a pixel is 200; says so in a file. Otherwise the first channel."""

    def __init__(self, diary: str) -> None:
        super().__init__()
        self.diary = diary

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (x == 200).any():
            with open(self.diary, "a") as file:
                file.write("died\n")
            os._exit(1)
        return x[:, :1] / 255


@pytest.mark.parametrize("on_error", ["skip", pytest.param("fail", marks=pytest.mark.slow)])
def test_a_block_that_kills_three_workers_is_given_up(
    on_error: str, tmp_path: Path, ray_cluster: None
) -> None:
    pixels = np.minimum(noise(390, 390), 199)
    pixels[100, 300] = 200
    source = write(tmp_path / "a.tif", pixels)
    spec = rs.ModelSpec(classes=identity().spec.classes, channels=1, activation="none")
    diary = tmp_path / "diary"
    how: dict[str, Any] = {"model": Model(Deadly(str(diary)), spec), "out": tmp_path / "m.zarr"}
    if on_error == "fail":
        with pytest.raises(WorkError, match=r"block 0,1 of .* took its worker down 3 times"):
            infer(source, on_error="fail", **how, **SETTINGS)
        return
    # the pixel that kills is at the centre of the image: how the precision is measured must not see it
    result = one(infer(source, on_error="skip", **how, **SETTINGS))
    assert diary.read_text().count("died") == 3
    assert result.exit_code == 3
    (region,) = result.failed_regions
    assert "took its worker down 3 times" in region["reason"]
    lost = np.zeros((390, 390), bool)
    lost[:200, 184:392] = True  # block 0,1 and the half overlap around it
    assert (region["y"], region["x"], region["height"], region["width"]) == (0, 184, 200, 206)
    assert np.array_equal(labels(tmp_path / "m.zarr"), np.where(lost, 255, pixels[..., 0] > 127))
    assert result.forward_pixels == (result.tiles - 4 * 4) * 64**2


def test_which_of_several_images_of_a_file_is_read_is_said(tmp_path: Path, here: None, capsys: Any) -> None:
    with tifffile.TiffWriter(tmp_path / "x.ome.tif", ome=True) as tif:
        for name, edge in (("field 1", 96), ("field 2", 96), ("label", 24)):
            tif.write(noise(edge, edge)[..., 0], metadata={"axes": "YX", "Name": name})
    console.configure("human")
    infer(tmp_path / "x.ome.tif", model=identity(), out=tmp_path / "m.zarr", **SETTINGS)
    assert "not read: field 2 (96 × 96 px); read is the one of 96 × 96 px" in capsys.readouterr().err


# ── resolution ───────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def geo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """A GeoTIFF of odd size, its pixels (h, w), and its overview's."""
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (90, 100), np.uint8).repeat(4, 0).repeat(4, 1)[:351, :399]
    path = write_geo(tmp_path_factory.mktemp("geo") / "geo.tif", np.ascontiguousarray(coarse)[..., None])
    with rasterio.open(path, overview_level=0) as file:
        return path, coarse, file.read(1)


def test_a_level_is_segmented_and_knows_its_scale(
    geo: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, here: None
) -> None:
    source, _, overview = geo
    out = tmp_path / "m.zarr"
    result = one(infer(source, model=identity(), out=out, level=1, **SETTINGS))
    assert result.shape == overview.shape == (176, 200)
    assert np.array_equal(labels(out), overview > 127)
    about = attributes(out)
    y, x = 351 / 176, 399 / 200
    assert about["raysegment"]["scale"] == pytest.approx([y, x])
    assert about["spatial:transform"] == pytest.approx([10 * x, 0, 500_000, 0, -10 * y, 4_000_000])
    assert about["proj:code"] == "EPSG:32643"
    scale = about["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"]
    assert scale == pytest.approx([10 * y, 10 * x])


def write_ome(path: Path, unit: str | None, pixel: float, place: tuple[float, float]) -> Path:
    """An OME-Zarr slide of 300 × 400 px and half of that, whose first pixel's centre lies at `place` (y, x)."""
    group = zarr.create_group(path)
    datasets = []
    for level, step in enumerate((1, 2)):
        group.create_array(str(level), data=noise(300 // step, 400 // step)[..., 0], chunks=(64, 64))
        at = [p + pixel * (step - 1) / 2 for p in place]
        steps = [
            {"type": "scale", "scale": [pixel * step] * 2},
            {"type": "translation", "translation": at},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": steps})
    axes = [{"name": n, "type": "space"} | ({"unit": unit} if unit else {}) for n in "yx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    return path


@pytest.mark.parametrize(("unit", "pixel"), [("micrometer", 0.5), ("millimeter", 0.0005), (None, 1.0)])
def test_a_mask_lies_where_its_slide_does(tmp_path: Path, here: None, unit: str | None, pixel: float) -> None:
    """As a viewer places them: of whole slide, region and level, each pixel's centre is where the slide says."""
    first = (-100 * pixel, 30 * pixel)
    source = write_ome(tmp_path / "slide.zarr", unit, pixel, first)
    region = rs.Window(y=41, x=80, height=50, width=60)
    in_mask_unit = 1.0 if unit is None else 0.5 / pixel
    for n, (options, corner, step) in enumerate(
        [({}, (0, 0), 1), ({"region": region}, (41, 80), 1), ({"level": 1, "region": region}, (40, 80), 2)]
    ):
        out = tmp_path / f"{n}.zarr"
        infer(source, model=identity(), out=out, **options, **SETTINGS)
        told = attributes(out)["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
        assert told[0]["scale"] == pytest.approx([step * pixel * in_mask_unit] * 2)
        centre = [f + pixel * (c + (step - 1) / 2) for f, c in zip(first, corner, strict=True)]
        assert told[1]["translation"] == pytest.approx([c * in_mask_unit for c in centre])


def test_the_models_pixel_size_decides_unless_told_otherwise(
    geo: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, here: None, capsys: Any
) -> None:
    source, pixels, _ = geo
    trained = identity(pixel_size=(40.0, 40.0, "m"))
    outs = {name: tmp_path / f"{name}.zarr" for name in ("model", "asked", "native")}
    console.configure("human")
    infer(source, model=trained, out=outs["model"], **SETTINGS)
    assert "resampled from 10 to 40 m" in capsys.readouterr().err
    infer(source, model=identity(), out=outs["asked"], pixel_size=40, **SETTINGS)
    infer(source, model=trained, out=outs["native"], pixel_size="native", **SETTINGS)
    assert labels(outs["model"]).shape == (88, 100)
    # 4 × 4 pixels are one value: the mean of about as many is that value, but for the slanted grid
    inner = pixels[1::4, 1::4][:88, :100].astype(int)
    sure = np.abs(inner - 127) > 60
    assert (labels(outs["model"]) == (inner > 127))[sure].mean() > 0.99
    assert np.array_equal(labels(outs["model"]), labels(outs["asked"]))
    about = attributes(outs["model"])
    assert about["raysegment"]["scale"] == pytest.approx([351 / 88, 399 / 100])
    assert about["spatial:transform"][0] == pytest.approx(39.9)
    assert np.array_equal(labels(outs["native"]), pixels > 127)
    assert attributes(outs["native"])["raysegment"]["scale"] == [1, 1]


def test_a_region_of_a_resampled_image_is_the_mask_cropped(
    geo: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, here: None
) -> None:
    how: dict[str, Any] = {"model": convolutional(), "pixel_size": 23.0, **SETTINGS}
    infer(geo[0], out=tmp_path / "whole.zarr", **how)
    whole = labels(tmp_path / "whole.zarr")
    assert whole.shape == (153, 173)
    region = rs.Window(y=101, x=150, height=100, width=203)
    infer(geo[0], out=tmp_path / "part.zarr", region=region, **how)
    y, x = 351 / 153, 399 / 173
    top, left = int(101 / y), int(150 / x)
    bottom, right = -int(-201 // y), -int(-353 // x)
    part = labels(tmp_path / "part.zarr")
    assert np.array_equal(part, whole[top:bottom, left:right])
    about = attributes(tmp_path / "part.zarr")
    transform = about["spatial:transform"]
    assert transform[2] == pytest.approx(500_000 + left * 10 * x)
    assert transform[5] == pytest.approx(4_000_000 - top * 10 * y)
    assert about["raysegment"]["origin"] == pytest.approx([top * y, left * x])


# ── channels, memory, refusals ───────────────────────────────────────────────────


def test_channels_are_seen_in_the_order_asked_for(tmp_path: Path, here: None) -> None:
    pixels = noise(130, 140, 4)
    source = write(tmp_path / "a.tif", pixels)
    infer(source, model=identity(), out=tmp_path / "one.zarr", channels=(2,), **SETTINGS)
    assert np.array_equal(labels(tmp_path / "one.zarr"), pixels[..., 2] > 127)
    other = write(tmp_path / "other.tif", pixels[..., [3, 0, 1]])
    model = convolutional(channels=3)
    infer(source, model=model, out=tmp_path / "three.zarr", channels=(3, 0, 1), **SETTINGS)
    infer(other, model=model, out=tmp_path / "other.zarr", **SETTINGS)
    assert np.array_equal(labels(tmp_path / "three.zarr"), labels(tmp_path / "other.zarr"))


def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path, unet: Path, command: Any) -> None:
    source = write(tmp_path / "a.tif", noise(100, 100, 2))
    (tmp_path / "other").mkdir()
    twin = write(tmp_path / "other" / "a.tif", noise(100, 100))
    base = ["--model", unet, "--out", tmp_path / "m.zarr", "--json"]
    folder = ["--model", unet, "--out", tmp_path / "masks", "--json"]
    for words, says in (
        (["infer", source, *base, "--channels", "0", "--level", "1"], "--level 1 is not in"),
        (["infer", source, *base, "--channels", "2"], "has channels 0 to 1"),
        (["infer", source, *base, "--channels", "0,1"], "the model takes 1"),
        (["infer", source, *base], "choose with --channels"),
        (["infer", source, *base, "--channels", "0", "--pixel-size", "1"], "does not say its own"),
        (["infer", tmp_path / "*.jp2", *folder], "matches no file"),
        (["infer", source, twin, *folder], "would both become a.zarr"),
        (["infer", source, *base, "--channels", "0", "--foreground", tmp_path / "no.tif"], "no.tif"),
    ):
        code, answer, said = command(*words)
        assert code == 2
        assert says in answer["error"]
        assert len(answer["error"].splitlines()) == 1
        assert "Traceback" not in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "other"]


def test_the_least_memory_that_is_named_works(tmp_path: Path, unet: Path, command: Any) -> None:
    source = write(tmp_path / "a.tif", np.zeros((3100, 3100, 1), np.uint8))
    words = ["infer", source, "--model", unet, "--plan", "--json"]
    fixed = ["--batch-size", 1, "--precision", "fp32", "--block", 3000]
    free = command(*words, *fixed)[1]
    code, answer, _ = command(*words, *fixed, "--max-memory", "100M")
    assert code == 2
    named = re.search(r"the least that works is (\d+M)", answer["error"])
    assert named is not None
    code, answer, _ = command(*words, *fixed, "--max-memory", named[1])
    assert code == 0
    assert answer["worker_bytes"] <= int(named[1][:-1]) * 10**6 < free["worker_bytes"]
    assert answer["block"] < free["block"]


@pytest.mark.slow
@pytest.mark.parametrize("most", ["600M", "1G", "2G"])
def test_workers_keep_within_the_memory_they_are_given(
    most: str, tmp_path: Path, command: Any, ray_cluster: None
) -> None:
    """A U-Net of the default width and tile, BatchNorm and all, on blocks as large as fit."""
    torch.manual_seed(1)
    architecture = {"name": "unet", "in_channels": 3, "out_channels": 2}
    spec = rs.ModelSpec(
        classes=default_classes(2), channels=3, tile=512, multiple=16, architecture=architecture
    )
    save_model(build(architecture), spec, model := tmp_path / "model.safetensors")
    pixels = noise(1900, 1900, 3)
    source, out = write(tmp_path / "a.tif", pixels), tmp_path / "m.zarr"
    words = ["infer", source, "--model", model, "--block", 2000, "--max-memory", most, "--json"]
    code, answer, said = command(*words, "--out", out)
    assert code == 0, said
    assert answer["peak_rss_bytes"] <= float(most[:-1]) * {"M": 1e6, "G": 1e9}[most[-1]]


# ── what is half made ────────────────────────────────────────────────────────────


def half_made(source: Path, out: Path, shards: int = 1, **call: Any) -> None:
    """Interrupt `infer` when so many shards of the mask are written."""
    write, written = MaskStore.write, []

    def interrupted(self: MaskStore, level: int, window: Window, labels: np.ndarray) -> None:
        if len(written) == shards:
            raise KeyboardInterrupt
        written.append(window)
        write(self, level, window, labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskStore, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            infer(source, out=out, **call)
    assert (out / "0" / "c").is_dir()
    assert finished(out) is None


def test_half_a_mask_whose_scratch_was_deleted_is_begun_anew(tmp_path: Path, here: None) -> None:
    source, out = write(tmp_path / "a.tif", noise(300, 300)), tmp_path / "m.zarr"
    call: dict[str, Any] = {"model": contrasting(2), **SETTINGS, "uncertainty": True}
    infer(source, out=tmp_path / "whole.zarr", **call)
    half_made(source, out, **call)
    shutil.rmtree(tmp_path / "m.zarr.scratch")
    for path in (out, side_path(out, "uncertainty")):
        assert is_ours(path)
        assert read_coding(path / "0") is read_field(path / "0") is None
    infer(source, out=out, **call)
    for name in ("", ".uncertainty"):
        assert files(tmp_path / f"m{name}.zarr") == files(tmp_path / f"whole{name}.zarr")


@pytest.mark.parametrize(
    "other", [{"blend": "none"}, {"block": 90}, {"uncertainty": False}], ids=["recipe", "block", "sides"]
)
def test_what_another_scratch_began_is_not_gone_on_with(
    tmp_path: Path, here: None, other: dict[str, Any]
) -> None:
    source, out = write(tmp_path / "a.tif", noise(300, 300)), tmp_path / "m.zarr"
    call: dict[str, Any] = {"model": contrasting(2), **SETTINGS, "uncertainty": True}
    infer(source, out=tmp_path / "whole.zarr", **call)
    half_made(source, out, **call)
    half_made(source, out, 3, **{**call, **other}, scratch=tmp_path / "other")
    infer(source, out=out, **call)
    for name in ("", ".uncertainty"):
        assert files(tmp_path / f"m{name}.zarr") == files(tmp_path / f"whole{name}.zarr")


def test_what_is_cut_short_is_ours_from_its_first_moment_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.zarr"
    (out / "0").mkdir(parents=True)
    (out / "0" / "zarr.0123abcd.partial").touch()  # as zarr writes a file
    check_in_the_way(out, overwrite=False)
    (out / "0" / "scan.partial").touch()
    with pytest.raises(OutputExistsError, match="no mask of raysegment"):
        check_in_the_way(out, overwrite=False)
    shutil.rmtree(out)
    mask = MaskStore(out, Size(1500, 1500), np.dtype(np.uint8), 1024)
    mask.create()
    mask.write(0, Window(y=0, x=0, height=1024, width=1024), np.zeros((1024, 1024), np.uint8))
    remove, removed = store.remove, []

    def remembered(path: Path) -> None:
        if path != out:
            remove(path)
            check_in_the_way(out, overwrite=False)
            removed.append(path.relative_to(out).as_posix())

    monkeypatch.setattr(store, "remove", remembered)
    remove_store(out)
    assert set(removed) == {"zarr.json", "0/c", "1"}
    assert [p.name for p in out.rglob("*") if p.is_file()] == ["zarr.json"]


# ── several images ───────────────────────────────────────────────────────────────


def test_several_images_become_what_single_calls_make_of_them(
    tmp_path: Path, unet: Path, ray_cluster: None
) -> None:
    sources = [
        write(tmp_path / f"{name}.tif", noise(height, width, seed=height))
        for name, height, width in (("b", 250, 400), ("a", 100, 90), ("c", 391, 200))
    ]
    singles = tmp_path / "singles"
    singles.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        for source in sources:
            infer(source, model=unet, out=singles / f"{source.stem}.zarr", **SETTINGS)
    call: dict[str, Any] = {"model": unet, "out": tmp_path / "masks", **SETTINGS, "workers": 2}
    results = infer(str(tmp_path / "*.tif"), **call)
    assert isinstance(results, InferResults)
    assert [Path(image.output).name for image in results.images] == ["a.zarr", "b.zarr", "c.zarr"]
    assert files(tmp_path / "masks") == files(singles)
    assert results.total("forward_pixels") == results.total("tiles") * 64**2
    assert not (tmp_path / "masks.scratch").exists()
    again = infer(str(tmp_path / "*.tif"), **call)
    assert isinstance(again, InferResults)
    assert all(image.already_done for image in again.images)
    assert [image.class_pixels for image in again.images] == [image.class_pixels for image in results.images]
    (tmp_path / "c.tif").rename(tmp_path / "c.gone")
    with pytest.raises(InputError, match=r"c\.tif"):
        infer(sources, **call)


_TO_BE_KILLED = """
import sys, pytest
from alone import without_ray
from raysegment.inference.run import infer
from test_images import SETTINGS

without_ray(pytest.MonkeyPatch())
*sources, model, out = sys.argv[1:]
infer(sources, model=model, out=out, **{**SETTINGS, "block": 90, "tta": "d4"})
"""


def test_killed_in_the_second_image_only_its_missing_blocks_are_done(
    tmp_path: Path, unet: Path, here: None
) -> None:
    first = write(tmp_path / "a.tif", noise(150, 150))
    second = write(tmp_path / "b.tif", noise(600, 600))
    how: dict[str, Any] = {**SETTINGS, "block": 90, "tta": "d4"}
    out = tmp_path / "masks"
    driver = subprocess.Popen(
        [sys.executable, "-c", _TO_BE_KILLED, *map(str, (first, second, unet, out))],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    plan_file = out.with_name("masks.scratch") / "plan.json"
    deadline = time.monotonic() + 120
    while not plan_file.exists() and time.monotonic() < deadline:
        assert driver.poll() is None
        time.sleep(0.02)
    plan = Plan.model_validate_json(plan_file.read_text())
    records = plan_file.with_name("records") / plan.images[1].key
    while len(list(records.glob("[0-9]*.safetensors"))) < 15 and time.monotonic() < deadline:
        assert driver.poll() is None
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    there = list(records.glob("[0-9]*.safetensors"))
    assert 0 < len(there) < 7 * 7, "killed too late or too early to prove anything"
    assert (out / "a.zarr" / "zarr.json").exists()
    assert not (out / "b.zarr" / "zarr.json").exists()
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (out / "a.zarr").rglob("*") if p.is_file()}
    tiles_there = sum(RecordFile(path).tiles for path in there)

    results = infer([first, second], model=unet, out=out, **how)
    assert isinstance(results, InferResults)
    assert [image.already_done for image in results.images] == [True, False]
    resumed = results.images[1]
    assert resumed.blocks_resumed == len(there)
    assert resumed.forward_pixels == (resumed.tiles - tiles_there) * 8 * 64**2
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in before}
    infer(second, model=unet, out=tmp_path / "b.zarr", **{**how, "workers": 2})
    assert files(out / "b.zarr") == files(tmp_path / "b.zarr")


# ── dear sources ─────────────────────────────────────────────────────────────────


def test_a_single_strip_is_copied_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, here: None
) -> None:
    pixels = noise(600, 500)
    strip = write(tmp_path / "strip.tif", pixels, tile=None, rowsperstrip=600)
    tiled = write(tmp_path / "tiled.tif", pixels)
    model = convolutional()
    how: dict[str, Any] = {**SETTINGS, "block": 90}
    planned = plan(strip, model=model, **how)
    assert planned.transcode
    assert planned.read_amplification > 4
    assert not plan(tiled, model=model, **how).transcode
    infer(tiled, model=model, out=tmp_path / "tiled.zarr", **how)

    copies = []
    copy = transcoding.transcode

    def and_spoil(*args: Any, **options: Any) -> Path:
        """Whoever reads the source after the copy was made reads garbage."""
        copies.append(copy(*args, **options))
        damage(strip, 0, 0)
        return copies[-1]

    monkeypatch.setattr(transcoding, "transcode", and_spoil)
    console.configure("human")
    capsys.readouterr()
    infer(strip, model=model, out=tmp_path / "strip.zarr", **how)
    assert "copying it once" in capsys.readouterr().err
    assert len(copies) == 1
    assert not copies[0].exists()
    assert not (tmp_path / "strip.zarr.scratch").exists()
    assert np.array_equal(labels(tmp_path / "strip.zarr"), labels(tmp_path / "tiled.zarr"))


# ── many nodes ───────────────────────────────────────────────────────────────────

_THREE_NODES = """
import sys
from ray.cluster_utils import Cluster
import ray
from raysegment.inference.run import infer

source, model, out = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1, "object_store_memory": 10**8})
for _ in range(2):
    cluster.add_node(num_cpus=3, num_gpus=1, object_store_memory=10**8)
ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
try:
    assert sum(node["Alive"] for node in ray.nodes()) == 3
    result = infer(source, model=model, out=out, workers=4, tile=64, overlap=16, block=90, precision="fp32",
                   batch_size=1, probabilities=True, device="cpu")
    print(result.tiles, result.forward_pixels)
finally:
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.slow
def test_four_workers_on_three_nodes_write_the_same_bytes(
    tmp_path: Path, unet: Path, ray_cluster: None
) -> None:
    source = write(tmp_path / "a.tif", noise(700, 800))
    out, other = tmp_path / "one.zarr", tmp_path / "four.zarr"
    result = one(infer(source, model=unet, out=out, probabilities=True, **{**SETTINGS, "block": 90}))
    with tempfile.TemporaryDirectory(
        prefix="rs", dir="/tmp"
    ) as home:  # short: a socket's path ends at 107 bytes
        (Path(home) / "ray").mkdir()
        run = subprocess.run(
            [sys.executable, "-c", _THREE_NODES, str(source), str(unet), str(other)],
            capture_output=True,
            text=True,
            env={**os.environ, "RAY_TMPDIR": home},
            timeout=300,
            check=False,
        )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [str(result.tiles), str(result.forward_pixels)]
    assert files(out, side_path(out, "probabilities")) == files(other, side_path(other, "probabilities"))


def test_the_model_file_of_these_tests_tells_classes_apart(unet: Path) -> None:
    """Or equal masks would prove nothing."""
    p = load_model(unet).predict(noise(64, 64)[None])
    assert 0.02 < (p[0, 1] > 0.5).mean() < 0.98
