"""Which device a run is planned for, where that is found out, and that it is the workers', not the driver's."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import tifffile
import torch
import zarr
from alone import without_ray
from made import settle
from networks import convolutional
from trained import SMALL, make

from raysegment import console
from raysegment.errors import OutputExistsError, UsageError, WorkError
from raysegment.inference import job as jobs
from raysegment.inference import resolve
from raysegment.inference.auto import Measured, measure_planned
from raysegment.inference.job import Job
from raysegment.inference.joining import Joining
from raysegment.inference.plan import Plan
from raysegment.inference.request import Request
from raysegment.inference.run import infer
from raysegment.inference.scratch import Scratch
from raysegment.model.architectures import build
from raysegment.model.file import save_model
from raysegment.model.spec import ModelSpec, default_classes
from raysegment.runtime import device
from raysegment.runtime.device import Traits, worker_device
from raysegment.training import fit, prepare, team
from raysegment.training.run import RunFolder

MEASURED = Measured("bf16", 16, False, 3, 0.01, 10**6, 10**5, 4096, None)


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Say what a cluster that is connected has; the machine of the driver has what it has."""

    def has(**resources: float) -> None:
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
        monkeypatch.setattr("raysegment.runtime.connected.OURS", threading.Event())  # others may hold a Ray

    return has


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(1, 256, (300, 400), dtype=np.uint8)
    path = tmp_path / "scene.tif"
    tifffile.imwrite(path, pixels, tile=(64, 64), compression="deflate")
    return path


@pytest.mark.parametrize("driver_has_gpu", [False, True])
def test_a_cluster_s_own_resources_decide(
    connected: Any, monkeypatch: pytest.MonkeyPatch, driver_has_gpu: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: driver_has_gpu)
    connected(CPU=16, GPU=4)
    assert [worker_device(wish) for wish in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    connected(CPU=16)
    assert [worker_device(wish) for wish in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(UsageError, match=r"no node of this cluster has a GPU: .* give --workers a number"):
        worker_device("cuda")


def test_a_cluster_that_grows_is_waited_for_only_where_cuda_is_said(
    connected: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    connected(memory=8e9)
    assert worker_device("cuda", may_come=True) == "cuda"
    console.configure("human")
    assert worker_device("auto", may_come=True) == "cpu"
    console.configure("silent")
    assert "planning for cpu; --device cuda waits for one" in capsys.readouterr().err


@pytest.mark.parametrize("has_gpu", [False, True])
def test_in_a_ray_of_our_own_this_machine_decides(monkeypatch: pytest.MonkeyPatch, has_gpu: bool) -> None:
    monkeypatch.setattr(device, "is_foreign", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert worker_device("auto", may_come=True) == ("cuda" if has_gpu else "cpu")
    assert worker_device("cpu") == "cpu"
    if not has_gpu:
        with pytest.raises(UsageError, match="finds no usable GPU here"):
            worker_device("cuda", may_come=True)


def _job(scene: Path, **asked: Any) -> Job:
    out = scene.with_name("m.zarr")
    return Job.open([(scene, out)], convolutional(), Request(tile=64, overlap=16, **asked), None)


@pytest.fixture
def asked_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is measured elsewhere, by a driver that has no GPU."""
    asked: list[Any] = []

    def on_gpu(work: Any, *args: Any) -> Measured:
        asked.append((work, *args))
        return pickle.loads(pickle.dumps(MEASURED))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(resolve, "on_gpu", on_gpu)
    return asked


def test_a_plan_for_gpus_is_measured_on_one_of_them(
    scene: Path, connected: Any, asked_of_a_gpu: list[Any]
) -> None:
    job = _job(scene)
    network = job.shipped()
    connected(CPU=8, GPU=2)
    plan, measured = resolve.resolve(job, job.images, job.load())
    assert (plan.device, plan.precision, plan.batch_size) == ("cuda", "bf16", 16)
    assert measured == MEASURED
    ((work, sent, draft, request),) = asked_of_a_gpu
    assert (work, draft.device, request) == (measure_planned, "cuda", job.request)
    assert isinstance(sent, bytes)
    assert isinstance(network, bytes)
    here = draft.model_copy(update={"device": "cpu"})  # what a process makes of it that has opened nothing
    fp32 = request.model_copy(update={"precision": "fp32"})
    assert measure_planned(sent, here, fp32).planes == 3


def test_a_plan_for_cpus_asks_no_gpu(scene: Path, connected: Any, asked_of_a_gpu: list[Any]) -> None:
    def resolved(job: Job) -> Plan:
        """But for what a forward pass was measured to take, which is never quite the same."""
        plan, _ = resolve.resolve(job, job.images, job.load())
        return plan.model_copy(update={"activations": 0})

    before = resolved(_job(scene, batch_size=1))
    connected(CPU=8, GPU=2)
    assert resolved(_job(scene, device="cpu", batch_size=1)) == before
    connected(CPU=8)
    assert resolved(_job(scene, batch_size=1)) == before
    assert asked_of_a_gpu == []


def _interrupted(job: Job, scratch: Scratch) -> Plan:
    """The plan of a run that had GPUs, in the scratch."""
    plan, _ = settle(job, job.images, scratch, overwrite=False)
    plan = plan.model_copy(update={"device": "cuda"})
    scratch.save_plan(plan)
    return plan


def test_a_resumed_plan_for_gpus_that_are_gone_is_said(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch, job = Scratch(scene.with_name("m.zarr.scratch")), _job(scene)
    with scratch.lock():
        made = _interrupted(job, scratch)
        assert settle(replace(job, request=_asks_cuda(monkeypatch)), job.images, scratch, False)[0] == made
        monkeypatch.setattr(jobs, "worker_device", lambda *_, **__: "cpu")
        job = _job(scene)
        with pytest.raises(
            OutputExistsError, match=r"another device \(cuda, and there is no GPU now\): .* --over"
        ):
            settle(job, job.images, scratch, overwrite=False)
        assert settle(job, job.images, scratch, overwrite=True)[0].device == "cpu"


def _asks_cuda(monkeypatch: pytest.MonkeyPatch) -> Request:
    """In a cluster that has GPUs."""
    monkeypatch.setattr(jobs, "worker_device", lambda *_, **__: "cuda")
    return Request(tile=64, overlap=16, device="cuda")


def test_a_night_without_gpus_begins_anew_on_cpus(scene: Path) -> None:
    scratch, job = Scratch(scene.with_name("m.zarr.scratch")), _job(scene)
    with scratch.lock():
        _interrupted(job, scratch)
        settled = Joining(job, dict(enumerate(job.images)), scratch, _fail).settle()
    assert settled is not None
    assert settled[0].device == "cpu"


def _fail(*told: Any) -> None:
    raise AssertionError(told)


@pytest.mark.parametrize(
    ("gpus", "foreign", "wanted"), [(2, True, "cuda"), (0, True, "auto"), (2, False, "auto")]
)
def test_a_night_in_a_cluster_uses_the_gpus_that_its_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, foreign: bool, wanted: str
) -> None:
    """Also before the first node has come."""
    from raysegment.inference import many
    from raysegment.nightly import run as nightly

    (tmp_path / "job.toml").write_text(
        f"name = 'n'\n[input]\npaths = ['s/*.tif']\n[model]\npath = 'm.safetensors'\n"
        f"[output]\npath = 'o/{{stem}}.zarr'\n[cluster]\ngpus = {gpus}\n"
    )
    monkeypatch.setattr(nightly, "is_foreign", lambda: foreign)
    monkeypatch.setattr(jobs.Job, "of_model", lambda _, request: request)
    monkeypatch.setattr(many, "infer_many", lambda images, request, *_, **__: request)
    night: Any = SimpleNamespace(work=[])
    job = nightly.load_job(tmp_path / "job.toml")
    assert nightly._segment(nightly.Run(job, "", datetime.now(UTC), 0.0), night).device == wanted


# ── training ─────────────────────────────────────────────────────────────────────


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The record of a training that is about to start."""
    monkeypatch.setattr(fit, "launch", lambda *_: None)

    def record(**options: Any) -> dict[str, Any]:
        run = RunFolder(tmp_path / "run")
        with pytest.raises(WorkError, match="without a result"):
            fit.train(make(tmp_path / "data"), out=run.root, **{**SMALL, **options})
        found = run.read_record()
        assert found is not None
        return found

    return record


def test_without_gpus_for_the_workers_the_driver_s_decides_nothing(
    prepared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("raysegment.hardware._cpu_flags", frozenset)
    monkeypatch.setattr(team, "is_connected", lambda: False)
    record = prepared(gpus_per_worker=0, batch_size="auto")
    assert record["settings"]["precision"] == "fp32"
    assert record["hardware"]["gpus"] == []
    assert record["data"]["fingerprint"]["memory"] == device.available_memory()


def test_training_follows_from_the_gpus_of_the_cluster(
    prepared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a driver that has none."""
    monkeypatch.setattr(team, "is_connected", lambda: True)
    monkeypatch.setattr(team, "cluster_nodes", lambda: [{"memory": 8e9}, *[{"CPU": 8.0, "GPU": 1.0}] * 2])
    monkeypatch.setattr(prepare, "traits", {"cuda": Traits("A100", True, 40 << 30)}.__getitem__)
    record = prepared()
    assert record["settings"]["precision"] == "bf16"
    assert record["hardware"]["gpus"] == ["A100", "A100"]
    assert record["data"]["fingerprint"]["memory"] == 80 << 30
    assert record["workers"] == 2


# ── a real cluster ───────────────────────────────────────────────────────────────


@pytest.mark.ray
@pytest.mark.slow
def test_the_driver_on_a_head_without_a_gpu_uses_the_node_s(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute or two: its GPU is one in Ray's eyes only, so its networks answer on CPU tensors there."""
    torch.manual_seed(1)
    architecture = {"name": "unet", "in_channels": 1, "out_channels": 2, "base_width": 8, "depth": 2}
    spec = ModelSpec(classes=default_classes(2), channels=1, scale=1 / 64, mean=(2.0,), tile=64, multiple=4,
                     architecture=architecture)  # fmt: skip
    model = tmp_path / "model.safetensors"
    save_model(build(architecture), spec, model)
    out, other = tmp_path / "here.zarr", tmp_path / "there.zarr"
    with tempfile.TemporaryDirectory(
        prefix="rs", dir="/tmp"
    ) as home:  # short: a socket's path ends at 107 bytes
        (Path(home) / "ray").mkdir()
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("gpu_nodes.py"), scene, model, other],
            capture_output=True,
            text=True,
            env={**os.environ, "RAY_TMPDIR": home, "RAY_AUTH_MODE": "token", "OMP_NUM_THREADS": "1"},
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert "but torch finds none there: install a CUDA build" in said["refused"]
    assert said["traits"] == ["pretended", True, 40 << 30]
    assert said["calibration"] > 0
    # measured and self-checked by tasks, segmented by an actor, each with the node's GPU
    assert {tuple(place) for place in said["places"]} == {
        ("cuda", said["node"], of_actor, 1) for of_actor in (0, 1)
    }
    assert said["talk"].count("all GPUs of this cluster are taken: waiting for 1") == 1
    assert said["talk"].count("self-check: ") == 2
    without_ray(monkeypatch)
    how: dict[str, Any] = {"tile": 64, "overlap": 16, "block": 180, "precision": "fp32", "batch_size": 1}
    infer(scene, model=model, out=out, device="cpu", workers=1, **how)
    here, there = (zarr.open_array(path / "0", mode="r")[:] for path in (out, other))
    assert np.array_equal(here, there)
    assert 0.02 < (here == 1).mean() < 0.98
