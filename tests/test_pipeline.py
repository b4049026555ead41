"""The same promises through real Ray: workers, blocks, crashes; the mask on disk."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from alone import without_ray
from made import make_plan, settle, summed
from networks import convolutional, identity
from ome_zarr_models.v05 import Image as OmeImage

import raysegment as rs
from raysegment.errors import LockedError, OutputExistsError, UsageError, WorkError
from raysegment.inference.estimate import plan
from raysegment.inference.job import Job
from raysegment.inference.record import RecordFile
from raysegment.inference.request import Request
from raysegment.inference.run import infer
from raysegment.inference.scratch import Scratch
from raysegment.model.architectures import build, margin, multiple
from raysegment.model.file import save_model
from raysegment.model.spec import ModelSpec, default_classes

pytestmark = pytest.mark.ray

SIZE = (1500, 1700)
SETTINGS = {"tile": 128, "overlap": 32, "precision": "fp32"}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A noisy 3-band TIFF whose left edge has no data."""
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    pixels = np.random.default_rng(0).integers(1, 256, (*SIZE, 3), dtype=np.uint8)
    pixels[:, :200] = 0
    tifffile.imwrite(
        path, pixels, tile=(256, 256), compression="deflate", extratags=[(42113, "s", 0, "0", True)]
    )
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def mask(
    scene: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> tuple[Path, rs.InferResult]:
    out = tmp_path_factory.mktemp("mask") / "mask.zarr"
    return out, infer(scene, model=convolutional(channels=3), out=out, workers=1, **SETTINGS)


def test_the_mask_is_the_argmax_of_every_tile(scene: Path, mask: tuple[Path, rs.InferResult]) -> None:
    out, result = mask
    image = tifffile.imread(scene)
    model = convolutional(channels=3)
    want = summed(
        model,
        make_plan(model, image, tile=128, overlap=32, cells_per_block=9),
        image,
        ~(image == 0).all(axis=2),
    ).argmax(axis=0)
    got = zarr.open_array(out / "0", mode="r")[:]
    assert np.array_equal(got == 255, (image == 0).all(axis=2))
    assert np.array_equal(got[:, 200:], want[:, 200:])
    assert result.tiles * 128**2 == result.forward_pixels
    assert result.class_pixels == {f"class {i}": int((got == i).sum()) for i in range(3)}


def test_three_workers_write_the_same_bytes(
    scene: Path, mask: tuple[Path, rs.InferResult], tmp_path: Path, ray_cluster: None
) -> None:
    result = infer(scene, model=convolutional(channels=3), out=tmp_path / "m.zarr", workers=3, **SETTINGS)
    assert result.forward_pixels == mask[1].forward_pixels
    assert files(tmp_path / "m.zarr") == files(mask[0])
    assert not (tmp_path / "m.zarr.scratch").exists()


def test_another_block_size_gives_the_same_values(
    scene: Path, mask: tuple[Path, rs.InferResult], tmp_path: Path, ray_cluster: None
) -> None:
    result = infer(scene, model=convolutional(channels=3), out=tmp_path / "m.zarr", block=300, **SETTINGS)
    assert result.blocks > mask[1].blocks
    assert result.forward_pixels == mask[1].forward_pixels
    one, other = zarr.open_group(mask[0], mode="r"), zarr.open_group(tmp_path / "m.zarr", mode="r")
    assert dict(one.attrs) == dict(other.attrs)
    assert sorted(one.array_keys()) == sorted(other.array_keys()) == ["0", "1"]
    for level in one.array_keys():
        assert np.array_equal(one[level][:], other[level][:])


def test_a_region_is_the_mask_cropped_and_knows_its_place(
    scene: Path, mask: tuple[Path, rs.InferResult], tmp_path: Path, ray_cluster: None
) -> None:
    region = rs.Window(y=333, x=150, height=701, width=900)
    infer(scene, model=convolutional(channels=3), out=tmp_path / "m.zarr", region=region, **SETTINGS)
    got = zarr.open_array(tmp_path / "m.zarr" / "0", mode="r")[:]
    assert np.array_equal(got, zarr.open_array(mask[0] / "0", mode="r")[:][region.slices()])
    attributes = zarr.open_group(tmp_path / "m.zarr", mode="r").attrs
    assert attributes["raysegment"]["origin"] == [333, 150]


def test_the_mask_is_a_valid_ome_zarr_label(mask: tuple[Path, rs.InferResult]) -> None:
    group = zarr.open_group(mask[0], mode="r")
    OmeImage.from_zarr(group)
    label = group.attrs["ome"]["image-label"]
    assert [c["label-value"] for c in label["colors"]] == [0, 1, 2]
    assert [p["class"] for p in label["properties"]] == ["class 0", "class 1", "class 2"]
    level = zarr.open_array(mask[0] / "1", mode="r")
    assert level.shape == (750, 850)
    assert level.fill_value == 255


def test_a_finished_mask_is_already_done_and_another_is_in_the_way(
    scene: Path, mask: tuple[Path, rs.InferResult]
) -> None:
    out, first = mask
    before = files(out)
    again = infer(scene, model=convolutional(channels=3), out=out, **SETTINGS)
    assert again.already_done
    assert (again.class_pixels, again.tiles, again.shape) == (first.class_pixels, first.tiles, first.shape)
    with pytest.raises(OutputExistsError, match="another blend"):
        infer(scene, model=convolutional(channels=3), out=out, blend="linear", **SETTINGS)
    with pytest.raises(OutputExistsError, match="another model"):
        infer(scene, model=convolutional(channels=3, seed=1), out=out, **SETTINGS)
    assert files(out) == before


def test_a_folder_that_is_no_mask_is_never_deleted(scene: Path, tmp_path: Path) -> None:
    precious = tmp_path / "m.zarr" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="no mask of raysegment"):
            infer(scene, model=identity(channels=3), out=tmp_path / "m.zarr", overwrite=overwrite)
    assert precious.read_text() == "years"


def test_the_scratch_is_a_folder_of_its_own(scene: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("years")
    call = {"model": identity(channels=3), "out": tmp_path / "m.zarr"}
    with pytest.raises(UsageError, match="holds other files"):
        infer(scene, scratch=tmp_path, **call)
    with pytest.raises(UsageError, match="is a file"):
        infer(scene, scratch=precious, **call)
    scratch = Scratch(tmp_path / "s")
    with scratch.lock():
        (scratch.path / "mine.txt").write_text("kept")
        scratch.remove()
    assert [p.name for p in scratch.path.iterdir()] == ["mine.txt"]
    assert precious.read_text() == "years"


def test_the_source_is_never_in_the_way(tmp_path: Path) -> None:
    source = tmp_path / "image.zarr"
    zarr.create_array(source, data=np.zeros((50, 50), np.uint8), dimension_names=("y", "x"))
    for out in (source, source / "mask.zarr"):
        with pytest.raises(UsageError, match="in one another"):
            infer(source, model=identity(), out=out, overwrite=True)
    assert (source / "zarr.json").exists()


def test_an_overwritten_mask_is_gone_before_the_plan_is_there(
    scene: Path, mask: tuple[Path, rs.InferResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.zarr"
    shutil.copytree(mask[0], out)
    scratch = Scratch(tmp_path / "m.zarr.scratch")
    seen = []
    save = Scratch.save_plan
    monkeypatch.setattr(Scratch, "save_plan", lambda *a: (seen.append(out.exists()), save(*a))[1])
    with scratch.lock():
        job = Job.open([(scene, out)], identity(channels=3), Request(tile=64), None)
        settle(job, job.images, scratch, overwrite=True)
    assert seen == [False]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.zarr.scratch"]


def test_a_resumed_run_has_as_many_workers_as_fit(scene: Path, tmp_path: Path) -> None:
    scratch, model = Scratch(tmp_path / "m.zarr.scratch"), convolutional(channels=3)
    with scratch.lock():
        job = Job.open([(scene, tmp_path / "m.zarr")], model, Request(tile=64), None)
        new, measured = settle(job, job.images, scratch, overwrite=False)
        resumed, _ = settle(job, job.images, scratch, overwrite=False)
    assert measured is not None
    assert resumed.weights == measured.weights > 0
    assert resumed.worker_bytes(1) == new.worker_bytes(1)


def test_nothing_of_the_mask_before_stays_beside_a_new_one(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    out, beside = tmp_path / "m.zarr", tmp_path / "m.probabilities.zarr"
    infer(scene, model=identity(channels=3), out=out, tile=64, probabilities=True, precision="fp32")
    assert beside.exists()
    infer(scene, model=identity(channels=3), out=out, tile=96, precision="fp32", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.zarr"]
    beside.mkdir()  # somebody else's
    infer(scene, model=identity(channels=3), out=out, tile=64, precision="fp32", overwrite=True)
    assert beside.exists()


def test_an_unfinished_run_into_another_output_is_not_taken_over(scene: Path, tmp_path: Path) -> None:
    scratch, model = Scratch(tmp_path / "s"), identity(channels=3)
    with scratch.lock():
        one = Job.open([(scene, tmp_path / "a.zarr")], model, Request(tile=64), None)
        settle(one, one.images, scratch, overwrite=False)
        other = Job.open([(scene, tmp_path / "b.zarr")], model, Request(tile=64), None)
        with pytest.raises(OutputExistsError, match="another out"):
            settle(other, other.images, scratch, overwrite=False)


def test_a_plan_of_another_version_may_be_overwritten(scene: Path, tmp_path: Path) -> None:
    scratch, model = Scratch(tmp_path / "m.zarr.scratch"), identity(channels=3)
    with scratch.lock():
        job = Job.open([(scene, tmp_path / "m.zarr")], model, Request(tile=64), None)
        settle(job, job.images, scratch, overwrite=False)
        plan_file = scratch.path / "plan.json"
        written = json.loads(plan_file.read_text())
        plan_file.write_text(json.dumps({**written, "version": 99}))
        with pytest.raises(OutputExistsError, match="--overwrite"):
            settle(job, job.images, scratch, overwrite=False)
        assert settle(job, job.images, scratch, overwrite=True)[0].version == written["version"]


def test_a_failing_block_stops_the_job_and_loses_nothing(tmp_path: Path, ray_cluster: None) -> None:
    pixels = np.random.default_rng(0).random((900, 900), np.float32)
    pixels[800, 800] = np.inf
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(64, 64))
    call = {"model": identity(), "out": tmp_path / "m.zarr", "tile": 64, "block": 300, "precision": "fp32"}
    with pytest.raises(WorkError, match=r"inf in block 2,2"):
        infer(tmp_path / "a.tif", **call)
    assert not (tmp_path / "m.zarr" / "zarr.json").exists()
    assert list((tmp_path / "m.zarr.scratch" / "records").rglob("*.safetensors"))


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        Scratch(tmp_path / "scratch").limit_batch(3)
    assert caught.value.filename == str(tmp_path / "scratch" / "batch")
    assert not any((tmp_path / "scratch").iterdir())


def test_a_run_that_is_alive_keeps_others_out(scene: Path, tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "m.zarr.scratch")
    with scratch.lock(), pytest.raises(LockedError, match=f"process {os.getpid()}"):
        infer(scene, model=identity(channels=3), out=tmp_path / "m.zarr")


def test_the_plan_is_what_is_then_done(scene: Path, mask: tuple[Path, rs.InferResult]) -> None:
    planned = plan(scene, model=convolutional(channels=3), **SETTINGS)
    assert (planned.tiles, planned.blocks, planned.shape) == (mask[1].tiles, mask[1].blocks, SIZE)
    assert planned.forward_pixels == mask[1].forward_pixels
    assert planned.read_amplification >= 1


@pytest.mark.parametrize(
    ("network", "asked", "says"),
    [
        ({}, {}, "at once with --blend none --overlap 48"),
        ({}, {"overlap": 48}, "at once with --blend none"),
        ({}, {"overlap": 48, "blend": "none"}, "at once"),
        (
            {"depth": 3},
            {"tile": 64, "overlap": 16},
            "at once with --blend none and tiles of more than 102 px",
        ),
        ({"padding": "valid"}, {"tile": 44, "overlap": 8}, "at once"),
        ({"norm": "group"}, {}, ""),
    ],
)
def test_a_plan_says_when_tiles_do_not_show(
    scene: Path, tmp_path: Path, network: dict[str, Any], asked: dict[str, Any], says: str
) -> None:
    """Two poolings: a pixel depends on what is up to 23 px away."""
    kind = {"name": "unet", "in_channels": 3, "out_channels": 2, "base_width": 2, "depth": 2, **network}
    spec = ModelSpec(
        classes=default_classes(2),
        channels=3,
        tile=64,
        multiple=multiple(kind),
        margin=margin(kind),
        architecture=kind,
    )
    save_model(build(kind), spec, tmp_path / "model.safetensors")
    planned = plan(scene, model=tmp_path / "model.safetensors", **{**SETTINGS, **asked})
    assert planned.whole == (f"as of the network on the whole image {says}" if says else "")
    assert planned.whole in planned.summary()
    assert "whole" not in planned.to_json()


def test_planning_leaves_the_process_as_it_was(scene: Path) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        plan(scene, model=convolutional(channels=3), **SETTINGS)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_image_may_have_the_name_of_a_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    zarr.save_array(tmp_path / "mask.zarr", np.zeros((3, 70, 70), np.uint8))
    assert plan("mask.zarr", model=convolutional(channels=3), **SETTINGS).shape == (70, 70)


def test_no_space_is_known_before_any_work(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(UsageError, match="make room"):
        infer(scene, model=identity(channels=3), out=tmp_path / "m.zarr")


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained U-Net as a model file."""
    import torch

    torch.manual_seed(0)
    architecture = {"name": "unet", "in_channels": 3, "out_channels": 3, "base_width": 8, "depth": 2}
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    spec = rs.ModelSpec(
        classes=[rs.Class(name=n, colour=(0, 0, 0)) for n in ("a", "b", "c")],
        channels=3,
        scale=1 / 255,
        tile=128,
        multiple=4,
        architecture=architecture,
    )
    save_model(build(architecture), spec, path)
    return path


def command(scene: Path, model: Path, out: Path, *more: str) -> list[str]:
    options = ["--model", str(model), "--out", str(out), "--block", "200", "--workers", "2", "--json", *more]
    return [sys.executable, "-m", "raysegment", "infer", str(scene), *options]


def records(out: Path) -> list[Path]:
    return list(out.with_name(out.name + ".scratch").rglob("[0-9]*.safetensors"))


def test_killed_in_the_middle_the_same_command_gives_the_same_bytes(
    scene: Path, unet: Path, tmp_path: Path
) -> None:
    undisturbed, out = tmp_path / "a.zarr", tmp_path / "b.zarr"
    first = subprocess.run(command(scene, unet, undisturbed), check=True, capture_output=True, text=True)
    total = json.loads(first.stdout.splitlines()[-1])

    driver = subprocess.Popen(command(scene, unet, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(records(out)) < total["blocks"] // 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(3)  # its workers notice and go
    there = records(out)
    assert 0 < len(there) < total["blocks"], "killed too late or too early to prove anything"
    assert not (out / "zarr.json").exists()
    tiles_there = sum(RecordFile(path).tiles for path in there)

    second = subprocess.run(command(scene, unet, out), check=True, capture_output=True, text=True)
    rerun = json.loads(second.stdout.splitlines()[-1])
    assert rerun["blocks_resumed"] == len(there)
    assert rerun["forward_pixels"] == (total["tiles"] - tiles_there) * 128**2
    assert files(out) == files(undisturbed)
    assert not out.with_name("b.zarr.scratch").exists()


def test_a_term_signal_is_130_and_can_be_resumed(scene: Path, unet: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.zarr"
    driver = subprocess.Popen(
        command(scene, unet, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not records(out) and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.terminate()
    stdout, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert json.loads(stdout.splitlines()[-1])["exit_code"] == 130
    assert records(out)


def test_resume_obeys_the_plan_that_was_written(scene: Path, tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "m.zarr.scratch")
    model = convolutional(channels=3)
    with scratch.lock():
        job = Job.open([(scene, tmp_path / "m.zarr")], model, Request(tile=128), None)
        made, _ = settle(job, job.images, scratch, overwrite=False)
        same = Job.open([(scene, tmp_path / "m.zarr")], model, Request(tile=128), None)
        again, measured = settle(same, same.images, scratch, False)
        assert (again, measured) == (made, None)
        other = Job.open([(scene, tmp_path / "m.zarr")], model, Request(tile=256), None)
        with pytest.raises(OutputExistsError, match="another tile"):
            settle(other, other.images, scratch, overwrite=False)
        assert settle(other, other.images, scratch, overwrite=True)[0].tile == 256
