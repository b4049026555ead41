"""Options of a run: what is refused, what "auto" comes to, how the learning rate goes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from raysegment.classes import ClassMap
from raysegment.errors import UsageError
from raysegment.metrics import Scores
from raysegment.model.architectures import build
from raysegment.model.spec import default_classes
from raysegment.training.dataset import Format, common_format, find_scenes
from raysegment.training.fingerprint import Fingerprint, advice, auto_batch, fingerprint, object_width
from raysegment.training.normalisation import normalisation
from raysegment.training.probe import Probe, _forward_bytes, probe
from raysegment.training.settings import Settings, check_network, network, resolve
from raysegment.training.survey import Survey
from raysegment.training.verdict import constant_answer

_SEEN = Fingerprint(
    images=10,
    pixels=5_000_000,
    height=512,
    width=512,
    longest_edge=512,
    channels=3,
    dtype="uint8",
    object_px=20.0,
    memory=8 << 30,
)


@pytest.fixture(autouse=True)
def _no_network_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is resolved here needs a network's size alone, not the network."""
    monkeypatch.setattr("raysegment.training.probe.probe", lambda _: Probe(1 << 20, 1000.0))


def _resolve(**options: Any) -> Any:
    found = {k: options.pop(k) for k in Fingerprint.__dataclass_fields__ if k in options}
    seen = Fingerprint(**{**_SEEN.to_json(), **found})
    bf16 = options.pop("bf16", False)
    return resolve(Settings.of(options), seen, fast_bf16=bf16)


@pytest.mark.parametrize(
    ("rare", "options", "cause"),
    [
        (40, {"epochs": 2}, "60 steps only: raise --epochs"),
        (40, {"architecture": "unet-keras"}, "its head is dead: use --architecture unet"),
        (1, {}, "'cell' holds 1.00% of the pixels: use --loss ce"),
        (40, {"lr": 0.5}, r"lower --lr \(now 0.5\)"),
    ],
)
def test_the_cause_of_a_constant_answer_is_named(rare: int, options: dict[str, Any], cause: str) -> None:
    answers = np.array([[100 - rare, 0], [rare, 0]])
    error = constant_answer(Scores.of(answers, ["rest", "cell"]), _resolve(**options))
    assert re.search(rf"answers 'rest' everywhere .*: .*{cause}", str(error))
    answers[1] = [rare - 1, 1]
    assert constant_answer(Scores.of(answers, ["rest", "cell"]), _resolve(**options)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, r"--epochs 0: input should be greater than or equal to 1"),
        ({"lr": -1.0}, r"--lr -1.0: "),
        ({"schedule": "cosin"}, r"--schedule 'cosin': .*'cosine'"),
        ({"class_weights": "1,x"}, r"--class-weights '1,x': give none, balanced"),
        ({"class_weights": "0,0"}, r"--class-weights '0,0'"),
        ({"dropout": 1.0}, r"--dropout 1.0"),
    ],
)
def test_bad_values_are_named_as_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings.of(options)


def test_a_tile_that_does_not_fit_names_the_nearest_that_do() -> None:
    with pytest.raises(UsageError, match=r"--tile 250 .* give 240 or 256"):
        check_network(Settings(tile=250))
    with pytest.raises(UsageError, match=r"--tile 380 .*padding valid: give 372 or 388"):
        check_network(Settings(tile=380, padding="valid"))
    check_network(Settings(tile=388, padding="valid"))
    with pytest.raises(UsageError, match=r"--tile 3 .* give 16"):
        check_network(Settings(tile=3, depth=4))
    with pytest.raises(UsageError, match=r"--tile 100 does not fit monai:resnet18 .*give 96 or 128"):
        check_network(Settings(tile=100, architecture="monai:resnet18"))


@pytest.mark.parametrize(
    ("options", "tile", "edge"),
    [
        ({}, 256, 256),
        ({"padding": "valid"}, 260, 448),
        ({"longest_edge": 100}, 112, 112),
        ({"longest_edge": 100, "depth": 2}, 100, 100),
        ({"tile": 512}, 512, 512),
        ({"longest_edge": 250}, 256, 256),
        ({"longest_edge": 100, "architecture": "monai:resnet18"}, 128, 128),
    ],
)
def test_tile_by_network_and_data(options: dict[str, Any], tile: int, edge: int) -> None:
    resolved = _resolve(**options)
    assert (resolved.tile, resolved.input_edge) == (tile, edge)


def test_steps_follow_the_data_within_bounds() -> None:
    assert _resolve(pixels=1000).steps_per_epoch == 30
    assert _resolve(pixels=50_000_000).steps_per_epoch == 96
    assert _resolve(pixels=10**12).steps_per_epoch == 1000
    assert _resolve(pixels=10**12, steps_per_epoch=7).steps_per_epoch == 7
    assert _resolve(bf16=True).precision == "bf16"
    assert _resolve(bf16=True, precision="fp32").precision == "fp32"


def test_the_loss_follows_the_score_that_is_wanted() -> None:
    """Focal, with membranes weighing thrice as much as cells, whichever of the two classes they are."""
    losses = [resolve(Settings(), _SEEN, fast_bf16=False, membrane=m).loss for m in (None, 0, 1)]
    assert losses == ["ce+dice", "focal(alpha=0.25,gamma=2)", "focal(alpha=0.75,gamma=2)"]
    assert resolve(Settings(loss="lovasz"), _SEEN, fast_bf16=False, membrane=0).loss == "lovasz"


@pytest.mark.parametrize("schedule", ["constant", "cosine", "poly"])
def test_learning_rate_rises_then_follows_its_schedule(schedule: str) -> None:
    s = _resolve(schedule=schedule, epochs=10, steps_per_epoch=20, lr=0.01)
    rates = [s.learning_rate(i) for i in range(s.total_steps)]
    assert s.warmup == 10
    assert rates[:10] == sorted(rates[:10])
    assert 0 < rates[0] < rates[9] < 0.01
    assert rates[10] == pytest.approx(0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert min(rates) > 0
    assert (rates[-1] == 0.01) == (schedule == "constant")
    assert (rates[-1] < 0.0002) == (schedule != "constant")


@pytest.mark.parametrize(("tile", "depth"), [(512, 4), (64, 4), (48, 3), (32, 3), (16, 2), (4, 1)])
def test_depth_by_the_window(tile: int, depth: int) -> None:
    assert _resolve(tile=tile).depth == depth
    assert _resolve(tile=tile, depth=1).depth == 1


def test_every_network_has_its_own_defaults() -> None:
    assert network(_resolve(), 3, 2) == {
        "name": "unet", "in_channels": 3, "out_channels": 2, "base_width": 16, "depth": 4, "norm": "batch",
        "padding": "same", "dropout": 0.0,
    }  # fmt: skip
    assert network(_resolve(architecture="unet-keras", batch_size=2), 1, 1) == {
        "name": "unet-keras", "in_channels": 1, "out_channels": 1, "base_width": 64, "depth": 4, "dropout": 0.5,
    }  # fmt: skip
    encoder = _resolve(architecture="monai:resnet18")
    assert network(encoder) == {"name": "monai:resnet18", "in_channels": 1, "out_channels": 1}
    assert (encoder.depth, encoder.base_width, encoder.dropout) == (None, None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"architecture": "unett"},
            r"--architecture unett: unknown architecture 'unett'; the nearest is 'unet'",
        ),
        (
            {"architecture": "unet-keras", "padding": "valid"},
            r"--padding valid does not go with .*unet-keras",
        ),
        ({"architecture": "unet-keras", "norm": "group"}, r"--norm group does not go with"),
        ({"architecture": "smp:unet:resnet18", "base_width": 8}, r"--base-width 8 does not go with"),
        ({"architecture": "smp:unet:resnet18", "depth": 3, "tile": 64}, r"--depth 3 does not go with"),
        ({"architecture": "timm:resnet18", "deep_supervision": True}, r"--deep-supervision .* unet-keras"),
        ({"pretrained": True}, r"--pretrained does not go with --architecture unet"),
        ({"architecture": "tim:resnet18"}, r"unknown library 'tim'; the nearest is 'timm'"),
        ({"architecture": "timm:hf-hub:a/b"}, r"write timm:ENCODER or timm:DECODER:ENCODER"),
    ],
)
def test_networks_and_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_network(Settings(**options))


def test_the_batch_is_what_memory_holds() -> None:
    assert _resolve().batch_size == 8
    assert _resolve(batch_size=50).batch_size == 50
    assert _resolve(batch_size="auto", depth="auto").depth == 4
    taken = Probe(weight_bytes=10 << 20, pixel_bytes=1024.0)
    window = 1.5 * 64 * 2**20  # of 256 px
    for count in (1, 3, 7):
        memory = int(2 * (count * window + (10 << 20))) + 2
        assert auto_batch(taken, 256, memory, "fp32") == count
        assert auto_batch(taken, 256, memory, "bf16") == min(8, 2 * count)
    with pytest.raises(
        UsageError, match=r"one window of 256 px takes about 0.1 GiB .* smaller --tile or --base-width"
    ):
        auto_batch(taken, 256, 100 << 20, "fp32")


def test_a_probe_counts_what_a_step_keeps() -> None:
    """Beside a count by hand: of a convolution alone, autograd keeps its input."""
    layer = torch.nn.Conv2d(3, 5, 3)
    x = torch.zeros(2, 3, 8, 8)
    assert _forward_bytes(layer, x) == ((2, 5, 6, 6), x.numel() * 4)
    arch = {"name": "unet", "in_channels": 3, "out_channels": 2, "base_width": 8}
    narrow, wide = probe(arch), probe({**arch, "base_width": 16})
    assert narrow.weight_bytes == 20 * sum(p.numel() for p in build(arch).parameters())
    assert 1.8 < wide.pixel_bytes / narrow.pixel_bytes < 2.05


def test_chords_are_counted_by_hand() -> None:
    mask = np.zeros((6, 10), np.uint8)
    mask[1:3, 2:7] = 1  # chords: 2 of 5 px, 5 of 2 px: 20 px in 7 runs
    mask[4, 0] = 2
    assert object_width([mask], 3) == pytest.approx(20 / 7)
    mask[mask == 1] = 255
    assert object_width([mask], 3) == 1.0
    assert object_width([np.zeros((4, 4), np.uint8)], 2) is None


def test_the_fingerprint_of_a_folder(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for name, size in (("a", (40, 64)), ("b", (60, 64)), ("c", (50, 90))):
        mask = np.zeros(size, np.uint8)
        mask[10:20, 10:20] = 7
        tifffile.imwrite(
            tmp_path / "images" / f"{name}.tif", np.zeros((*size, 3), np.uint16), photometric="rgb"
        )
        tifffile.imwrite(tmp_path / "masks" / f"{name}.tif", mask)
    scenes = find_scenes(tmp_path)
    classes = ClassMap(default_classes(2), {0: 0, 7: 1}, source="test")
    seen = fingerprint(scenes, common_format(scenes), classes, 1 << 30)
    assert (seen.images, seen.height, seen.width, seen.longest_edge) == (3, 50, 64, 90)
    assert (seen.pixels, seen.channels, seen.dtype) == (40 * 64 + 60 * 64 + 50 * 90, 3, "uint16")
    assert seen.object_px == 10.0
    assert seen.memory == 1 << 30
    assert "3 images of about 50 × 64 px, 3 × uint16, objects about 10 px wide" in str(seen)


def test_wide_objects_are_advised_about_not_acted_on() -> None:
    wide = Fingerprint(**{**_SEEN.to_json(), "object_px": 200.0})
    assert advice(wide, 256) == "objects are wide for windows of 256 px: --tile 512 would show more of each"
    assert advice(wide, 512) is None
    assert advice(_SEEN, 256) is None


def test_normalisation_by_network_and_pixels() -> None:
    assert _resolve().normalisation == "zscore"
    assert _resolve(architecture="unet-keras", batch_size=1).normalisation == "unit"
    assert _resolve(architecture="unet-keras", batch_size=1, dtype="float32").normalisation == "zscore"
    assert _resolve(architecture="monai:resnet18", pretrained=True).normalisation == "imagenet"
    assert _resolve(architecture="monai:resnet18", pretrained=True, channels=4).normalisation == "zscore"
    seen = Survey(
        ClassMap(default_classes(2), {0: 0, 1: 1}, source="test"), (0.5, 0.5), (3.0,) * 3, (2.0,) * 3
    )
    fmt = Format((0, 1, 2), "uint16", None)
    assert normalisation("zscore", seen, fmt) == {"mean": (3.0,) * 3, "std": (2.0,) * 3}
    assert normalisation("unit", seen, fmt) == {"scale": 1 / 65535}
    assert normalisation("imagenet", seen, fmt)["mean"] == (0.485, 0.456, 0.406)
    with pytest.raises(
        UsageError, match="--normalisation unit needs unsigned integers, the images hold float32"
    ):
        normalisation("unit", seen, Format((0,), "float32", None))
