"""A training small enough for a test: its data, its options, and the loop without Ray."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raysegment.model.file import load_model
from raysegment.storage import Location
from raysegment.training import keeper, loop
from raysegment.training.loop import work
from raysegment.training.parallel import Workers
from raysegment.training.prepare import job_of, prepare, request
from raysegment.training.run import RunFolder, earlier_run
from raysegment.training.settings import Settings

SMALL: dict[str, Any] = {
    "epochs": 3, "steps_per_epoch": 4, "base_width": 4, "depth": 2, "tile": 32, "batch_size": 4, "lr": 1e-2,
    "dropout": 0.2,
}  # fmt: skip


def make(root: Path, count: int = 5, edge: int = 64, *, learnable: bool = True) -> Path:
    """Noisy discs, and where they are."""
    rng = np.random.default_rng(0)
    yy, xx = np.mgrid[:edge, :edge]
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        mask = np.zeros((edge, edge), bool)
        for _ in range(5):
            y, x, r = rng.integers(0, edge), rng.integers(0, edge), rng.integers(6, 14)
            mask |= (yy - y) ** 2 + (xx - x) ** 2 < r * r
        image = np.clip(80 + 100 * mask * learnable + rng.normal(0, 15, mask.shape), 0, 255)
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{i}.png")
        Image.fromarray((mask * 255).astype(np.uint8)).save(root / "masks" / f"{i}.png")
    return root


def run_here(data: Location, out: Location, *, device: str = "cpu", **options: Any) -> RunFolder:
    """All of train() but Ray: one worker, in this process."""
    run = RunFolder(out)
    asked = request(Settings.of({**SMALL, **options}), data, 0.2, None)
    with run.locked():
        record = earlier_run(run, asked.fingerprint, resume=False, overwrite=False) or prepare(asked)
        record["workers"] = 1
        run.write_record(record)
        work(job_of(record, asked, run), Workers(), torch.device(device), threads=1)
    return run


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_model(run.model).module.state_dict()


class Killed(BaseException):
    """Stands for whatever ends a process in the middle of a step."""


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Checkpoints at every step; the process dies in step `steps` + 1."""
    taken, step = [0], loop._Worker._step

    def mortal(self: Any, batch: Any) -> torch.Tensor:
        if taken[0] == steps:
            raise Killed
        taken[0] += 1
        return step(self, batch)

    monkeypatch.setattr(loop._Worker, "_step", mortal)
    checkpoint_always(monkeypatch)


def checkpoint_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(keeper, "_CHECKPOINT_SHARE", 1e9)


if (
    __name__ == "__main__"
):  # DATA OUT [BYTES]: a process of its own, to be killed, or to find its files too large
    keeper._CHECKPOINT_EVERY_S, keeper._CHECKPOINT_SHARE = 0.0, 1e9
    if len(sys.argv) > 3:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
    run_here(Path(sys.argv[1]), Path(sys.argv[2]))
