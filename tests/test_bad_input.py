"""What users get wrong costs one clear line, exit 2 or 1, no traceback, and nothing that was there before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from typer.testing import CliRunner

import raysegment as rs
from raysegment.cli.app import app
from raysegment.inference.job import Job
from raysegment.inference.least_memory import convolution_bytes
from raysegment.inference.options import request_of
from raysegment.model.architectures import build
from raysegment.model.file import save_model
from raysegment.model.spec import default_classes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A U-Net of three channels."""
    architecture = {"name": "unet", "in_channels": 3, "out_channels": 2, "base_width": 4, "depth": 2}
    spec = rs.ModelSpec(
        classes=[rs.Class(name="a", colour=(0, 0, 0)), rs.Class(name="b", colour=(255, 0, 0))],
        channels=3,
        tile=64,
        multiple=4,
        architecture=architecture,
    )
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(build(architecture), spec, path)
    return path


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "scene.tif", pixels, tile=(64, 64), compression="deflate")
    return tmp_path / "scene.tif"


def fails(code: int, *words: object, says: str = "") -> None:
    """Run the command: one line of error that holds `says`, no traceback, and the same as JSON."""
    outcome = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert outcome.exit_code == code, outcome.output
    error = json.loads(outcome.stdout.splitlines()[-1])
    assert error["exit_code"] == code
    assert says in error["error"]
    assert "\n" not in error["error"]
    assert "Traceback" not in outcome.output
    lines = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert lines == [f"error: {error['error']}"]


def test_a_missing_image(model: Path, tmp_path: Path) -> None:
    fails(2, "infer", tmp_path / "none.tif", "--model", model, "--out", tmp_path / "m.zarr", says="none.tif")


def test_a_missing_model(scene: Path, tmp_path: Path) -> None:
    fails(
        2,
        "infer",
        scene,
        "--model",
        tmp_path / "no.safetensors",
        "--out",
        tmp_path / "m.zarr",
        says="no model at",
    )


def test_a_pickle_is_refused_and_says_what_to_do(scene: Path, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "model.pt")
    fails(
        2,
        "infer",
        scene,
        "--model",
        tmp_path / "model.pt",
        "--out",
        tmp_path / "m.zarr",
        says="raysegment.Model",
    )


def test_a_text_file_called_tif(model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.tif").write_text("not a picture, really")
    fails(
        2, "infer", tmp_path / "notes.tif", "--model", model, "--out", tmp_path / "m.zarr", says="notes.tif"
    )


def test_a_folder_that_is_no_image(model: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    fails(2, "infer", tmp_path / "folder", "--model", model, "--out", tmp_path / "m.zarr", says="folder")


def test_another_channel_count(model: Path, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "grey.tif", np.zeros((100, 100), np.uint8))
    fails(2, "infer", tmp_path / "grey.tif", "--model", model, "--out", tmp_path / "m.zarr", says="1 channel")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--tile", 64, "--overlap", 64], "not smaller than --tile 64"),
        (["--tile", 63], "60 and 64"),
        (["--region", 0, 0, 500, 100], "400 wide"),
        (["--region", 200, 200, -50, -50], "--region"),
        (["--polygons", "x.geojson"], "not built yet"),
        (["--block", "big"], "--block"),
        (["--workers", 0], "--workers"),
        (["--workers", "²"], "--workers"),
        (["--batch-size", "²"], "--batch-size"),
        (["--channels", "²,1,0"], "--channels"),
        (["--select", "z=²"], "--select"),
        (["--tile", 1_000_000], "one tile takes at least"),
        (["--scratch", ""], "empty path"),
        (["--foreground", ""], "empty path"),
        (["--blend", "magic"], "--blend"),
        (["--precision", "fp8"], "--precision"),
        (["--select", "z"], "--select"),
        (["--device", "cuda"], "cuda"),
    ],
)
def test_options_that_cannot_be(
    scene: Path, model: Path, tmp_path: Path, options: list[object], says: str
) -> None:
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    fails(2, "infer", scene, "--model", model, "--out", tmp_path / "m.zarr", *options, says=says)
    assert [p.name for p in tmp_path.iterdir()] == ["scene.tif"]


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("mask.tif", "not built yet"),
        ("mask.png", "*.zarr"),
        ("no/where.zarr", "does not exist"),
        ("", "empty path"),
    ],
)
def test_outputs_that_cannot_be(scene: Path, model: Path, tmp_path: Path, out: str, says: str) -> None:
    fails(2, "infer", scene, "--model", model, "--out", tmp_path / out if out else "", says=says)


def test_empty_names_are_refused_everywhere(scene: Path, model: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "m.zarr", training_set(tmp_path / "data")
    fails(2, "infer", "", "--model", model, "--out", out, says="empty path")
    fails(2, "infer", scene, "--model", "", "--out", out, says="empty path")
    fails(2, "train", data, "--out", "", says="empty path")
    fails(2, "train", "", "--out", tmp_path / "run", says="empty path")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "scene.tif"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"model": torch.nn.Conv2d(3, 2, 1)}, r"^model is a Conv2d: .*raysegment\.Model\(module, spec\)"),
        ({"workers": "3"}, "^--workers '3': give auto or a number"),
        ({"workers": True}, "^--workers True"),
        ({"workers": 1.5}, "^--workers 1.5"),
        ({"out": None}, "^out is None: name the mask"),
    ],
)
def test_arguments_of_another_type(
    scene: Path, model: Path, tmp_path: Path, arguments: dict[str, Any], says: str
) -> None:
    given = {"model": model, "out": tmp_path / "m.zarr", **arguments}
    with pytest.raises(rs.UsageError, match=says) as caught:
        rs.infer(scene, **given)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["scene.tif"]


def test_a_tile_beyond_all_memory_is_refused_before_the_network_is_read(
    scene: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(*_: object) -> None:
        raise rs.WorkError("the network was read")

    monkeypatch.setattr("raysegment.inference.job.load_model", unread)
    monkeypatch.setattr("raysegment.runtime.device.available_memory", lambda: 8 << 30)
    words = ["infer", scene, "--model", model, "--device", "cpu"]
    least = 20_000**2 * (3 * 5 + 4 + 16)  # three channels, one plane of two classes
    assert least > 8 << 30
    for rest in (["--out", tmp_path / "m.zarr"], ["--plan"]):
        fails(2, *words, "--tile", 20_000, *rest, says="--tile 20000: one tile takes at least 14 GB")
    fails(1, *words, "--tile", 4000, "--plan", says="the network was read")  # what may fit is tried


def test_a_tile_beyond_all_memory_within_the_network_is_refused_before_it_runs(
    scene: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last two levels meet: a convolution of four channels that were skipped and four that come up, into four.
    least = 256**2 * (4 + 4 + 4) * 4
    words = ["infer", scene, "--model", model, "--device", "cpu", "--tile", 256]
    monkeypatch.setattr("raysegment.runtime.device.available_memory", lambda: least - 1)
    says = "--tile 256: one tile takes at least 3.15 MB of memory within the network and there are 3.15 MB"
    for rest in (["--out", tmp_path / "m.zarr"], ["--plan"]):
        fails(2, *words, *rest, says=says)
    assert not (tmp_path / "m.zarr").exists()
    monkeypatch.setattr("raysegment.runtime.device.available_memory", lambda: least)
    fits = CliRunner().invoke(app, [*map(str, words), "--plan"])
    assert fits.exit_code == 0, fits.output


@pytest.mark.parametrize("multiple", [1, 48])
def test_what_the_largest_convolution_takes(multiple: int) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.small = torch.nn.Conv2d(3, 10, 3, padding=1), torch.nn.Conv2d(10, 40, 3, stride=4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.small(self.wide(x))

    spec = rs.ModelSpec(classes=default_classes(2), channels=3, multiple=multiple)
    assert convolution_bytes(rs.Model(Net(), spec)) == pytest.approx((3 + 10) * 4)
    assert convolution_bytes(rs.Model(torch.nn.Softmax(1), spec)) == 0


def test_an_output_that_is_something_else(scene: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "m.zarr").mkdir()
    (tmp_path / "m.zarr" / "thesis.txt").write_text("years of work")
    fails(
        2,
        "infer",
        scene,
        "--model",
        model,
        "--out",
        tmp_path / "m.zarr",
        "--overwrite",
        says="name another output",
    )
    assert (tmp_path / "m.zarr" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b'{"attributes": null}',
        b'{"attributes": [1]}',
        b'{"attributes": {"raysegment": "yes"}}',
        b'{"attributes": {"raysegment": {"recipe": {}}}}',
        b'{"attributes": {"raysegment": {"recipe": {"region": [0, 0, 9]}, "tiles": 1, "class_pixels": {}}}}',
        b'{"zarr_format": 3, "node_type": "group", "attributes": {"ome": {}}}',
    ],
)
@pytest.mark.parametrize("side", [False, True])
def test_damaged_or_foreign_metadata_at_the_output_is_no_mask_of_ours(
    scene: Path, model: Path, tmp_path: Path, content: bytes, side: bool
) -> None:
    there = tmp_path / ("m.probabilities.zarr" if side else "m.zarr")
    there.mkdir()
    (there / "zarr.json").write_bytes(content)
    words = ["infer", scene, "--model", model, "--out", tmp_path / "m.zarr", "--probabilities"]
    fails(2, *words, says="is no mask of raysegment")
    assert (there / "zarr.json").read_bytes() == content
    job = Job.open([(scene, tmp_path / "m.zarr")], model, request_of({"probabilities": True}), None)
    assert job.finished_mask(job.images[0], overwrite=True) is None  # it makes room


def first_tile(path: Path) -> tuple[int, int]:
    """Offset and size of the first tile."""
    with tifffile.TiffFile(path) as tif:
        return tif.pages[0].dataoffsets[0], tif.pages[0].databytecounts[0]


@pytest.mark.ray
def test_a_broken_tile_stops_the_job_with_its_place_named(scene: Path, model: Path, tmp_path: Path) -> None:
    offset, count = first_tile(scene)
    whole = bytearray(scene.read_bytes())
    whole[offset : offset + count] = b"\xff" * count
    scene.write_bytes(whole)
    fails(1, "infer", scene, "--model", model, "--out", tmp_path / "m.zarr", says="cannot read y 0–")
    assert not (tmp_path / "m.zarr" / "zarr.json").exists()


@pytest.mark.ray
def test_a_truncated_tiff_is_named(scene: Path, model: Path, tmp_path: Path) -> None:
    offset, _ = first_tile(scene)
    whole = scene.read_bytes()
    scene.write_bytes(whole[: (offset + len(whole)) // 2])
    arguments = ["infer", str(scene), "--model", str(model), "--out", str(tmp_path / "m.zarr"), "--json"]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code in (1, 2)  # 2 when the header was cut off too
    assert str(scene) in json.loads(outcome.stdout.splitlines()[-1])["error"]
    assert not (tmp_path / "m.zarr" / "zarr.json").exists()


def training_set(folder: Path, mask_size: tuple[int, int] = (64, 64)) -> Path:
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(folder / "images" / f"{i}.png")
        size = mask_size if i == 3 else (64, 64)
        mask = (rng.random(size) > 0.5).astype(np.uint8) * 255
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    return folder


def test_training_data_without_masks(tmp_path: Path) -> None:
    data = training_set(tmp_path / "data")
    for mask in (data / "masks").iterdir():
        mask.unlink()
    (data / "masks").rmdir()
    fails(2, "train", data, "--out", tmp_path / "run", says="masks")


def test_an_image_and_a_mask_of_different_size(tmp_path: Path) -> None:
    data = training_set(tmp_path / "data", mask_size=(64, 60))
    fails(2, "train", data, "--out", tmp_path / "run", says="3.png")


def test_training_data_that_is_not_there(tmp_path: Path) -> None:
    fails(2, "train", tmp_path / "none", "--out", tmp_path / "run", says="none")


def test_masks_of_different_size(tmp_path: Path) -> None:
    for name, edge in (("a.png", 30), ("b.png", 31)):
        Image.fromarray(np.zeros((edge, edge), np.uint8)).save(tmp_path / name)
    fails(2, "evaluate", tmp_path / "a.png", tmp_path / "b.png", says="31")
