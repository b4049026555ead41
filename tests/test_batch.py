"""Batch jobs, night after night, in this process: what is done again, what is not, what is set aside and told."""

from __future__ import annotations

import http.server
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import tifffile
from alone import without_ray

from raysegment import console
from raysegment.errors import GoneError, InputError, LockedError, UsageError, WorkError
from raysegment.inference import many, worker
from raysegment.inference.worker import InferenceWorker
from raysegment.mask.store import finished
from raysegment.model.architectures import build
from raysegment.model.file import save_model
from raysegment.model.spec import ModelSpec, default_classes
from raysegment.nightly import report, run
from raysegment.nightly.discovery import discover
from raysegment.nightly.job import load_job
from raysegment.nightly.ledger import Ledger
from raysegment.nightly.result import BatchResult
from raysegment.storage import lease

ROOT = Path(__file__).parents[1]
ARCHITECTURE = {"name": "unet", "in_channels": 1, "out_channels": 2, "base_width": 4, "depth": 1}
SETTINGS = "precision = 'fp32'\nblock = 64\nworkers = 1\n"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)
    monkeypatch.setattr(worker, "_WAITS_S", (0.0,))
    monkeypatch.setattr("raysegment.inference.many._WAIT_S", 0.0)


def save_unet(path: Path, seed: int) -> None:
    import torch

    torch.manual_seed(seed)
    spec = ModelSpec(
        classes=default_classes(2), channels=1, tile=32, multiple=2, scale=1 / 255, architecture=ARCHITECTURE
    )
    save_model(build(ARCHITECTURE), spec, path)


def save_image(path: Path, seed: int, size: int = 96) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    tifffile.imwrite(path, pixels, tile=(64, 64), compression="deflate")


class Job:
    """A job in a folder of its own, with five images."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "job.toml"
        save_unet(folder / "model.safetensors", 0)
        for i in range(5):
            save_image(self.image(i), i)
        self.write()

    def image(self, i: int) -> Path:
        return self.folder / "scenes" / f"day{i % 2}" / f"s{i}.tif"

    def mask(self, i: int) -> Path:
        return self.folder / "masks" / f"day{i % 2}" / f"s{i}.zarr"

    def write(self, output: str = "masks/{relpath}.zarr", settings: str = SETTINGS, more: str = "") -> None:
        self.file.write_text(
            'name = "nightly"\n[input]\npaths = ["scenes/**/*.tif"]\n[model]\npath = "model.safetensors"\n'
            f'[output]\npath = "{output}"\n[infer]\n{settings}\n{more}'
        )

    def run(self, **how: Any) -> BatchResult:
        return run.batch(self.file, **how)

    def counts(self, **how: Any) -> tuple[int, int, int]:
        result = self.run(**how)
        return result.done, result.skipped, result.failed

    @property
    def ledger(self) -> dict[str, Any]:
        path = self.folder / "masks/.raysegment/nightly/ledger.json"
        return json.loads(path.read_text())["images"]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_first_night_all_second_night_none(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    first = job.run()
    assert (first.done, first.skipped, first.failed, first.images, first.exit_code) == (5, 0, 0, 5, 0)
    assert all((job.mask(i) / "zarr.json").is_file() for i in range(5))
    assert not (job.folder / "masks/.raysegment/nightly/scratch").exists()
    monkeypatch.setattr(run, "_work", None)  # nothing works tonight
    second = job.run()
    assert (second.done, second.skipped, second.images, second.exit_code) == (0, 5, 5, 0)
    assert "nothing to do" in second.summary()
    assert second.report == first.report
    assert json.loads(Path(first.report or "").read_text())["counts"]["done"] == 5
    assert set(second.to_json()) == {"done", "skipped", "failed", "images", "wall_s", "report"}


def test_a_night_without_work_loads_neither_torch_nor_ray(job: Job) -> None:
    job.run()
    code = (
        "import sys; from raysegment.nightly.run import batch; print(batch(sys.argv[1]).skipped, "
        "[m for m in ('torch', 'ray', 'zarr') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, job.file], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "5 []"


def test_one_image_replaced_is_one_image_done_again(job: Job) -> None:
    job.run()
    before = files(job.folder / "masks")
    save_image(job.image(3), 33)
    assert job.counts() == (1, 4, 0)
    after = files(job.folder / "masks")
    changed = {name for name in before.keys() & after.keys() if before[name] != after[name]}
    assert {name.split("/c/")[0] for name in changed if not name.startswith(".")} == {
        "day1/s3.zarr/0",
        "day1/s3.zarr/0/zarr.json",
        "day1/s3.zarr/zarr.json",
    }
    assert job.counts() == (0, 5, 0)


def test_a_touched_image_is_not_done_again(job: Job) -> None:
    job.run()
    os.utime(job.image(3), (1, 1))
    assert job.counts() == (0, 5, 0)


def test_another_model_or_another_setting_is_all_done_again(job: Job) -> None:
    job.run()
    before = job.mask(0).joinpath("zarr.json").read_text()
    save_unet(job.folder / "model.safetensors", 2)
    assert job.counts() == (5, 0, 0)
    assert job.mask(0).joinpath("zarr.json").read_text() != before
    job.write(settings=SETTINGS + "blend = 'linear'")
    assert job.counts() == (5, 0, 0)
    job.write(settings=SETTINGS + "blend = 'linear'\nmax_memory = '2G'\ndevice = 'cpu'")
    assert job.counts() == (0, 5, 0)


def test_a_bad_image_is_set_aside_and_the_rest_finish(job: Job) -> None:
    whole = job.image(2).read_bytes()
    job.image(2).write_bytes(whole[:6000])  # its header is fine
    job.image(4).write_bytes(b"rubbish")
    result = job.run()
    assert (result.done, result.failed, result.exit_code) == (3, 2, 3)
    assert not job.mask(2).exists()
    report = json.loads(Path(result.report or "").read_text())
    reasons = {Path(i["source"]).name: i["reason"] for i in report["images"] if i["state"] == "failed"}
    assert set(reasons) == {"s2.tif", "s4.tif"}
    assert "broken" in reasons["s2.tif"]
    opened = Path(result.report or "").with_suffix(".html")
    assert result.summary().splitlines()[-1] == f"{opened}  (what happened)"
    page = opened.read_text()
    assert "s4.tif" in page
    assert "is no image that can be read" in page
    assert page.count("data:image/png") == 3

    again = job.run()
    assert (again.done, again.skipped, again.failed, again.exit_code) == (0, 5, 0, 0)
    assert "2 set aside" in again.summary()
    assert job.counts(retry=True) == (0, 3, 2)
    job.image(2).write_bytes(whole)
    assert job.counts() == (1, 4, 0)


def test_a_link_to_nothing_is_set_aside_and_what_just_went_away_is_not_there(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.image(5).symlink_to(job.folder / "moved.tif")
    result = job.run()
    assert (result.done, result.failed, result.exit_code) == (5, 1, 3)
    assert job.counts() == (0, 6, 0)
    job.image(7).symlink_to(job.image(7))  # and one to itself
    assert job.counts() == (0, 6, 1)

    listed = [str(job.image(i)) for i in range(5)]
    job.image(2).unlink()
    monkeypatch.setattr("raysegment.nightly.discovery.glob.glob", lambda *_, **__: listed)
    assert {Path(f.source).name for f in discover(load_job(job.file))} == {
        "s0.tif",
        "s1.tif",
        "s3.tif",
        "s4.tif",
    }


def test_a_single_image_that_cannot_be_measured_is_set_aside(job: Job) -> None:
    for i in range(1, 5):
        job.image(i).unlink()
    job.image(0).write_bytes(job.image(0).read_bytes()[:6000])
    result = job.run()
    assert (result.done, result.failed, result.exit_code) == (0, 1, 3)


def test_what_fails_for_a_moment_is_tried_again(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = iter([True, True])
    opened = InferenceWorker._open

    def flaky(self: InferenceWorker, image: int) -> Any:
        if next(fails, False):
            raise WorkError("the storage does not answer")
        return opened(self, image)

    monkeypatch.setattr(InferenceWorker, "_open", flaky)
    assert job.counts() == (5, 0, 0)


def test_a_report_that_cannot_be_is_refused_before_any_work(job: Job) -> None:
    (job.folder / "reports").write_text("a file")
    job.write(more='[report]\npath = "reports/{date}"')
    with pytest.raises(UsageError, match=r"\[report\] path: cannot make .*: Not a directory"):
        job.run()
    assert not list((job.folder / "masks").glob("day*"))


@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
def test_a_disk_too_full_for_the_report_is_told_all_the_same(
    job: Job, hook: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "/full")

    monkeypatch.setattr("raysegment.nightly.report.put", full)
    if fails:
        monkeypatch.setattr(InferenceWorker, "_save", lambda *_: full())
    job.write(more=f'[report]\nwebhook = "{hook[0]}"')
    with pytest.raises(WorkError, match="/full: No space left on device"):
        job.run()
    kept = run.status(job.file).runs[-1]
    assert kept["exit_code"] == hook[1][0]["exit_code"] == 1
    assert kept["counts"]["done"] == (0 if fails else 5)
    assert "No space left" in kept["ended_by"]


def test_a_night_holds_few_files_open(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_OPEN_IMAGES", 1)
    for i in range(5, 30):
        save_image(job.image(i), i, size=200)
    most, segment = 0, InferenceWorker._segment

    def counted(self: InferenceWorker, image: int, row: int, col: int) -> Any:
        nonlocal most
        answer = segment(self, image, row, col)
        most = max(
            most, len([fd for fd in Path("/proc/self/fd").iterdir() if str(fd.resolve()).endswith(".tif")])
        )
        return answer

    monkeypatch.setattr(InferenceWorker, "_segment", counted)
    assert job.run().done == 30
    assert most <= 2


def test_a_full_disk_is_no_images_fault(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "/full")

    monkeypatch.setattr(InferenceWorker, "_save", full)
    with pytest.raises(WorkError, match="No space left"):
        job.run()
    assert {entry["state"] for entry in job.ledger.values()} == {"claimed"}
    told = run.status(job.file).runs[-1]
    assert (told["exit_code"], told["counts"]["left"]) == (1, 5)
    assert "No space left" in told["ended_by"]


def test_a_storage_that_refuses_is_said_as_it_is(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> Any:
        raise GoneError("cannot read s3://b/x: it does not exist")

    monkeypatch.setattr(many, "finish_image", gone)
    with pytest.raises(GoneError, match=r"^cannot read s3://b/x: it does not exist$"):
        job.run()
    assert run.status(job.file).runs[-1]["ended_by"] == "cannot read s3://b/x: it does not exist"


def test_a_region_that_cannot_be_read_is_told(job: Job) -> None:
    job.image(2).write_bytes(job.image(2).read_bytes()[:6000])
    job.write(settings=SETTINGS + "on_error = 'skip'")
    result = job.run()
    assert (result.done, result.failed, result.exit_code) == (5, 0, 3)
    report = json.loads(Path(result.report or "").read_text())
    assert report["counts"]["failed_regions"] > 0
    assert "Regions that could not be read" in Path(result.report or "").with_suffix(".html").read_text()


def interrupt_after(blocks: int, patch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Ctrl-C when so many blocks are segmented; the blocks that were, as (image's key, row, col)."""
    seen: list[tuple[str, int, int]] = []
    segment = InferenceWorker._segment

    def counted(self: InferenceWorker, image: int, row: int, col: int) -> Any:
        if len(seen) == blocks:
            raise KeyboardInterrupt
        seen.append((self.plan.images[image].key, row, col))
        return segment(self, image, row, col)

    patch.setattr(InferenceWorker, "_segment", counted)
    return seen


def test_an_interrupted_night_goes_on_in_the_middle_of_an_image(job: Job, tmp_path: Path) -> None:
    other = Job(tmp_path / "other") if (tmp_path / "other").mkdir() is None else None
    assert other is not None
    other.run()
    with pytest.MonkeyPatch.context() as patch:
        first = interrupt_after(7, patch)
        with pytest.raises(KeyboardInterrupt):
            job.run()
    assert run.status(job.file).runs[-1]["exit_code"] == 130
    save_image(job.folder / "scenes/day0/new.tif", 77)  # one comes, one goes, one changes meanwhile
    job.image(4).unlink()
    save_image(job.image(3), 33)
    with pytest.MonkeyPatch.context() as patch:
        second = interrupt_after(1000, patch)
        result = job.run()
    assert (result.done, result.failed, result.images) == (4, 0, 5)
    assert not set(first) & set(second)
    assert len(first) == 7
    for i in (0, 1, 2):
        assert files(job.mask(i)) == files(other.mask(i))
    save_image(other.image(3), 33)
    other.run()
    assert files(job.mask(3)) == files(other.mask(3))
    assert not (job.folder / "masks/.raysegment/nightly/scratch").exists()


def test_an_image_that_is_gone_for_a_night_leaves_nothing_half_made(job: Job) -> None:
    save_image(job.image(0), 0, size=200)  # of nine blocks
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(7, patch)
        with pytest.raises(KeyboardInterrupt):
            job.run()
    assert job.mask(0).exists()
    assert finished(job.mask(0)) is None
    away = job.image(0).rename(job.folder / "away.tif")
    assert job.counts() == (4, 0, 0)
    assert not job.mask(0).exists()
    away.rename(job.image(0))
    assert job.counts() == (1, 4, 0)


@pytest.mark.parametrize("plan_is", ["dropped", "of another version"])
def test_half_a_mask_is_ours_without_its_plan(job: Job, plan_is: str) -> None:
    for i in range(1, 5):
        job.image(i).unlink()
    save_image(job.image(0), 0, size=200)  # of nine blocks
    job.write(settings=SETTINGS + "probabilities = true")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(7, patch)
        with pytest.raises(KeyboardInterrupt):
            job.run()
    plan_file = job.folder / "masks/.raysegment/nightly/scratch/plan.json"
    if plan_is == "dropped":  # by a night of other settings that came no further
        job.write(settings=SETTINGS + "probabilities = true\nblend = 'linear'")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("raysegment.inference.joining.measured_plan", _fails)
            assert job.counts() == (0, 0, 1)
        assert not plan_file.exists()
    else:
        plan_file.write_text(json.dumps({**json.loads(plan_file.read_text()), "version": 99}))
    assert job.mask(0).exists()
    assert finished(job.mask(0)) is None
    assert job.counts(retry=True) == (1, 0, 0)
    assert finished(job.mask(0)) is not None


def _fails(*_: Any) -> Any:
    raise WorkError("the network answers NaN")


def test_a_plan_holds_no_more_than_what_is_to_be_done(job: Job) -> None:
    job.write(more='[schedule]\ndeadline = "0.01s"')
    assert job.counts() == (0, 0, 0)
    for i in range(4):
        job.image(i).unlink()
    for i in (5, 6):
        save_image(job.image(i), i)
    assert job.counts() == (0, 0, 0)
    made = json.loads((job.folder / "masks/.raysegment/nightly/scratch/plan.json").read_text())
    assert {Path(image["source"]).stem for image in made["images"]} == {"s4", "s5", "s6"}
    job.write()
    assert job.counts() == (3, 0, 0)


def test_an_image_that_changes_and_changes_back_is_made_of_what_it_is(job: Job, tmp_path: Path) -> None:
    for i in range(2, 5):
        job.image(i).unlink()
    for i in range(2):  # of nine blocks each
        save_image(job.image(i), i, size=200)
    save_image(tmp_path / "other.tif", 99, size=200)
    first, other = job.image(0).read_bytes(), (tmp_path / "other.tif").read_bytes()
    for content, blocks in ((first, 6), (other, 9 + 6), (first, 6)):
        job.image(0).write_bytes(content)
        with pytest.MonkeyPatch.context() as patch:
            interrupt_after(blocks, patch)
            with pytest.raises(KeyboardInterrupt):
                job.run()
        assert any((job.mask(0) / "0/c").rglob("*"))
    job.run()
    got = files(job.mask(0))
    job.write(output="again/{stem}.zarr")
    job.run()
    assert files(job.folder / "again/s0.zarr") == got


def test_masks_that_the_ledger_lost_are_found_again(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.run()
    (job.folder / "masks/.raysegment/nightly/ledger.json").unlink()
    seen = interrupt_after(0, monkeypatch)
    assert job.counts() == (5, 0, 0)
    assert not seen
    assert job.counts() == (0, 5, 0)


def test_past_the_deadline_no_block_is_taken_in_hand(job: Job) -> None:
    job.write(more='[schedule]\ndeadline = "0.01s"')
    result = job.run()
    assert (result.done, result.failed, result.images, result.exit_code) == (0, 0, 5, 3)
    assert "5 left at the deadline" in result.summary()
    job.write()
    assert job.counts() == (5, 0, 0)


def test_a_deadline_is_as_long_as_it_says_when_the_clocks_change(job: Job) -> None:
    job.write(more='[schedule]\ndeadline = "6h"')
    began = datetime(2026, 10, 25, 1, tzinfo=ZoneInfo("Europe/Berlin"))
    one = run.Run(load_job(job.file), "model", began, 0.0)
    assert one.until == began.timestamp() + 6 * 3600


def test_date_and_output_are_frozen_when_first_claimed(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.write(output="masks/{date}/{stem}.zarr")
    now = datetime(2026, 3, 1, 23, 30, tzinfo=UTC)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return now.astimezone(tz)

    monkeypatch.setattr(run, "datetime", Clock)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(7, patch)
        with pytest.raises(KeyboardInterrupt):
            job.run()
    now += timedelta(days=1)
    save_image(job.image(7), 7)
    assert job.run().failed == 0
    assert len(list((job.folder / "masks/2026-03-01").iterdir())) == 5
    assert [p.name for p in (job.folder / "masks/2026-03-02").iterdir()] == ["s7.zarr"]


def test_two_images_and_one_mask_is_refused_before_any_work(job: Job) -> None:
    job.write(output="masks/{parent}.zarr")
    with pytest.raises(UsageError, match=r"would both become .*day0\.zarr: tell them apart"):
        job.run()
    assert not (job.folder / "masks").exists()


def test_an_empty_folder_is_said_and_a_missing_one_refused(job: Job) -> None:
    for i in range(5):
        job.image(i).unlink()
    result = job.run()
    assert (result.images, result.exit_code) == (0, 0)
    assert "no image matches scenes/**/*.tif" in result.summary()
    (job.folder / "scenes").rename(job.folder / "elsewhere")
    with pytest.raises(InputError, match=r"scenes does not exist"):
        job.run()


def test_a_model_that_vanished_is_one_line(job: Job) -> None:
    (job.folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no model at .*model\.safetensors"):
        job.run()
    assert not (job.folder / "masks").exists()


def test_a_model_that_may_not_be_read_is_one_line(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match=r"model\.safetensors may not be read: mend its rights"):
        job.run()
    assert not (job.folder / "masks").exists()


def test_something_else_at_an_output_is_left_alone(job: Job) -> None:
    job.mask(1).mkdir(parents=True)
    (job.mask(1) / "precious").write_text("mine")
    assert job.counts() == (4, 0, 1)
    assert (job.mask(1) / "precious").read_text() == "mine"


def test_an_unfinished_night_makes_nothing_else_at_an_output_ours(job: Job) -> None:
    job.write(more='[schedule]\ndeadline = "0.01s"')
    assert job.counts() == (0, 0, 0)
    job.mask(6).mkdir(parents=True)
    (job.mask(6) / "precious").write_text("mine")
    save_image(job.image(6), 6)
    job.write()
    result = job.run()
    assert result.failed == 1
    assert (job.mask(6) / "precious").read_text() == "mine"


def test_a_night_that_lost_its_lock_writes_nothing_more(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = many.finish_image

    def lost(*args: Any) -> Any:
        held[0]._lost_to = "process 1 on another"
        return finish(*args)

    held: list[lease.Lease] = []
    take = lease.Lease.take
    monkeypatch.setattr(lease.Lease, "take", lambda self: (held.append(self), take(self)))
    monkeypatch.setattr(many, "finish_image", lost)
    with pytest.raises(WorkError, match="was lost to process 1 on another"):
        job.run()
    assert {entry["state"] for entry in job.ledger.values()} == {"claimed"}
    assert not (job.folder / "masks/.raysegment/nightly/runs").exists()


def test_of_two_runs_at_once_one_leaves(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_POLL_S", 0.02)
    with (
        lease.hold(job.folder / "masks/.raysegment/nightly/lock.json", lasts_s=0.6),
        pytest.raises(LockedError, match=r"lock\.json is held by process \d+ on"),
    ):
        job.run()
    assert job.counts() == (5, 0, 0)


def test_only_what_is_new(job: Job) -> None:
    yesterday = time.time() - 86400
    for i in range(4):
        os.utime(job.image(i), (yesterday, yesterday))
    job.file.write_text(job.file.read_text().replace("[model]", 'newer_than = "1h"\n[model]'))
    assert job.counts() == (1, 0, 0)


def test_a_new_image_takes_nobodys_mask(job: Job) -> None:
    for i in range(1, 5):
        job.image(i).unlink()
    job.write(output="masks/{stem}.zarr")
    job.run()
    mask = job.folder / "masks/s0.zarr"
    before, content, lastweek = files(mask), job.image(0).read_bytes(), time.time() - 7 * 86400
    os.utime(job.image(0), (lastweek, lastweek))
    new = job.folder / "scenes/new/s0.tif"
    save_image(new, 9)
    text = job.file.read_text()
    taken = rf"{mask} is the mask of {job.image(0)}, .*, and would become that of {new}: tell them apart"
    job.file.write_text(text.replace("[model]", 'newer_than = "48h"\n[model]'))
    with pytest.raises(UsageError, match=taken):
        job.run()
    job.image(0).unlink()
    job.file.write_text(text)
    with pytest.raises(UsageError, match=taken):
        job.run()
    assert files(mask) == before

    new.write_bytes(content)  # the old one was only moved
    assert job.counts() == (1, 0, 0)
    assert files(mask) == before
    assert list(job.ledger) == [str(new)]
    save_image(new, 10)  # it is its own now
    assert job.counts() == (1, 0, 0)
    assert files(mask) != before

    new.unlink()
    save_image(job.image(0), 11)
    with pytest.raises(UsageError, match="or move that mask away"):
        job.run()
    mask.rename(job.folder / "kept.zarr")
    assert job.counts() == (1, 0, 0)
    assert list(job.ledger) == [str(job.image(0))]


def test_a_name_that_is_no_unicode_is_a_name(job: Job) -> None:
    odd = job.image(5).with_name("g\udcfcn.tif")  # "grün" as Latin-1 writes it
    save_image(odd, 5, size=200)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(14, patch)  # it comes fourth
        with pytest.raises(KeyboardInterrupt):
            job.run()
    assert job.counts() == (3, 3, 0)
    assert job.counts() == (0, 6, 0)
    assert job.ledger[str(odd)]["state"] == "done"
    report = json.loads(Path(job.run().report or "").read_text())
    assert str(odd) in [image["source"] for image in report["images"]]


@pytest.mark.parametrize("name", ["run [1]", "{date} {a}", "what*"])
def test_the_folder_of_a_job_is_no_pattern(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    job = Job(tmp_path / name)
    assert job.counts() == (5, 0, 0)
    assert job.counts() == (0, 5, 0)
    assert {
        one.output for one in Ledger.read(str(job.folder / "masks/.raysegment/nightly")).images.values()
    } == {str(job.mask(i)) for i in range(5)}
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_and_a_file_are_patterns_too(job: Job) -> None:
    for stray in ("notes.txt", "._s0.tif"):
        (job.folder / "scenes/day0" / stray).write_text("no image")
    text = job.file.read_text()
    job.file.write_text(text.replace("scenes/**/*.tif", "scenes/day0"))
    assert [Path(f.source).name for f in discover(load_job(job.file))] == ["s0.tif", "s2.tif", "s4.tif"]
    job.file.write_text(text.replace('"scenes/**/*.tif"', '"scenes/day1/s1.tif", "scenes/*/s1.tif"'))
    (found,) = discover(load_job(job.file))
    assert found.names("2026-01-01") == {
        "date": "2026-01-01",
        "stem": "s1",
        "parent": "day1",
        "relpath": "s1",
    }


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A web server that keeps what it is told, and answers 500 below /broken."""
    told: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if self.path.startswith("/broken") else 204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Silent."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", told
        server.shutdown()
        thread.join()


def test_the_webhook_is_told(
    job: Job, hook: tuple[str, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    url, told = hook
    job.write(more=f'[report]\npath = "reports/{{date}}"\nwebhook = "{url}/secret-token"')
    result = job.run()
    assert told[0]["counts"]["done"] == 5
    assert told[0]["report"] == result.report
    assert "images" not in told[0]
    assert str(job.folder / "reports") in (result.report or "")
    job.write(settings=SETTINGS + "blend = 'none'", more=f'[report]\nwebhook = "{url}/broken/secret-token"')
    console.configure("human")
    try:
        assert job.run().exit_code == 0
    finally:
        console.configure("silent")
    said = capsys.readouterr().err
    assert "webhook at 127.0.0.1 was not told: it answers 500" in said
    everything = said + "".join(
        p.read_text() for p in job.folder.rglob("*") if p.suffix in (".json", ".html") and p.is_file()
    )
    assert "secret-token" not in everything


def test_pictures_come_after_all_that_programs_read(
    job: Job, hook: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(2, 5):
        job.image(i).unlink()
    levels = [np.zeros((size, size), np.uint8) for size in (96, 48)]
    with tifffile.TiffWriter(job.image(1)) as tiff:
        tiff.write(levels[0], tile=(32, 32), subifds=1)
        tiff.write(levels[1], tile=(32, 32), subfiletype=1)
    drawn: list[str] = []
    draw = report.preview

    def told(image: str, *args: Any, **how: Any) -> Any:
        drawn.append(Path(image).name)
        assert json.loads((job.folder / "reports/report.json").read_text())["counts"]["done"] == 2
        assert len(run.status(job.file).runs) == (3 if hook[1] else 1)
        if hook[1]:  # the third night
            raise KeyboardInterrupt
        return draw(image, *args, **how)

    monkeypatch.setattr(report, "preview", told)
    monkeypatch.setattr(report, "_EDGE_PX", 16)
    monkeypatch.setattr(report, "MOST_READ_PX", 48 * 48)  # of its overview
    about = '[report]\npath = "reports"\n'
    job.write(more=about)
    job.run()
    assert drawn == ["s1.tif"]
    page = (job.folder / "reports/report.html").read_text()
    assert page.count("data:image/png") == 1

    job.write(settings=SETTINGS + "blend = 'linear'", more=f'{about}webhook = "{hook[0]}"')
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(5, patch)  # in the middle of the second
        with pytest.raises(KeyboardInterrupt):
            job.run()
    assert drawn == ["s1.tif"]
    assert "Interrupted" in (job.folder / "reports/report.html").read_text()
    job.write(settings=SETTINGS + "blend = 'none'", more=f'{about}webhook = "{hook[0]}"')
    with pytest.raises(KeyboardInterrupt):
        job.run()
    assert drawn == ["s1.tif"] * 2
    assert [one["ended_by"] for one in hook[1]] == ["interrupted", "done"]


def test_past_the_deadline_nothing_is_drawn(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(1, 5):
        job.image(i).unlink()
    moments = iter([math.inf])  # for the work
    monkeypatch.setattr(run.Run, "until", property(lambda _: next(moments, 1.0)))
    monkeypatch.setattr(report, "preview", None)
    monkeypatch.setattr(report, "pixels_read", None)
    assert job.counts() == (1, 0, 0)


def test_the_last_nights_are_a_table(job: Job) -> None:
    assert run.status(job.file).summary() == "nightly: no run yet"
    job.image(4).write_bytes(b"rubbish")
    job.run()
    head, row = run.status(job.file).summary().splitlines()
    assert head.split()[:4] == ["started", "took", "done", "skipped"]
    assert row.split()[3:7] == ["4", "0", "1", "0"]
    assert row.endswith("  3  done")
    (record,) = (job.folder / "masks/.raysegment/nightly/runs").iterdir()
    record.with_name("0.json").write_text("{")
    assert run.status(job.file).summary().splitlines() == [head, row]


def test_a_folder_of_slides_is_all_of_its_slides(tmp_path: Path) -> None:
    job = Job(tmp_path)
    slides = {f"s{suffix}" for suffix in (".svs", ".ndpi", ".scn", ".bif", ".qptiff", ".ome.tif", ".BIF")}
    for name in ("notes.txt", ".hidden.svs", *slides):
        save_image(tmp_path / "slides" / name, 0)
    job.file.write_text(job.file.read_text().replace("scenes/**/*.tif", "slides"))
    assert {Path(f.source).name for f in discover(load_job(job.file))} == slides
