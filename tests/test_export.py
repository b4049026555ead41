"""`export`: what is written answers like the original, or nothing is written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import zarr
from torch import nn
from typer.testing import CliRunner

import raysegment as rs
from raysegment.cli.app import app
from raysegment.model.architectures import build, margin
from raysegment.model.file import load_model, save_model
from raysegment.model.spec import ModelSpec, default_classes
from tests.networks import convolutional

TILE = 32


def need(to: str) -> None:
    if to == "onnx":
        for library in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(library, reason="the extra onnx is not installed")


def unet_file(path: Path, padding: str = "same") -> Path:
    """A U-Net with loud answers: an untrained head would hide differences."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    architecture = {
        "name": "unet",
        "in_channels": 3,
        "out_channels": 4,
        "base_width": 4,
        "depth": 2,
        "padding": padding,
    }
    module = build(architecture)
    nn.init.normal_(module.head.weight)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.3)
            part.running_var.uniform_(0.3, 2)
    spec = ModelSpec(
        classes=default_classes(4),
        channels=3,
        scale=1 / 255,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.25, 0.3),
        tile=TILE,
        multiple=4,
        margin=margin(architecture),
        pixel_size=(0.5, 0.5, "m"),
        thresholds=(0.1, 0.2, 0.3, 0.4),
        licence="CC-BY-4.0",
        architecture=architecture,
        provenance={"epochs": 8},
    )
    save_model(module, spec, path)
    return path


@pytest.fixture(scope="module")
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, rs.ExportResult]:
    """The file of a U-Net, and what it was exported to: (format, padding) is the fixture's parameter."""
    to, padding = request.param
    need(to)
    folder = tmp_path_factory.mktemp("export")
    path = unet_file(folder / "model.safetensors", padding)
    return path, rs.export(path, to=to, out=folder / f"out.{to}")


@pytest.mark.parametrize(
    "exported", [("pt2", "same"), ("onnx", "same"), ("onnx", "valid")], indirect=True, ids="-".join
)
def test_a_unet_round_trips(exported: tuple[Path, rs.ExportResult]) -> None:
    path, result = exported
    to = result.format
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.safetensors", f"out.{to}", "out.toml"]
    assert 0 < result.max_difference <= 1e-5
    assert result.dynamic == ("batch", "height", "width")
    original, other = load_model(path), load_model(result.output)
    assert other.spec == original.spec.model_copy(update={"architecture": None})
    for n, height, width in ((1, 64, 64), (3, 72, 96)):
        x = np.random.default_rng(n).integers(0, 256, (n, height, width, 3), dtype=np.uint8)
        wanted = original.predict(x)
        assert float(wanted.std()) > 0.1
        np.testing.assert_allclose(other.predict(x), wanted, atol=1e-5)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("exported", [("pt2", "same"), ("onnx", "same")], indirect=True, ids="-".join)
def test_infer_takes_an_exported_network(exported: tuple[Path, rs.ExportResult], tmp_path: Path) -> None:
    """The same mask as from the original."""
    path, result = exported
    pixels = np.random.default_rng(0).integers(0, 256, (150, 170, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "scene.tif", pixels, tile=(64, 64))
    masks = []
    for name, model in (("a", path), ("b", result.output)):
        done = rs.infer(
            tmp_path / "scene.tif", model=model, out=tmp_path / f"{name}.zarr", precision="fp32", workers=2
        )
        assert done.exit_code == 0
        masks.append(np.asarray(zarr.open_group(done.output)["0"]))
    assert len(np.unique(masks[0])) > 1
    assert (masks[0] != masks[1]).mean() < 1e-3


def test_the_command(tmp_path: Path) -> None:
    path, out = unet_file(tmp_path / "model.safetensors"), tmp_path / "out.pt2"
    words = ["export", str(path), "--to", "pt2", "--out", str(out), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout.splitlines()[-1])
    assert set(facts) == {"model", "format", "output", "sidecar", "max_difference", "dynamic"}
    assert (facts["format"], facts["output"], facts["sidecar"]) == (
        "pt2",
        str(out),
        str(tmp_path / "out.toml"),
    )
    before = out.read_bytes()
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 2
    assert "--overwrite" in json.loads(again.stdout.splitlines()[-1])["error"]
    assert out.read_bytes() == before
    assert CliRunner().invoke(app, [*words, "--overwrite"]).exit_code == 0


def test_both_formats_share_a_sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnx")
    path = unet_file(tmp_path / "model.safetensors")
    rs.export(path, to="onnx", out=tmp_path / "model.onnx")
    said = (tmp_path / "model.toml").read_bytes()
    result = rs.export(path, to="pt2", out=tmp_path / "model.pt2")
    assert result.sidecar == str(tmp_path / "model.toml")
    assert (tmp_path / "model.toml").read_bytes() == said
    assert load_model(tmp_path / "model.pt2").spec == load_model(tmp_path / "model.onnx").spec
    (tmp_path / "model.pt2").unlink()
    (tmp_path / "model.toml").write_bytes(said + b"# mine\n")
    monkeypatch.setattr("raysegment.model.export.load_model", lambda _: pytest.fail("work was begun"))
    with pytest.raises(rs.OutputExistsError, match=r"model\.toml exists"):
        rs.export(path, to="pt2", out=tmp_path / "model.pt2")
    assert (tmp_path / "model.toml").read_bytes() == said + b"# mine\n"
    assert not (tmp_path / "model.pt2").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--to", "pt2", "--out", "out.onnx"], "*.pt2"),
        (["--to", "pt2", "--out", "no/where.pt2"], "does not exist"),
        (["--to", "tflite", "--out", "out.tflite"], "tflite"),
    ],
)
def test_wrong_usage(words: list[str], says: str, tmp_path: Path) -> None:
    path = unet_file(tmp_path / "model.safetensors")
    words = [str(tmp_path / w) if "." in w else w for w in words]
    done = CliRunner().invoke(app, ["export", str(path), *words, "--json"])
    assert done.exit_code == 2
    assert says in done.output
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_no_right_to_write_is_known_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = unet_file(tmp_path / "model.safetensors")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(rs.UsageError, match="no right to write into"):
        rs.export(path, to="pt2", out=tmp_path / "out.pt2")


class Counting(nn.Module):
    """Answers something else each time: what is exported is not what was."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1.0
        return torch.cat([x, x * self.calls], dim=1)


def test_another_answer_leaves_nothing_behind(tmp_path: Path) -> None:
    model = rs.Model(Counting(), ModelSpec(classes=default_classes(2), channels=1, tile=TILE))
    with pytest.raises(rs.WorkError, match="differ from the original's") as caught:
        rs.export(model, to="pt2", out=tmp_path / "out.pt2")
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


class OneSize(nn.Module):
    """Weights per pixel: no other size than its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, TILE, TILE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def test_a_network_of_one_size_is_frozen_to_it_and_says_so(tmp_path: Path) -> None:
    model = rs.Model(OneSize(), ModelSpec(classes=default_classes(2), channels=1, tile=TILE))
    result = rs.export(model, to="pt2", out=tmp_path / "out.pt2")
    assert result.dynamic == ("batch",)
    assert "tiles of 32 pixels only" in result.summary()
    x = np.random.default_rng(0).integers(0, 9, (3, TILE, TILE, 1), dtype=np.uint8)
    np.testing.assert_allclose(load_model(tmp_path / "out.pt2").predict(x), model.predict(x), atol=1e-6)


def test_a_pt2_becomes_an_onnx_and_an_onnx_nothing(tmp_path: Path) -> None:
    need("onnx")
    rs.export(convolutional(tile=TILE), to="pt2", out=tmp_path / "a.pt2")
    rs.export(tmp_path / "a.pt2", to="onnx", out=tmp_path / "b.onnx")
    x = np.random.default_rng(0).integers(0, 256, (1, TILE, TILE, 1), dtype=np.uint8)
    np.testing.assert_allclose(
        load_model(tmp_path / "b.onnx").predict(x), convolutional().predict(x), atol=1e-5
    )
    with pytest.raises(rs.UsageError, match="only PyTorch networks"):
        rs.export(tmp_path / "b.onnx", to="pt2", out=tmp_path / "c.pt2")
