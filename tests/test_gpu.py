"""What runs on a GPU answers as what runs on a CPU: the same tests on both, so that they are known to hold on one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made import ArrayRaster, make_plan
from torch import nn
from trained import Killed, kill_after, make, run_here, weights

from raysegment.inference.record import Record
from raysegment.inference.segmenter import Segmenter
from raysegment.model.architectures import build
from raysegment.model.model import Model
from raysegment.model.spec import ModelSpec, default_classes


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (150, 170, 3), dtype=np.uint8)


def unet() -> Model:
    torch.manual_seed(0)
    kind = {"name": "unet", "in_channels": 3, "out_channels": 3, "base_width": 8, "depth": 2}
    spec = ModelSpec(classes=default_classes(3), channels=3, tile=32, multiple=4, scale=1 / 64, mean=(2.0,))
    return Model(build(kind), spec)


def records(model: Model, image: np.ndarray, **changes: Any) -> list[Record]:
    """Of every block; three are at work at once, as beside a GPU."""
    plan = make_plan(model, image, **changes)
    segmenter = Segmenter(model, plan)
    with ThreadPoolExecutor(3) as threads:
        blocks = plan.grids[0].blocks()
        return list(threads.map(lambda b: segmenter.segment(ArrayRaster(image), 0, b).record, blocks))


def disagreement(some: list[Record], others: list[Record]) -> float:
    """Share of the pixels whose class differs."""
    pairs = [(a.core["labels"], b.core["labels"]) for a, b in zip(some, others, strict=True)]
    return sum(int((a != b).sum()) for a, b in pairs) / sum(a.size for a, _ in pairs)


def test_what_is_inferred_in_full_precision_leaves_the_caller_his_own(device: str, image: np.ndarray) -> None:
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, True
    seen = []
    model = unet()
    model.module.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    records(model, image, device=device)
    assert seen
    assert not any(seen)
    assert torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("tta", ["none", "d4"])
def test_it_sums_what_a_cpu_sums(device: str, tta: str, image: np.ndarray) -> None:
    here = records(unet(), image, tta=tta)
    there = records(unet(), image, tta=tta, device=device, batch_size=4)
    assert disagreement(here, there) <= 1e-3
    for a, b in zip(here, there, strict=True):
        for name, sums in a.rims.items():
            assert np.abs(sums - b.rims[name]).max(initial=0) <= 2**30 * 1e-4


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_answers_much_the_same(device: str, precision: str, image: np.ndarray) -> None:
    if (device, precision) == ("cpu", "fp16"):
        pytest.skip("on a CPU nobody wants it")
    here = records(unet(), image)
    assert disagreement(here, records(unet(), image, device=device, precision=precision)) <= 0.05


def test_the_callers_network_stays_where_it_is(device: str, image: np.ndarray) -> None:
    torch.manual_seed(0)
    mine = Model(nn.Conv2d(3, 2, 1), ModelSpec(classes=default_classes(2), channels=3))  # nothing to fold
    records(mine, image, device=device)
    assert mine.module.weight.device.type == "cpu"


class _Hungry(nn.Module):
    """Asks for more memory than any device has from a batch of three on."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 2:
            if x.device.type == "cuda":
                torch.empty(1 << 50, dtype=torch.uint8, device=x.device)
            raise torch.OutOfMemoryError("no room")
        return x[:, :2]


def test_a_batch_that_does_not_fit_is_halved(device: str, image: np.ndarray) -> None:
    model = Model(_Hungry(), ModelSpec(classes=default_classes(2), channels=3))
    assert disagreement(records(model, image), records(model, image, device=device, batch_size=8)) == 0


def test_it_learns_and_goes_on_where_it_stood(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make(tmp_path / "data")
    whole = run_here(data, tmp_path / "whole", device=device)
    with pytest.MonkeyPatch.context() as mortal:
        kill_after(mortal, 5)
        with pytest.raises(Killed):
            run_here(data, tmp_path / "run", device=device)
    resumed = run_here(data, tmp_path / "run", device=device)
    tolerance = 0.0 if device == "cpu" else 1e-2  # cuDNN's sums have no fixed order
    for name, tensor in weights(whole).items():
        assert (tensor.double() - weights(resumed)[name].double()).abs().max() <= tolerance, name
