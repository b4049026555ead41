"""Where a run stands: killed, stopped, out of disk, it goes on with its next step; what it keeps; when it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trained
from trained import Killed, checkpoint_always, kill_after, run_here, weights

from raysegment.storage.objects import put
from raysegment.training import keeper, launch, loop
from raysegment.training.parallel import Stopped
from raysegment.training.run import RunFolder
from raysegment.training.team import Team
from raysegment.training.validate import Validator


@pytest.mark.parametrize("killed_at", [3, 4, 9])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    discs: Path, undisturbed: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    with monkeypatch.context() as patched:
        kill_after(patched, killed_at)
        with pytest.raises(Killed):
            run_here(discs, tmp_path / "broken")
    torch.rand(7)  # the generator stands elsewhere in another process
    resumed = run_here(discs, tmp_path / "broken")
    _assert_same(undisturbed, resumed)
    assert [line["step"] for line in _told(undisturbed)] == [4, 8, 12]


def _assert_same(first: RunFolder, second: RunFolder) -> None:
    """The same weights to the bit, average and best model too, and the same scores of every epoch."""
    states = [torch.load(run.state, weights_only=True)["learner"] for run in (first, second)]
    for part in ("model", "ema"):
        for name, value in states[0][part].items():
            assert torch.equal(value, states[1][part][name]), f"{part} {name}"
    for name, value in weights(first).items():
        assert torch.equal(value, weights(second)[name]), name
    assert _told(first) == _told(second)


def _told(run: RunFolder) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_s"} for line in lines]


@pytest.mark.parametrize("at", ["_end_epoch", "_finish"])
def test_an_epoch_that_was_killed_before_its_scores_is_scored(
    discs: Path, undisturbed: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        checkpoint_always(patched)
        patched.setattr(loop._Worker, at, die)
        with pytest.raises(Killed):
            run_here(discs, tmp_path / "broken")
    assert _standing(RunFolder(tmp_path / "broken"))["step"] == (4 if at == "_end_epoch" else 12)
    _assert_same(undisturbed, run_here(discs, tmp_path / "broken"))


def _standing(run: RunFolder) -> dict[str, Any]:
    return torch.load(run.state, weights_only=True)["standing"]


def _start(discs: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """The same run in a process of its own, with a checkpoint after every step."""
    command = [sys.executable, str(Path(trained.__file__)), str(discs), str(out), *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.chaos
def test_a_run_killed_at_random_moments_ends_as_an_undisturbed_one(
    discs: Path, undisturbed: RunFolder, tmp_path: Path
) -> None:
    """SIGKILL to its process, again and again, whatever it is doing."""
    seed = random.randrange(2**32)
    print("seed", seed)  # seen when this fails
    draw, run, kills = random.Random(seed), RunFolder(tmp_path / "run"), 0
    while "result" not in (run.read_record() or {}):
        process = _start(discs, run.root)
        deadline = time.monotonic() + 60
        while process.poll() is None and not run.progress.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.5))
        if kills < 4:
            process.kill()
        process.communicate(timeout=60)
        kills += 1
        run.progress.unlink(missing_ok=True)
    assert kills > 1
    _assert_same(undisturbed, run)


def test_a_full_disk_is_one_line_and_what_was_trained_is_kept(
    discs: Path, undisturbed: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patched:
        kill_after(patched, 6)
        with pytest.raises(Killed):
            run_here(discs, run.root)
    before = run.state.read_bytes()
    process = _start(discs, run.root, str(len(before) // 2))
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1
    assert told.splitlines()[-1].endswith(f"Stopped: cannot write to {run.state}: File too large")
    assert run.state.read_bytes() == before
    assert not list(run.root.rglob("*.tmp"))
    _assert_same(undisturbed, run_here(discs, run.root))


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure may otherwise leave the new name with nothing in it; how far a run is need not survive one."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(fd: int) -> None:
        done.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{fd}')).name.split('.')[1]}")
        fsync(fd)

    def renamed(temp: Path, place: Path) -> None:
        done.append(f"rename {place.stem}")
        replace(temp, place)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    writes = keeper.Keeper(RunFolder(tmp_path), leads=True)
    writes.progress({"step": 1})
    writes.checkpoint({"step": 1}, keep_as="step-1.pt", keep=2)
    assert writes.trouble is None
    assert done == ["rename progress", "fsync state", "rename state", "fsync step-1", "rename step-1"]


def test_a_run_that_is_stopped_writes_where_it_stands(
    discs: Path, undisturbed: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_PROGRESS_EVERY_S", 0.0)
    run = RunFolder(tmp_path / "run")
    step = loop._Worker._step

    def stopped_at_six(self: Any, batch: Any) -> float:
        if self.standing.step == 5:
            run.stop.touch()
        return step(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(loop._Worker, "_step", stopped_at_six)
        with pytest.raises(Stopped, match="stopped by the process that started it"):
            run_here(discs, run.root)
    assert _standing(run)["step"] == 6
    run.stop.unlink()
    _assert_same(undisturbed, run_here(discs, run.root))


@pytest.mark.parametrize("during", ["_end_epoch", "_finish"])
def test_a_run_is_stopped_while_it_validates(
    discs: Path, undisturbed: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    monkeypatch.setattr(keeper, "_PROGRESS_EVERY_S", 0.0)
    run, validates = RunFolder(tmp_path / "run"), getattr(loop._Worker, during)

    def stopped(self: Any, *epoch: int) -> None:
        run.stop.touch()
        validates(self, *epoch)

    with monkeypatch.context() as patched:
        patched.setattr(loop._Worker, during, stopped)
        with pytest.raises(Stopped, match="stopped by the process that started it"):
            run_here(discs, run.root)
    epochs = run.metrics.read_text().splitlines() if run.metrics.exists() else []
    assert len(epochs) == (0 if during == "_end_epoch" else 3)
    run.stop.unlink()
    _assert_same(undisturbed, run_here(discs, run.root))


@pytest.mark.parametrize("has_begun", [False, True])
def test_an_interrupted_driver_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_begun: bool
) -> None:
    """In a Ray of others, which goes on to wait for a node, or whose workers hear nothing."""
    never, told = threading.Event(), []
    run = RunFolder(tmp_path / "run")

    def interrupted(ended: threading.Event, job: loop.Job, *_: Any) -> None:
        told.append(job)
        if has_begun:
            put(run.progress, b"{}")
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))  # type: ignore[arg-type]
    monkeypatch.setattr(launch, "cluster", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(launch, "say_if_busy", lambda _: None)
    monkeypatch.setattr(launch._Training, "_fit", lambda *_: never.wait(60))
    monkeypatch.setattr(launch, "follow", interrupted)
    monkeypatch.setattr(launch, "_STOP_BORROWED_S", 0.05)
    monkeypatch.setattr(launch, "work", lambda *_: pytest.fail("a worker that comes late sets to work"))
    job, team = loop.Job(*[None] * 8, run=run), Team(1, 1, gpus=0, threads=1)  # type: ignore[arg-type]
    for _ in range(2):  # the second start does not wake what the first one left
        with pytest.raises(KeyboardInterrupt):
            launch.launch(job, team, lambda: None)
    never.set()
    for late in told:
        launch.ray_worker({"job": late, "team": team})
    assert told[0].run.stop != told[1].run.stop


def test_before_a_node_leaves_there_is_a_checkpoint(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_LOOK_EVERY_S", 0.0)
    seen: list[int] = []
    run = RunFolder(tmp_path / "run")

    def is_leaving() -> bool:
        if run.state.exists():
            seen.append(_standing(run)["step"])
        return True

    monkeypatch.setattr(trained, "work", functools.partial(loop.work, is_leaving=is_leaving))
    run_here(discs, run.root, epochs=1)
    assert seen == [0, 1, 2, 3]


def test_as_many_checkpoints_as_asked_are_kept_and_any_can_be_gone_on_from(
    discs: Path, undisturbed: RunFolder, tmp_path: Path
) -> None:
    assert not undisturbed.checkpoints.exists()
    run = run_here(discs, tmp_path / "run", keep=2)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-00000008.pt", "step-00000012.pt"]
    assert (run.checkpoints / "step-00000012.pt").read_bytes() == run.state.read_bytes()
    first = {name: value.clone() for name, value in weights(run).items()}
    shutil.copy(run.checkpoints / "step-00000008.pt", run.state)
    run_here(discs, run.root, keep=2)
    _assert_same(undisturbed, run)
    assert all(torch.equal(value, weights(run)[name]) for name, value in first.items())


@pytest.mark.parametrize("killed_at", [None, 14])
def test_a_run_ends_after_epochs_without_a_better_score(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int | None
) -> None:
    end, scores = loop._Worker._end_epoch, Validator.after_epoch
    values, step = {1: 0.5, 2: 0.7, 3: 0.6, 4: 0.7, 5: 0.9}, [0]

    def noted(self: Any, *arguments: Any) -> Any:
        step[0] = self.standing.step
        return end(self, *arguments)

    def told(self: Validator, module: torch.nn.Module) -> Any:
        return dataclasses.replace(scores(self, module), mean_iou=values[step[0] // 4])

    monkeypatch.setattr(loop._Worker, "_end_epoch", noted)
    monkeypatch.setattr(Validator, "after_epoch", told)
    options = {"epochs": 5, "early_stop": 2}
    if killed_at is not None:
        with monkeypatch.context() as patched:
            kill_after(patched, killed_at)
            with pytest.raises(Killed):
                run_here(discs, tmp_path / "run", **options)
    record = run_here(discs, tmp_path / "run", **options).read_record()
    assert record is not None
    assert record["result"]["best"] == {"epoch": 2, "mean_iou": 0.7}
    assert (record["result"]["epochs"], record["result"]["steps"]) == (4, 16)
    patient = run_here(discs, tmp_path / "patient", **{**options, "early_stop": 3}).read_record()
    assert patient is not None
    assert patient["result"]["best"] == {"epoch": 5, "mean_iou": 0.9}
