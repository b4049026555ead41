"""What `inspect` says of images, masks, models and training sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import zarr
from masks import write_tiff_mask, write_zarr_mask
from PIL import Image
from typer.testing import CliRunner

from raysegment.cli.app import app
from raysegment.errors import InputError, UsageError
from raysegment.inspection import image as image_module
from raysegment.inspection import inspect
from raysegment.inspection.text import MOST_ROWS, as_text
from raysegment.model import Class, ModelSpec, save_model
from raysegment.model.architectures import build

RNG = np.random.default_rng(5)


def tif(path: Path, pixels: np.ndarray, **kwargs: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pixels, metadata=None, **kwargs)
    return path


def test_an_image(tmp_path: Path) -> None:
    pixels = RNG.integers(1, 900, (50, 60, 4)).astype(np.uint16)
    pixels[:10] = 0
    path = tif(
        tmp_path / "i.tif",
        pixels,
        photometric="minisblack",
        planarconfig="contig",
        tile=(16, 32),
        compression="zlib",
        extratags=[(42113, "s", 0, "0", True)],
    )
    found = inspect(path)
    assert found.kind == "image"
    assert found.facts["shape"] == [50, 60, 4]
    assert found.facts["dtype"] == "uint16"
    assert found.facts["chunk"] == [16, 32]
    assert found.facts["nodata"] == 0
    assert found.facts["valid_share"] == pytest.approx(40 / 50)
    assert found.facts["sampled_share"] == 1
    data = pixels[10:].reshape(-1, 4)
    for c, row in enumerate(found.facts["channels"]):
        assert (row["min"], row["max"]) == (data[:, c].min(), data[:, c].max())
        assert row["mean"] == pytest.approx(data[:, c].mean())


def test_how_the_axes_of_an_array_were_understood(tmp_path: Path) -> None:
    pixels = np.ones((12, 40, 50), np.uint8)
    zarr.create_array(tmp_path / "a.zarr", data=pixels)
    found = inspect(tmp_path / "a.zarr")
    assert found.facts["axes"] == {"c": 12, "y": 40, "x": 50}
    assert not found.facts["axes_are_named"]
    lines = [" ".join(line.split()) for line in found.summary().splitlines()]
    assert {"axes c 12, y 40, x 50", "axes are named no"} <= set(lines)
    zarr.create_array(tmp_path / "b.zarr", data=pixels, dimension_names=("band", "lat", "lon"))
    assert inspect(tmp_path / "b.zarr").facts["axes_are_named"]
    assert "axes" not in inspect(tif(tmp_path / "i.tif", pixels[0])).facts


def test_floats_that_json_cannot_say(tmp_path: Path) -> None:
    pixels = RNG.random((20, 20, 2)).astype(np.float32)
    pixels[0, :, 0] = np.nan
    pixels[1, 1] = np.inf
    pixels[:, :, 1] = np.nan
    path = tif(tmp_path / "f.tif", pixels, photometric="minisblack", planarconfig="contig")
    answer = json.dumps(inspect(path).to_json(), allow_nan=False)
    channels = json.loads(answer)["channels"]
    assert [c["channel"] for c in channels] == [0]
    assert (channels[0]["max"], channels[0]["min"]) == ("inf", float(np.nanmin(pixels[:, :, 0])))


def test_of_a_big_image_only_windows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module, "SAMPLE_PX", 8)
    pixels = np.zeros((100, 70), np.uint8)
    pixels[92:, 62:] = 9  # the last window
    pixels[50, 5] = 200  # between windows
    found = inspect(tif(tmp_path / "i.tif", pixels)).facts
    assert found["sampled_share"] == pytest.approx(16 * 64 / 7000)
    assert found["channels"][0]["max"] == 9


@pytest.mark.parametrize("kind", ["zarr", "tif"])
def test_a_mask(tmp_path: Path, kind: str) -> None:
    labels = RNG.integers(0, 2, (37, 45)).astype(np.uint8)
    labels[:3] = 255
    classes = [("land", 0), ("water", (1, 2, 3))]
    if kind == "zarr":
        path = write_zarr_mask(tmp_path / "m.zarr", labels, classes, origin=(5, 6), levels=2)
    else:
        path = write_tiff_mask(tmp_path / "m.tif", labels, classes)
    found = inspect(path)
    assert found.kind == "mask"
    assert found.facts["origin"] == ([5, 6] if kind == "zarr" else [0, 0])
    assert found.facts["nodata_pixels"] == 3 * 45
    assert found.facts["unknown_pixels"] == 0
    counted = {row["name"]: row["pixels"] for row in found.facts["classes"]}
    assert counted == {"land": np.sum(labels == 0), "water": np.sum(labels == 1)}
    assert sum(row["share"] for row in found.facts["classes"]) == pytest.approx(1)
    assert "water" in found.summary()
    json.dumps(found.to_json(), allow_nan=False)


def test_the_scale_of_a_mask(tmp_path: Path) -> None:
    labels = np.zeros((8, 9), np.uint8)
    found = inspect(write_zarr_mask(tmp_path / "m.zarr", labels, origin=(4, 6), scale=(2, 2.5)))
    assert (found.facts["origin"], found.facts["scale"]) == ([4, 6], [2, 2.5])
    assert any(line.split() == ["scale", "2,", "2.5"] for line in found.summary().splitlines())
    assert inspect(write_zarr_mask(tmp_path / "old.zarr", labels)).facts["scale"] == [1, 1]


@pytest.mark.parametrize(
    ("about", "shape", "said"),
    [
        (
            {"scale": 1 / 255, "classes": ["land", "sea"], "recipe": {}},
            (2, 20, 30),
            "probabilities of the classes land, sea; stored as a multiple of 0.003922",
        ),
        (
            {"scale": 1 / 255, "meaning": "min(1, 4 v)"},
            (20, 30),
            "uncertainty, min(1, 4 v); stored as a multiple of 0.003922",
        ),
        ({"scale": 1 / 255}, (20, 30), "uncertainty; stored as a multiple of 0.003922"),
    ],
)
def test_what_lies_beside_a_mask(
    tmp_path: Path, about: dict[str, Any], shape: tuple[int, ...], said: str
) -> None:
    path, names = tmp_path / "side.zarr", ("c", "y", "x")[-len(shape) :]
    axes = [{"name": n, "type": "channel" if n == "c" else "space"} for n in names]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0] * len(shape)}]}]
    ome = {"version": "0.5", "multiscales": [{"name": "m", "axes": axes, "datasets": datasets}]}
    zarr.create_group(path, attributes={"ome": ome, "raysegment_field": about})
    zarr.create_array(path, name="0", shape=shape, dtype=np.uint8, dimension_names=names)[:] = 51
    found = inspect(path)
    assert found.kind == "image"
    assert found.facts["shape"] == [20, 30, 2 if len(shape) == 3 else 1]
    assert found.facts["holds"] == said
    assert said in found.summary()


def test_a_broken_word_on_what_lies_beside_a_mask_is_named(tmp_path: Path) -> None:
    path = write_zarr_mask(tmp_path / "side.zarr", np.zeros((4, 5), np.uint8))
    root = json.loads((path / "zarr.json").read_text())
    del root["attributes"]["raysegment"]
    for wrong in ({"scale": "much"}, {}, [1]):
        root["attributes"]["raysegment_field"] = wrong
        (path / "zarr.json").write_text(json.dumps(root))
        with pytest.raises(InputError, match=r"side\.zarr: what it says of its values"):
            inspect(path)


def test_a_model(tmp_path: Path) -> None:
    architecture = {"name": "unet", "in_channels": 3, "out_channels": 2, "base_width": 4, "depth": 2}
    module = build(architecture)
    spec = ModelSpec(
        classes=(
            Class(name="land", colour=(1, 2, 3), value=0),
            Class(name="sea", colour=(4, 5, 6), value=255),
        ),
        channels=3,
        mean=(10, 20, 30),
        std=(2,),
        multiple=4,
        tile=64,
        pixel_size=(0.5, 0.5, "um"),
        thresholds=(0.4, 0.6),
        architecture=architecture,
        provenance={"images": 7},
    )
    save_model(module, spec, tmp_path / "m.safetensors")
    found = inspect(tmp_path / "m.safetensors")
    assert found.kind == "model"
    assert found.facts["parameters"] == sum(p.numel() for p in module.parameters())
    assert found.facts["bytes"] == (tmp_path / "m.safetensors").stat().st_size
    assert [c["threshold"] for c in found.facts["classes"]] == [0.4, 0.6]
    assert found.facts["architecture"] == architecture
    assert found.facts["pixel_size"] == [0.5, 0.5, "um"]
    assert "0.5, 0.5, um" in found.summary()
    json.dumps(found.to_json(), allow_nan=False)


def test_a_pickle_is_no_model(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"m\.pt .*safetensors"):
        inspect(tmp_path / "m.pt")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for i in range(4):
        tif(
            root / "images" / f"{i}.tif",
            RNG.integers(0, 255, (20, 30, 3)).astype(np.uint8),
            photometric="rgb",
        )
        mask = np.zeros((20, 30), np.uint8)
        mask[: 5 * i] = 255
        tif(root / "masks" / f"{i}.tif", mask)
    return root


def test_a_training_set(dataset: Path) -> None:
    found = inspect(dataset)
    assert found.kind == "dataset"
    facts = found.facts
    assert (facts["images"], facts["masks"], facts["pairs"], facts["problems"]) == (4, 4, 4, [])
    assert [f["size"] for f in facts["files"]] == [[20, 30]] * 4
    assert [f["mask"] for f in facts["files"]] == ["values 0", *["values 0, 255"] * 3]
    shares = {c["value"]: (c["share"], c["files"]) for c in facts["classes"]}
    assert shares == {0: (pytest.approx(50 / 80), 4), 255: (pytest.approx(30 / 80), 3)}
    assert [f["coding"] for f in facts["files"]] == ["0 alone", *["0/255"] * 3]
    assert facts["coding"] == "0/255 (3 files); 0 alone (1 file)"


def test_every_problem_of_a_training_set_is_listed(dataset: Path) -> None:
    tif(dataset / "images" / "lonely.tif", np.zeros((4, 4, 3), np.uint8), photometric="rgb")
    tif(dataset / "images" / "1.tif", np.zeros((20, 31, 3), np.uint8), photometric="rgb")
    tif(dataset / "images" / "2.tif", np.zeros((20, 30), np.uint16))
    (dataset / "images" / "3.tif").write_bytes(b"II*\0rubbish")
    Image.new("RGB", (30, 20), (3, 200, 1)).save(dataset / "masks" / "0.png")
    (dataset / "masks" / "0.tif").unlink()
    facts = inspect(dataset).facts
    problems = "\n".join(facts["problems"])
    assert "lonely.tif has no partner of the same stem in masks/: name both alike" in problems
    assert "1.tif is 20 × 30 px, its image 20 × 31 px" in problems
    assert "2.tif has 1 channel of uint16, most images 3 of uint8" in problems
    assert "3.tif" in problems
    assert "mix codings" in problems
    assert facts["classes"] == []
    assert len(facts["problems"]) == 5
    assert "mix codings" in inspect(dataset).summary()


def test_folders_that_are_missing_are_problems_and_other_folders_are_refused(tmp_path: Path) -> None:
    tif(tmp_path / "d" / "images" / "a.tif", np.zeros((4, 4), np.uint8))
    assert any("no folder masks/" in p for p in inspect(tmp_path / "d").facts["problems"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither a Zarr store nor a training set"):
        inspect(tmp_path / "empty")
    (tmp_path / "set.csv").write_text("image,mask\n")
    with pytest.raises(InputError, match=r"set\.csv holds no rows"):
        inspect(tmp_path / "set.csv")
    with pytest.raises(InputError, match=r"none\.tif"):
        inspect(tmp_path / "none.tif")


@pytest.mark.parametrize("name", ["isbi2012", "dsb2018", "s2_india_landcover"])
def test_real_training_sets(shared_data: Path, name: str) -> None:
    found = inspect(shared_data / name)
    assert found.kind == "dataset"
    assert found.facts["pairs"] == len(list((shared_data / name / "images").iterdir()))
    mixed = name == "s2_india_landcover"
    assert bool(found.facts["problems"]) is mixed, found.facts["problems"]
    json.dumps(found.to_json(), allow_nan=False)


def test_long_tables_are_cut_in_the_text_alone() -> None:
    text = as_text({"files": [{"name": f"n{i}", "size": [1, 2]} for i in range(MOST_ROWS + 5)], "none": None})
    assert "and 5 more" in text
    heads, first = text.splitlines()[1:3]
    assert heads.split() == ["name", "height,", "width"]
    assert heads.index("height") == first.index("1, 2")
    assert "none" not in text


def test_the_command(tmp_path: Path, dataset: Path) -> None:
    answer = CliRunner().invoke(app, ["inspect", str(dataset), "--json"])
    assert answer.exit_code == 0, answer.stderr
    assert json.loads(answer.stdout)["kind"] == "dataset"
    assert "problems" in json.loads(answer.stdout)
    missing = CliRunner().invoke(app, ["inspect", str(tmp_path / "none.tif")])
    assert missing.exit_code == 2
    assert missing.stderr.count("\n") == 1


def test_one_plane_of_a_stack(tmp_path: Path, dataset: Path) -> None:
    stack = zarr.create_array(
        tmp_path / "a.zarr", shape=(3, 20, 30), dtype="u1", dimension_names=("z", "y", "x")
    )
    stack[:] = np.arange(3)[:, None, None]
    with pytest.raises(UsageError, match="--select z=0"):
        inspect(tmp_path / "a.zarr")
    found = json.loads(
        CliRunner().invoke(app, ["inspect", str(tmp_path / "a.zarr"), "--select", "z=2", "--json"]).stdout
    )
    assert found["axes"] == {"z": 3, "y": 20, "x": 30}
    assert found["channels"][0]["max"] == 2
    with pytest.raises(UsageError, match="--select is for images"):
        inspect(dataset, select={"z": 0})
