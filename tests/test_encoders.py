"""Networks of other libraries (extra `encoders`): through `Model`, and by name, trained here, from a file."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import zarr
from torch import nn

import raysegment as rs
from raysegment.errors import InputError, UsageError
from raysegment.model.architectures import build, build_pretrained
from raysegment.model.encoder import EncoderName, Licence, licence
from raysegment.model.file import load_model, save_model
from raysegment.model.fold import fold_batchnorm
from raysegment.model.shipping import ship, unship
from raysegment.model.spec import ModelSpec, default_classes
from raysegment.training.encoders import check_encoder
from raysegment.training.learner import Learner
from raysegment.training.parallel import SampleDropout, SummedBatchNorm2d, Workers, share_batches
from raysegment.training.probe import probe
from raysegment.training.settings import Resolved, Settings

#: What torchvision's compiled part would have declared; held here because they live as long as this does.
_DECLARED: list[torch.library.Library] = []


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def monai_unet(norm: str = "instance") -> nn.Module:
    networks = pytest.importorskip("monai.networks.nets", reason="MONAI is not installed")
    return networks.BasicUNet(2, in_channels=3, out_channels=3, features=(4, 4, 8, 8, 16, 4), norm=norm)


def needs(library: str) -> None:
    """Skip where one of smp, timm, monai cannot be had."""
    if library == "monai":
        pytest.importorskip("monai.networks.nets", reason="MONAI is not installed")
        return
    _declare_torchvision()
    pytest.importorskip(
        "segmentation_models_pytorch",
        reason="segmentation-models-pytorch is not installed",
        exc_type=ImportError,
    )


def _declare_torchvision() -> None:
    if torch.version.cuda is None and not _DECLARED:
        # PyPI's torchvision is built for CUDA: beside a CPU torch its operators are missing and its import fails
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DECLARED.append(library)


def smp_unet() -> nn.Module:
    _declare_torchvision()
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


def _arch(name: str, outputs: int = 3) -> dict[str, object]:
    return {"name": name, "in_channels": 3, "out_channels": outputs}


@pytest.mark.parametrize(
    "name", ["monai:resnet18", "monai:efficientnet-b0", "smp:unet:resnet18", "timm:efficientnet_b0"]
)
def test_an_encoder_by_name_learns_and_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    needs(EncoderName.parse(name).library)
    settings = Resolved(
        steps_per_epoch=3, tile=64, warmup=0, precision="fp32", batch_size=2, epochs=1, architecture=name, lr=1e-3,
        loss="ce",
    )  # fmt: skip
    learner = Learner(settings, _arch(name), [0.6, 0.3, 0.1], None, Workers(), torch.device("cpu"))
    assert any(isinstance(m, SummedBatchNorm2d) for m in learner.module.modules())
    images, targets = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.uint8)
    with torch.no_grad():
        first = learner.module.eval()(images).softmax(dim=1).mean(dim=(0, 2, 3))
    assert float(first.argmax()) == 0
    losses = [float(learner.learn(images, targets, step, [2 * step, 2 * step + 1])) for step in range(3)]
    assert losses[-1] < losses[0]
    spec = ModelSpec(
        classes=default_classes(3), channels=3, scale=1 / 255, tile=64, multiple=32, architecture=_arch(name)
    )
    save_model(learner.best, spec, tmp_path / "m.safetensors")
    back = load_model(tmp_path / "m.safetensors")
    expected = rs.Model(learner.best, spec).predict(pixels())
    np.testing.assert_allclose(back.predict(pixels()), expected, atol=1e-6)
    assert rs.Model(fold_batchnorm(back.module), spec).predict(pixels()).shape == (2, 3, 64, 64)


def test_an_encoder_by_name_is_exported(tmp_path: Path) -> None:
    needs("monai")
    name = "monai:efficientnet-b0"
    spec = ModelSpec(classes=default_classes(3), channels=3, tile=64, multiple=32, architecture=_arch(name))
    result = rs.export(rs.Model(build(_arch(name)), spec), to="pt2", out=tmp_path / "m.pt2")
    assert result.dynamic == ("batch", "height", "width")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("monai:resnet19", "monai has no encoder 'resnet19'; the nearest is 'resnet18'"),
        ("monai:fpn:resnet18", "monai has no decoder 'fpn'; the nearest is 'unet'"),
        ("smp:unett:resnet18", "smp has no decoder 'unett'; the nearest is 'unet'"),
        ("smp:unet:resnet35", "smp has no encoder 'resnet35'"),
        ("timm:efficientnetb0", "timm has no encoder 'efficientnetb0'; the nearest is 'efficientnet_b0'"),
        ("smp:unet:tu-hf-hub:someone/thing", "write smp:ENCODER or smp:DECODER:ENCODER"),
        ("timm:../weights", "write timm:ENCODER"),
    ],
)
def test_names_that_a_library_does_not_have(name: str, message: str) -> None:
    needs(name.partition(":")[0])
    with pytest.raises(InputError, match=message):
        build(_arch(name))


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(
        UsageError, match=r"monai:… needs monai, which is not installed: pip install 'raysegment\[enc"
    ):
        build(_arch("monai:resnet18"))


def test_licences_are_those_that_the_libraries_state() -> None:
    needs("smp")
    assert str(licence("timm:resnet34", pretrained=False)) == "code Apache-2.0, no weights loaded"
    assert licence("timm:resnet34.a1_in1k", pretrained=True).weights == "apache-2.0"
    assert licence("smp:unet:resnet34", pretrained=True) == Licence(
        "MIT", "not stated by segmentation_models_pytorch"
    )
    assert licence("timm:convnextv2_tiny.fcmae_ft_in1k", pretrained=True).weights == "cc-by-nc-4.0"


def test_a_licence_that_forbids_commerce_needs_a_flag() -> None:
    needs("smp")
    for settings in (
        Settings(architecture="smp:segformer:mit_b0"),
        Settings(architecture="timm:convnextv2_tiny.fcmae_ft_in1k", pretrained=True),
    ):
        with pytest.raises(
            UsageError, match=r"is not for commercial use \(code .*pass --allow-non-commercial"
        ):
            check_encoder(settings)
    check_encoder(Settings(architecture="smp:segformer:mit_b0", allow_non_commercial=True))
    check_encoder(Settings(architecture="timm:convnextv2_tiny.fcmae_ft_in1k"))


def test_pretrained_weights_that_cannot_be_had() -> None:
    needs("monai")
    with pytest.raises(
        InputError, match="monai unet with resnet18: its pretrained weights cannot be loaded: "
    ):
        build_pretrained(_arch("monai:resnet18"))
    with pytest.raises(InputError, match="architecture 'unet' has no pretrained weights"):
        build_pretrained({"name": "unet", "in_channels": 1, "out_channels": 1})


class _Mixing(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Conv2d(3, 3, 1), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x)
        if self.how == "batch":
            return x - x.mean(dim=0, keepdim=True)
        return x * torch.rand(len(x), 1, 1, 1, dtype=x.dtype) if self.how == "chance" else x


@pytest.mark.parametrize("how", ["batch", "chance", "sound"])
def test_a_network_that_mixes_samples_is_found_by_running_it(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("monai")
    monkeypatch.setattr("raysegment.model.encoder._flexible_unet", lambda *_: _Mixing(how))
    if how == "sound":
        assert probe(_arch("monai:resnet18")).weight_bytes == 20 * 12
    else:
        with pytest.raises(UsageError, match="its answer to one sample depends on the others or on chance"):
            probe(_arch("monai:resnet18"))


def test_stochastic_depth_belongs_to_the_sample() -> None:
    needs("smp")
    shared = share_batches(build(_arch("smp:unet:mit_b0")), Workers())
    drops = [m for m in shared.modules() if isinstance(m, SampleDropout) and m.axes == 0 and m.p > 0]
    assert len(drops) >= 7
    assert probe(_arch("smp:unet:mit_b0")).pixel_bytes > 100
