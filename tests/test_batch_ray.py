"""Batch jobs through real Ray: killed, twice at once, and on a cluster that loses a node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nodes
import pytest
from test_batch import SETTINGS, Job, files, save_image
from web import serve

from raysegment.nightly.run import status

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[1]


def command(job: Job) -> list[str]:
    return [sys.executable, "-m", "raysegment", "batch", str(job.file), "--json"]


def started(job: Job) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(job),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def many_blocks(folder: Path) -> Job:
    """Five images of a hundred and more blocks each."""
    folder.mkdir(exist_ok=True)
    made = Job(folder)
    for i in range(5):
        save_image(made.image(i), i, size=700)
    return made


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return many_blocks(tmp_path)


def test_killed_in_the_middle_the_same_command_gives_the_same_bytes(job: Job, tmp_path: Path) -> None:
    other = many_blocks(tmp_path / "other")
    records = job.folder / "masks/.raysegment/nightly/scratch/records"
    first = started(job)
    deadline = time.monotonic() + 120
    while len(list(records.rglob("*.safetensors"))) < 30 and time.monotonic() < deadline:
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert {entry["state"] for entry in job.ledger.values()} >= {"claimed"}

    second = started(job)  # the lock is of a dead process: it goes on at once
    third = started(job)
    (out, said), (third_out, third_said) = second.communicate(timeout=300), third.communicate(timeout=300)
    if second.returncode == 1:  # the third came first
        (second, third), (out, said, third_said) = (third, second), (third_out, third_said, said)
    assert (second.returncode, third.returncode) == (0, 1), (said, third_said)
    assert "is held by process" in third_said
    assert "going on: " in said
    assert json.loads(out.splitlines()[-1])["failed"] == 0
    subprocess.run(command(other), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    for i in range(5):
        assert files(job.mask(i)) == files(other.mask(i))


def test_terminated_it_says_so_and_leaves_no_lock(job: Job) -> None:
    run = started(job)
    records = job.folder / "masks/.raysegment/nightly/scratch/records"
    deadline = time.monotonic() + 120
    while not list(records.rglob("*.safetensors")) and time.monotonic() < deadline:
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
    run.terminate()
    out, said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert "run the same command again" in json.loads(out.splitlines()[-1])["error"]
    assert not (job.folder / "masks/.raysegment/nightly/lock.json").exists()
    (told,) = status(job.file).runs
    assert (told["exit_code"], told["ended_by"]) == (130, "interrupted")


def pixels(mask: Path) -> dict[str, bytes]:
    """Its shards: without the metadata, which say by what an image is known."""
    return {name: data for name, data in files(mask).items() if not name.endswith("zarr.json")}


def test_images_at_a_web_server(job: Job) -> None:
    """Three addresses, read range by range; one that vanished is refused before any work."""
    with serve(job.folder) as web:
        addresses = [f"{web.url}/{job.image(i).relative_to(job.folder)}" for i in range(3)]
        text = job.file.read_text()
        job.file.write_text(
            text.replace('["scenes/**/*.tif"]', json.dumps(addresses)).replace("{relpath}", "{stem}")
        )
        run = started(job)
        out, said = run.communicate(timeout=200)
        assert run.returncode == 0, said
        assert json.loads(out.splitlines()[-1])["done"] == 3
        size = job.image(0).stat().st_size
        assert max(web.requests) < size
        job.image(2).unlink()
        run = started(job)
        out, said = run.communicate(timeout=60)
        assert run.returncode == 2
        assert f"cannot look at {addresses[2]}: it does not exist" in said
    job.write(output="others/{stem}.zarr")
    job.file.write_text(job.file.read_text().replace("scenes/**/*.tif", "scenes/**/s[01].tif"))
    subprocess.run(command(job), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    for i in range(2):
        there, here = (pixels(job.folder / folder / f"s{i}.zarr") for folder in ("masks", "others"))
        assert there == here


@pytest.mark.chaos
def test_a_nodes_death_does_not_show(job: Job, tmp_path: Path) -> None:
    """Of three nodes one is killed while it segments: its blocks are segmented, and its shards written, by others."""
    job.write(settings=SETTINGS.replace("workers = 1", "workers = 3"))
    records = job.folder / "masks/.raysegment/nightly/scratch/records"
    disturbed, result = nodes.run("batch", 3, "kill", job.file, records)
    assert (result["done"], result["failed"]) == (5, 0)
    report = json.loads(Path(result["report"]).read_text())
    assert sum(image["finished"] > disturbed for image in report["images"]) >= 3  # it was in the middle
    other = many_blocks(tmp_path / "other")
    subprocess.run(command(other), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    for i in range(5):
        assert files(job.mask(i)) == files(other.mask(i))
