"""What a few minutes of training come to on real pictures that were held back, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

#: Values of the roads' masks are anti-aliased: which of them are road has to be said.
_ROADS = 'class = [{name = "background", range = [0, 127]}, {name = "road", range = [128, 255]}]'


def _trained(data: Path, out: Path, *options: str, val: str = "0.2") -> dict[str, Any]:
    """The scores of a run by default settings on `val`, the last share of the images or other ones: whole scenes,
    stitched, no test-time augmentation."""
    command = [
        sys.executable,
        "-m",
        "raysegment",
        "train",
        str(data),
        "--out",
        str(out),
        "--val",
        val,
        "--json",
    ]
    run = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    scores: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])["metrics"]
    return scores


@pytest.mark.slow
def test_membranes_of_isbi_2012(shared_data: Path, tmp_path: Path) -> None:
    """Six slices in a row. Labels moved by one pixel score 0.945 against themselves; the constant answer 0.79."""
    scores = _trained(shared_data / "isbi2012", tmp_path / "run", val="0.25")
    assert scores["accuracy"] >= 0.92
    assert scores["classes"]["class 0"]["dice"] >= 0.80


@pytest.mark.slow
@pytest.mark.parametrize(
    "held",
    [
        pytest.param(slice(0, 6), id="first"),
        pytest.param(
            slice(18, 24),
            id="last",
            marks=pytest.mark.xfail(reason="seen: 0.93 after 240 steps; membranes cut at a slant stay open"),
        ),
    ],
)
def test_cells_of_isbi_2012(held: slice, shared_data: Path, tmp_path: Path) -> None:
    """Six slices in a row. The last of those here are the hardest."""
    names = sorted(path.name for path in (shared_data / "isbi2012" / "images").iterdir())
    for folder in ("train/images", "train/masks", "val/images", "val/masks"):
        (tmp_path / folder).mkdir(parents=True)
    for name in names:
        part = "val" if name in names[held] else "train"
        for kind in ("images", "masks"):
            (tmp_path / part / kind / name).symlink_to(shared_data / "isbi2012" / kind / name)
    scores = _trained(tmp_path / "train", tmp_path / "run", "--metric", "v_rand", val=str(tmp_path / "val"))
    assert scores["v_rand"] >= 0.95


@pytest.mark.slow
def test_nuclei_of_dsb_2018(shared_data: Path, tmp_path: Path) -> None:
    scores = _trained(shared_data / "dsb2018", tmp_path / "run")
    assert scores["classes"]["class 1"]["dice"] >= 0.86


@pytest.mark.slow
def test_roads_from_the_air(shared_data: Path, tmp_path: Path) -> None:
    (classes := tmp_path / "classes.toml").write_text(_ROADS)
    scores = _trained(shared_data / "epfl_roads", tmp_path / "run", "--classes", str(classes))
    assert scores["classes"]["road"]["iou"] >= 0.66
