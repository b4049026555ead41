"""What `auto` chooses: by what is measured on the first tiles, and by nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from made import ArrayRaster, make_plan
from torch import nn

from raysegment.inference import auto
from raysegment.inference.auto import Measured, measure
from raysegment.inference.request import Request
from raysegment.model.model import Model
from raysegment.model.spec import ModelSpec, default_classes


def told_apart(by: float) -> Model:
    """Two classes of bright and dark pixels, whose logits differ by about `by`."""
    layer = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 1.0 + by]).view(2, 1, 1, 1))
        layer.bias.copy_(torch.tensor([by / 2, 0.0]))
    return Model(layer, ModelSpec(classes=default_classes(2), channels=1, scale=1 / 255))


CLEAR, UNCLEAR = told_apart(3.3), told_apart(1e-4)


def measured(
    monkeypatch: pytest.MonkeyPatch, model: Model, seconds: dict[tuple[str, int], float], **asked: Any
) -> Measured:
    """With forward passes that take so many seconds a tile, by precision and batch."""
    monkeypatch.setattr(auto, "has_fast_bf16", lambda _: True)
    monkeypatch.setattr(auto._Trial, "tile_s", lambda _, precision, batch: seconds[precision, batch])
    image = np.random.default_rng(0).integers(0, 2, (96, 96, 1), np.uint8) * 201 + 33
    plan = make_plan(model, image)
    return measure(model, ArrayRaster(image), plan, Request(**asked))


EVEN = {("fp32", 1): 1.0, ("fp32", 2): 1.0, ("bf16", 1): 0.5, ("bf16", 2): 0.5}


def test_bf16_is_taken_where_it_agrees_and_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, CLEAR, EVEN)
    assert (found.precision, found.tile_s, found.batch_size) == ("bf16", 0.5, 1)
    assert found.agreement is not None
    assert 0 < found.agreement.difference < 0.02
    assert "bf16 against fp32 on the first tiles" in str(found)


def test_bf16_that_is_hardly_faster_is_not_worth_its_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, CLEAR, {**EVEN, ("bf16", 1): 0.9})
    assert (found.precision, found.tile_s) == ("fp32", 1.0)


def test_bf16_that_answers_other_classes_is_not_taken_however_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, UNCLEAR, EVEN)
    assert found.precision == "fp32"
    assert found.agreement is not None
    assert found.agreement.disagreement > auto.TOLERATED_DISAGREEMENT


def test_what_was_asked_for_is_not_measured_against(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, CLEAR, EVEN, precision="fp32", batch_size=1)
    assert (found.precision, found.batch_size, found.agreement) == ("fp32", 1, None)


def test_a_larger_batch_must_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, CLEAR, {**EVEN, ("bf16", 2): 0.4}).batch_size == 2
    assert measured(monkeypatch, CLEAR, {**EVEN, ("bf16", 2): 0.49}).batch_size == 1
