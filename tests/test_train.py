"""A run from data to model: exact resume, what is refused, what a run folder tells; and the same through Ray Train."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nodes
import numpy as np
import pytest
import torch
from PIL import Image
from trained import SMALL, Killed, kill_after, make, run_here, weights
from typer.testing import CliRunner

from raysegment.errors import (
    InputError,
    LockedError,
    OutputExistsError,
    UsageError,
    WorkError,
)
from raysegment.model.file import load_model, load_spec
from raysegment.training import class_index
from raysegment.training.fit import train
from raysegment.training.parallel import Stopped
from raysegment.training.prepare import prepare, request
from raysegment.training.report import write_report
from raysegment.training.result import TrainResult
from raysegment.training.run import RunFolder, earlier_run
from raysegment.training.settings import Settings


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("data") / "discs")


def _losses(run: RunFolder) -> list[float]:
    return [json.loads(line)["loss"] for line in run.metrics.read_text().splitlines()]


def test_a_balanced_run_resumes_bit_for_bit_from_one_index(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, build = [0], class_index.build_index

    def counted(*args: Any) -> Any:
        built[0] += 1
        return build(*args)

    monkeypatch.setattr(class_index, "build_index", counted)
    options = {"sampling": "balanced", "augment": "strong", "epochs": 1}
    whole = run_here(data, tmp_path / "whole", **options)
    assert whole.class_index.is_file()
    with monkeypatch.context() as patched:
        kill_after(patched, 2)
        with pytest.raises(Killed):
            run_here(data, tmp_path / "broken", **options)
    resumed = run_here(data, tmp_path / "broken", **options)
    assert built == [2]  # one for each folder
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
    assert _losses(whole) == _losses(resumed)
    assert _losses(whole) != _losses(run_here(data, tmp_path / "uniform", augment="strong", epochs=1))


def test_a_run_learns_and_its_folder_tells_how(data: Path, tmp_path: Path) -> None:
    run = run_here(data, tmp_path / "run", epochs=4, steps_per_epoch=15)
    record = run.read_record()
    assert record is not None
    result = TrainResult.of_record(run.model, record, already_done=False)
    assert result.metrics.accuracy > result.metrics.constant_accuracy + 0.05
    assert result.metrics.mean_dice > 0.85
    assert list(result.to_json()) == [
        "model", "epochs", "steps", "best", "metrics", "images_per_s", "workers", "wall_s"
    ]  # fmt: skip
    assert re.search(r"accuracy 0\.\d+ \(the best constant answer: 0\.\d+\)", result.summary())
    json.dumps(result.to_json())
    assert record["data"]["val"] == ["4.png"]
    assert record["data"]["train"] == ["0.png", "1.png", "2.png", "3.png"]
    assert any(run.events.iterdir())
    assert not run.failure.exists()
    spec = load_spec(run.model)
    assert (spec.tile, spec.multiple, spec.margin, spec.activation) == (32, 4, 0, "sigmoid")
    assert [c.value for c in spec.classes] == [0, 255]
    assert spec.provenance["data"] == record["fingerprint"]
    image = np.asarray(Image.open(data / "images" / "4.png"))
    mask = np.asarray(Image.open(data / "masks" / "4.png")) == 255
    answer = load_model(run.model).predict(image[None, :, :, None])[0, 1]
    theta = spec.thresholds or (0.5, 0.5)
    assert ((answer / theta[1] > (1 - answer) / theta[0]) == mask).mean() > 0.9


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "valid", "tile": 36, "depth": 2},
        {"norm": "group", "augment": "light", "schedule": "poly", "ema": False},
        {"loss": "0.5*focal+dice", "class_weights": "balanced", "norm": "none", "augment": "none"},
        {"precision": "bf16"},
        {
            "architecture": "unet-keras",
            "dropout": 0.5,
            "base_width": 8,
            "batch_size": None,
            "steps_per_epoch": 30,
        },
        {"deep_supervision": True},
        {"deep_supervision": True, "padding": "valid", "tile": 36, "ema": False},
    ],
)
def test_every_kind_of_run_comes_to_its_end(data: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    quick = {"epochs": 1, "steps_per_epoch": 12, "dropout": 0.0, **options}
    run = run_here(data, tmp_path / "run", **quick)
    record = run.read_record()
    assert record is not None
    assert 0 < record["result"]["metrics"]["accuracy"] <= 1
    margin = load_spec(run.model).margin
    assert margin == (20 if options.get("padding") == "valid" else 0)


def test_a_constant_answer_is_a_failure_with_its_cause(tmp_path: Path) -> None:
    data = make(tmp_path / "noise", learnable=False)
    with pytest.raises(
        Stopped, match=r"answers 'class 0' everywhere \(accuracy 0\.\d+.*12 steps only: raise --epochs"
    ) as stopped:
        run_here(data, tmp_path / "run", lr=1e-6)
    assert isinstance(stopped.value.error, WorkError)
    record = RunFolder(tmp_path / "run").read_record()
    assert record is not None
    assert "result" not in record


def test_a_loss_that_is_no_number_stops_the_run(data: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped, match=r"the loss is (nan|inf) at step \d+: lower --lr \(now 1e\+30\)"):
        run_here(data, tmp_path / "run", lr=1e30, norm="none", warmup=0)


def test_a_mask_value_that_the_survey_missed_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raysegment.training.survey._some", lambda raster, every: iter(()))
    with pytest.raises(InputError, match="single class"):
        run_here(data, tmp_path / "run")


def test_out_is_protected(data: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert earlier_run(run, "a", resume=False, overwrite=False) is None
    with pytest.raises(InputError, match=r"--resume: .*run holds no run"):
        earlier_run(run, "a", resume=True, overwrite=False)
    with run.locked():
        run.write_record({"fingerprint": "a"})
        (run.root / "notes.txt").write_text("mine")
        with (
            pytest.raises(LockedError, match=f"last/lock is held by process {os.getpid()} on "),
            RunFolder(run.root).locked(),
        ):
            pass
    assert earlier_run(run, "a", resume=True, overwrite=True) is not None
    with pytest.raises(OutputExistsError, match="a run with other data or options: pass --overwrite"):
        earlier_run(run, "b", resume=False, overwrite=False)
    with pytest.raises(InputError, match=r"--resume: .*a run with other data or options"):
        earlier_run(run, "b", resume=True, overwrite=True)
    assert earlier_run(run, "b", resume=False, overwrite=True) is None
    removed: list[Any] = []
    with pytest.MonkeyPatch.context() as watched:
        watched.setattr("raysegment.training.run.remove", removed.append)
        run.clear()
    assert removed[0] == run.record  # without it half of a run passes for none
    run.clear()
    assert (run.root / "notes.txt").read_text() == "mine"
    with pytest.raises(OutputExistsError, match="holds other files"):
        earlier_run(run, "b", resume=False, overwrite=False)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputExistsError, match="is a file"):
        earlier_run(RunFolder(tmp_path / "file"), "b", resume=False, overwrite=True)


def test_what_an_earlier_run_has_other_is_named(data: Path, tmp_path: Path) -> None:
    run_here(data, tmp_path / "run", epochs=1)
    asked = Settings.of({"epochs": 5, "base_width": 4})
    with pytest.raises(
        OutputExistsError, match=r"holds a run with another --epochs \(1, asked for 5\): pass"
    ):
        earlier_run(RunFolder(tmp_path / "run"), "b", resume=False, overwrite=False, settings=asked)


def test_a_run_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    for root in (tmp_path / "deep" / "new", kept):
        with pytest.raises(InputError), RunFolder(root).locked():
            raise InputError("refused")
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    assert not list(kept.iterdir())
    (kept / "last").mkdir()
    (kept / "last" / "state.pt").write_bytes(b"x")
    with pytest.raises(InputError), RunFolder(kept).locked():
        raise InputError("refused")
    assert (kept / "last" / "state.pt").exists()


@pytest.mark.parametrize("metric", ["iou:class 1", "dice:class 0", "v_rand:class 0"])
def test_a_metric_of_one_class_is_in_every_record(data: Path, tmp_path: Path, metric: str) -> None:
    run = run_here(data, tmp_path / "run", metric=metric)
    write_report(run)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    record = run.read_record()
    assert record is not None
    assert record["result"]["best"][metric] == max(line[metric] for line in lines)
    name, _, of_class = metric.partition(":")
    scores = record["result"]["metrics"]
    told = scores["v_rand"] if name == "v_rand" else scores["classes"][of_class][name]
    assert scores[metric] == pytest.approx(told)


@pytest.mark.parametrize("left", [0, 20, 2000])
def test_a_damaged_checkpoint_is_named(data: Path, tmp_path: Path, left: int) -> None:
    run = run_here(data, tmp_path / "run", epochs=1)
    run.state.write_bytes(run.state.read_bytes()[:left])
    with pytest.raises(Stopped, match=r"last/state\.pt is damaged \(.+\): put back a copy, or begin anew"):
        run_here(data, tmp_path / "run", epochs=1)


def test_the_fingerprint_is_options_and_contents(data: Path, tmp_path: Path) -> None:
    def of(folder: Path = data, val: str | float = 0.2, **options: Any) -> str:
        return request(Settings.of(options), folder, val, None).fingerprint

    twin = make(tmp_path / "twin")
    assert of() == of() == of(twin)
    changed = np.array(Image.open(twin / "masks" / "0.png"))
    changed[0, 0] ^= 255
    Image.fromarray(changed).save(twin / "masks" / "0.png")
    assert len({of(), of(twin), of(seed=1), of(val=0.5), of(val=str(data)), of(lr=2e-3)}) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["{data}", "--val", "1.5"], "--val 1.5: give a share between 0 and 1"),
        (["{data}", "--val", "nowhere"], "nowhere does not exist"),
        (["{data}", "--tile", "250"], "--tile 250 does not fit"),
        (["{data}", "--loss", "dise"], "unknown term 'dise'; the nearest is 'dice'"),
        (["{data}", "--workers", "9", "--batch-size", "8"], "--workers 9 is more than --batch-size 8"),
        (["{data}", "--workers", "two"], "give auto, a number of 1 or more, or MIN:MAX"),
        (["{data}", "--early-stop", "0"], "--early-stop 0"),
        (["{data}", "--accumulate", "9"], "--accumulate 9 is more than --batch-size 8"),
        (["{data}", "--keep", "0"], "--keep 0"),
        (["{data}", "--clip-grad", "-1"], "--clip-grad -1.0"),
        (["{data}", "--class-weights", "1,2,3"], "has 3 numbers, the data 2 classes"),
        (["{data}", "--schedule", "cosin"], "cosin"),
        (["{data}", "--resume"], "--resume: .* holds no run"),
        (["{data}", "--classes", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    data: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    from raysegment.cli.app import app

    words = [a.format(data=data) for a in arguments]
    result = CliRunner().invoke(app, ["train", *words, "--out", str(tmp_path / "run")])
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0])
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(("val", "says"), [(2, "--val 2.0: give a share"), (None, "val None: give a share")])
def test_val_in_python_that_is_neither_a_share_nor_a_path(
    data: Path, tmp_path: Path, val: Any, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        train(data, out=tmp_path / "run", val=val)


def test_out_may_be_a_file_url(data: Path, tmp_path: Path) -> None:
    run = run_here(data, tmp_path / "a run", epochs=1, steps_per_epoch=30)
    options = {**SMALL, "epochs": 1, "steps_per_epoch": 30}
    found = train(data, out=run.root.as_uri(), workers=1, **options)
    assert found.already_done
    assert found.model == run.model


def test_config_toml_gives_the_run_again(data: Path, tmp_path: Path) -> None:
    import tomllib

    from raysegment.cli.app import app
    from raysegment.training.run import to_toml

    record = prepare(request(Settings.of(SMALL), data, 0.2, None))
    config = tmp_path / "config.toml"
    config.write_text(to_toml({"val": "0.2", **record["settings"]}))
    shown = CliRunner().invoke(
        app, ["train", str(data), "--out", "run", "--config", str(config), "--show-config", "--json"]
    )
    assert shown.exit_code == 0, shown.output
    values = {key: entry["value"] for key, entry in json.loads(shown.stdout).items()}
    for key, value in tomllib.loads(config.read_text()).items():
        assert str(values[key]) == str(value), key  # auto|N is a word


@pytest.mark.ray
@pytest.mark.slow
def test_through_ray_train_two_workers_learn_what_one_does(data: Path, tmp_path: Path) -> None:
    options = {**SMALL, "steps_per_epoch": 8, "dropout": 0.0}
    alone = run_here(data, tmp_path / "alone", **options)
    result = train(data, out=tmp_path / "run", workers=2, **options)
    assert (result.workers, result.steps, result.epochs) == (2, 24, 3)
    # float32 rounds, and Adam makes much of it where a gradient is all rounding; test_parallel.py is exact
    ours, theirs = (_losses(r) for r in (alone, RunFolder(tmp_path / "run")))
    print(ours, theirs)
    assert theirs[0] == pytest.approx(ours[0], rel=1e-4)
    assert theirs == pytest.approx(ours, rel=1e-2)
    assert not (tmp_path / "run" / "last" / "ray").exists()
    started = time.monotonic()
    again = train(data, out=tmp_path / "run", workers=1, **options)
    assert again.already_done
    assert again.to_json() == result.to_json()
    assert time.monotonic() - started < 2
    with pytest.raises(OutputExistsError):
        train(data, out=tmp_path / "run", **{**options, "seed": 5})


@pytest.mark.ray
@pytest.mark.slow
def test_what_one_worker_cannot_read_stops_all_with_its_words(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask value that the survey overlooked: one worker meets it, the other waits for that worker."""
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    survey = prepare

    def overlook(asked: Any, gpus: int) -> dict[str, Any]:
        record = survey(asked, gpus)
        mask = np.array(Image.open(folder / "masks" / "2.png"))
        mask[mask == 255] = 77
        Image.fromarray(mask).save(folder / "masks" / "2.png")
        return record

    monkeypatch.setattr("raysegment.training.fit.prepare", overlook)
    with pytest.raises(InputError, match=r"2\.png, .*value 77 belongs to no class"):
        train(folder, out=tmp_path / "run", workers=2, **{**SMALL, "batch_size": 2, "steps_per_epoch": 30})


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.chaos
def test_a_workers_death_does_not_show(data: Path, tmp_path: Path) -> None:
    """SIGKILL to one of two workers in the middle: Ray Train starts them again, from the last checkpoint."""
    options = {**SMALL, "epochs": 6, "steps_per_epoch": 20}
    whole = train(data, out=tmp_path / "whole", workers=2, **options)
    script = (
        "import sys, json\n"
        "from raysegment.training import train\n"
        f"print(json.dumps(train({str(data)!r}, out=sys.argv[1], workers=2, **{options!r}).to_json()))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= 2):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(_train_worker_of(process.pid), signal.SIGKILL)
    answer, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    assert len(list((tmp_path / "killed" / "events").iterdir())) == 2  # one file per start: it did die
    assert json.loads(answer)["metrics"] == whole.to_json()["metrics"]
    for name, value in weights(RunFolder(tmp_path / "whole")).items():
        assert torch.equal(value, weights(RunFolder(tmp_path / "killed"))[name]), name


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_a_checkpoint(data: Path, tmp_path: Path, number: int) -> None:
    run = RunFolder(tmp_path / "run")
    words = [f"--{key.replace('_', '-')}={value}" for key, value in {**SMALL, "steps_per_epoch": 400}.items()]
    command = [
        sys.executable,
        "-m",
        "raysegment",
        "train",
        str(data),
        "--out",
        str(run.root),
        "--workers",
        "2",
    ]
    process = subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not run.progress.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert told.splitlines()[-1] == "error: interrupted: run the same command again to finish the work"
    assert torch.load(run.state, weights_only=True)["standing"]["step"] > 0


def _train_worker_of(driver: int) -> int:
    """Process id of one of the Ray Train workers below a driver."""
    import psutil

    for child in psutil.Process(driver).children(recursive=True):
        if "RayTrainWorker" in " ".join(child.cmdline()):
            return child.pid
    raise AssertionError("no Ray Train worker is running")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize(
    ("workers", "count", "action", "left"), [("2", 3, "kill", 2), ("1:2", 2, "kill", 1), ("2", 3, "drain", 2)]
)
def test_a_nodes_death_does_not_show(
    data: Path, tmp_path: Path, workers: str, count: int, action: str, left: int
) -> None:
    """Of three nodes two train; when one is gone the third takes its place, or an elastic team goes on without."""
    options = {**SMALL, "epochs": 8, "steps_per_epoch": 20 if action == "kill" else 200}
    words = (data, tmp_path / "run", workers, json.dumps(options))
    disturbed, result = nodes.run("train", count, action, *words)
    assert result["ended"] - disturbed < 180  # on a machine that others use too
    assert (result["workers"], result["epochs"]) == (left, 8)
    assert result["steps"] == options["epochs"] * options["steps_per_epoch"]
    assert len(list((tmp_path / "run" / "events").iterdir())) == 2  # one file per start: it was started again
    alone = run_here(data, tmp_path / "alone", **options)
    ours, theirs = (_losses(r) for r in (alone, RunFolder(tmp_path / "run")))
    alike = 2 if action == "kill" else 1  # epochs, of 20 steps or 200: as above, not later: float32 rounds
    assert theirs[:alike] == pytest.approx(ours[:alike], rel=1e-2)
    assert result["metrics"]["mean_iou"] > 0.9


def test_usage_errors_come_before_the_data_is_looked_at(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--workers 0"):
        train(tmp_path / "nowhere", out=tmp_path / "run", workers=0)
