"""Options of a run: what is refused, what "auto" comes to, how the learning rate goes."""

from __future__ import annotations

from typing import Any

import pytest

from raysegment.errors import UsageError
from raysegment.training.settings import Settings, check_tile, resolve


def _resolve(**options: Any) -> Any:
    pixels, edge, bf16 = (
        options.pop(k, d) for k, d in (("pixels", 5_000_000), ("longest_edge", 512), ("bf16", False))
    )
    return resolve(Settings.of(options), pixels=pixels, longest_edge=edge, fast_bf16=bf16)


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
        check_tile(Settings(tile=250))
    with pytest.raises(UsageError, match=r"--tile 380 .*padding valid: give 372 or 388"):
        check_tile(Settings(tile=380, padding="valid"))
    check_tile(Settings(tile=388, padding="valid"))
    with pytest.raises(UsageError, match=r"--tile 3 .* give 16"):
        check_tile(Settings(tile=3))


@pytest.mark.parametrize(
    ("options", "tile", "edge"),
    [
        ({}, 256, 256),
        ({"padding": "valid"}, 260, 448),
        ({"longest_edge": 100}, 112, 112),
        ({"longest_edge": 100, "depth": 2}, 100, 100),
        ({"tile": 512}, 512, 512),
    ],
)
def test_tile_by_network_and_data(options: dict[str, Any], tile: int, edge: int) -> None:
    resolved = _resolve(**options)
    assert (resolved.tile, resolved.input_edge) == (tile, edge)


def test_steps_follow_the_data_within_bounds() -> None:
    assert _resolve(pixels=1000).steps_per_epoch == 20
    assert _resolve(pixels=50_000_000).steps_per_epoch == 191
    assert _resolve(pixels=10**12).steps_per_epoch == 1000
    assert _resolve(pixels=10**12, steps_per_epoch=7).steps_per_epoch == 7
    assert _resolve(bf16=True).precision == "bf16"
    assert _resolve(bf16=True, precision="fp32").precision == "fp32"


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
