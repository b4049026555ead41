"""Work by several threads: in order, at once, never far ahead."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from threading import Barrier

import pytest
from test_forms import _FORMS

from raysegment.errors import InputError
from raysegment.raster import Raster
from raysegment.threads import in_order
from raysegment.training.dataset import find_scenes, identities
from raysegment.training.forms import File


def test_results_come_in_the_order_of_the_items() -> None:
    def slow_at_first(n: int) -> int:
        time.sleep(0.02 / (1 + n))
        return n * n

    assert list(in_order(slow_at_first, range(20), 4)) == [n * n for n in range(20)]
    assert list(in_order(slow_at_first, [], 4)) == []


def test_the_first_item_that_fails_is_the_one_that_is_told_of() -> None:
    def fails(n: int) -> int:
        time.sleep(0.05 if n == 1 else 0)
        if n:
            raise InputError(f"item {n}")
        return n

    with pytest.raises(InputError, match="item 1"):
        list(in_order(fails, range(6), 4))


def test_it_never_runs_far_ahead_and_stops_when_it_is_left() -> None:
    begun: list[int] = []
    with closing(in_order(begun.append, range(1000), 2)) as results:
        next(results)
        time.sleep(0.1)
        assert len(begun) <= 6
    after = len(begun)
    time.sleep(0.05)
    assert len(begun) == after


def test_the_files_of_a_training_set_are_opened_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _FORMS["csv"](tmp_path / "set", 4)
    opened, together = File.open, Barrier(3, timeout=20)

    def waits(source: File) -> Raster:
        if Path(source.path).name in (
            "i1.tif",
            "i2.tif",
            "i3.tif",
        ):  # each waits for all: one by one, for ever
            together.wait()
        return opened(source)

    monkeypatch.setattr(File, "open", waits)
    scenes = find_scenes(data)
    assert len({image for image, _ in identities(scenes)}) == 4


def test_a_file_that_many_scenes_share_is_digested_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = find_scenes(_FORMS["zarr stack"](tmp_path / "set", 6))
    kind, digested = type(scenes[0].image.open()), list[str]()
    real = kind.identity

    def counted(raster: Raster) -> str:
        digested.append(raster.path)
        time.sleep(0.05)
        return real(raster)

    monkeypatch.setattr(kind, "identity", counted)
    assert len(set(identities(scenes))) == 6
    assert len(digested) == len(set(digested)) == 2
