"""What commands say to a person when they are done: numbers with their nouns."""

from __future__ import annotations

from typing import Any

import pytest

from raysegment.console import counted
from raysegment.inference.results import InferResult, InferResults
from raysegment.report.page import counted as counted_on_a_page


@pytest.mark.parametrize(
    ("n", "noun", "said"),
    [(0, "block", "0 blocks"), (1, "block", "1 block"), (2, "more pair", "2 more pairs"), (1, "class", "1 class"),
     (3, "class", "3 classes")],
)  # fmt: skip
def test_a_number_agrees_with_its_noun(n: int, noun: str, said: str) -> None:
    assert counted(n, noun) == said
    assert counted_on_a_page(n, noun) == said


def test_a_page_groups_digits() -> None:
    assert counted_on_a_page(12345, "step") == "12\N{NARROW NO-BREAK SPACE}345 steps"


def inferred(**changed: Any) -> InferResult:
    facts: dict[str, Any] = {
        "output": "m.zarr", "shape": (10, 20), "classes": ["a", "b"], "class_pixels": {"a": 50, "b": 150}, "tiles": 1,
        "tiles_skipped": 0, "blocks": 1, "blocks_resumed": 0, "failed_regions": [], "forward_pixels": 100,
        "calibration_pixels": 0, "wall_s": 1.0, "megapixels_per_s": 1.0, "peak_rss_bytes": 1,
    }  # fmt: skip
    return InferResult(**{**facts, **changed})


def test_one_tile_in_one_block() -> None:
    assert "1 tile in 1 block\n" in inferred().summary()
    assert "4 tiles in 2 blocks\n" in inferred(tiles=4, blocks=2).summary()
    several = InferResults("masks", [inferred()], 1.0, 0, 1)
    assert "masks: 1 mask in" in several.summary()
