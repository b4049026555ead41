"""Networks of other libraries through `Model`: MONAI and segmentation-models-pytorch (extra `encoders`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import zarr
from torch import nn

import raysegment as rs
from raysegment.model.fold import fold_batchnorm
from raysegment.model.shipping import ship, unship
from raysegment.model.spec import ModelSpec, default_classes

#: What torchvision's compiled part would have declared; held here because they live as long as this does.
_DECLARED: list[torch.library.Library] = []


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def monai_unet(norm: str = "instance") -> nn.Module:
    networks = pytest.importorskip("monai.networks.nets", reason="MONAI is not installed")
    return networks.BasicUNet(2, in_channels=3, out_channels=3, features=(4, 4, 8, 8, 16, 4), norm=norm)


def smp_unet() -> nn.Module:
    if torch.version.cuda is None and not _DECLARED:
        # PyPI's torchvision is built for CUDA: beside a CPU torch its operators are missing and its import fails
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DECLARED.append(library)
    smp = pytest.importorskip(
        "segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed"
    )
    return smp.Unet("resnet18", encoder_weights=None, in_channels=3, classes=3)


def lived(module: nn.Module) -> nn.Module:
    """With the statistics of a training: those of the start are the same with and without BatchNorm."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
    return module


@pytest.fixture(params=["monai", "smp"])
def model(request: pytest.FixtureRequest) -> rs.Model:
    module, multiple = (monai_unet(), 16) if request.param == "monai" else (lived(smp_unet()), 32)
    spec = ModelSpec(
        classes=default_classes(3),
        channels=3,
        scale=1 / 255,
        mean=(0.5,),
        std=(0.25,),
        tile=64,
        multiple=multiple,
    )
    return rs.Model(module, spec)


def pixels(n: int = 2, edge: int = 64) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, edge, edge, 3), dtype=np.uint8)


def test_it_answers_as_by_itself(model: rs.Model) -> None:
    x = pixels()
    with torch.inference_mode():
        inputs = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
        expected = model.module(inputs).softmax(dim=1)
    np.testing.assert_allclose(model.predict(x), expected, atol=1e-5)


def test_it_travels(model: rs.Model) -> None:
    np.testing.assert_array_equal(unship(ship(model)).predict(pixels()), model.predict(pixels()))


def test_folding_changes_no_answer(model: rs.Model) -> None:
    folded = rs.Model(fold_batchnorm(model.module), model.spec)
    np.testing.assert_allclose(folded.predict(pixels()), model.predict(pixels()), atol=1e-5)


def test_batchnorm_of_monai_is_left_or_folded_but_never_wrong() -> None:
    module = lived(monai_unet("batch")).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(fold_batchnorm(module)(x), module(x), atol=1e-5)


@pytest.mark.parametrize(("model", "to"), [("smp", "pt2"), ("monai", "onnx")], indirect=["model"])
def test_it_is_exported(model: rs.Model, to: str, tmp_path: Path) -> None:
    if to == "onnx":
        pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    result = rs.export(model, to=to, out=tmp_path / f"out.{to}")  # type: ignore[arg-type]
    back = rs.load_model(result.output)
    np.testing.assert_allclose(back.predict(pixels(3)), model.predict(pixels(3)), atol=1e-4)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_network_of_monai_through_infer(tmp_path: Path) -> None:
    """InstanceNorm sees the tile: one tile over the whole image is the network on the image itself."""
    spec = ModelSpec(classes=default_classes(3), channels=3, scale=1 / 255, tile=64, multiple=16)
    model = rs.Model(monai_unet(), spec)
    scene = pixels(1, 150)[0]
    tifffile.imwrite(tmp_path / "scene.tif", scene, tile=(64, 64))
    result = rs.infer(
        tmp_path / "scene.tif",
        model=model,
        out=tmp_path / "mask.zarr",
        precision="fp32",
        blend="none",
        overlap=0,
    )
    assert result.exit_code == 0
    mask = np.asarray(zarr.open_group(result.output)["0"])
    expected = model.predict(scene[None, :64, :64]).argmax(axis=1)[0]
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(mask[:64, :64], expected)
