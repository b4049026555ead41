"""MLflow beside a training: what it is told, and that it cannot end one."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from raysegment import console
from raysegment.errors import UsageError
from raysegment.training import tracking
from raysegment.training.run import RunFolder
from raysegment.training.tracking import tracked, tracking_uri

_RECORD = {
    "fingerprint": "abc", "git": None, "versions": {"raysegment": "0.1.0"}, "workers": 2,
    "settings": {"epochs": 2, "loss": "ce+dice"},
}  # fmt: skip


def _line(epoch: int) -> dict[str, Any]:
    scores = {"mean_iou": 0.1 * epoch, "mean_dice": 0.2, "accuracy": 0.9, "classes": {"a<b>": {"iou": 0.5}}}
    return {"epoch": epoch, "step": 10 * epoch, "loss": 1 / epoch, "lr": 1e-3, "images_per_s": 7.0, **scores}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setattr(tracking, "_POLL_S", 0.01)
    for name in tracking._MANNERS:  # set for the process, and taken back after the test
        monkeypatch.setenv(name, tracking._MANNERS[name])
    found = RunFolder(tmp_path / "run")
    (found.root / "last").mkdir(parents=True)
    found.write_record(_RECORD)
    found.report.write_text("<p>report</p>")
    found.config.write_text("")
    return found


def _train(run: RunFolder, epochs: int, *, finish: bool) -> None:
    run.metrics.write_text("\n".join(json.dumps(_line(e + 1)) for e in range(epochs)) + "\n")
    if finish:
        result = {"images_per_s": 8.0, "steps": 20, "metrics": _line(2)}
        run.write_record({**_RECORD, "result": result})


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(console, "warn", said.append)
    return said


def _install(monkeypatch: pytest.MonkeyPatch, client: type) -> None:
    """A module in MLflow's place."""
    package, inner = ModuleType("mlflow"), ModuleType("mlflow.tracking")
    inner.MlflowClient = client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", inner)


class _Client:
    """Remembers what it is told."""

    told: list[tuple[Any, ...]]

    def __init__(self, tracking_uri: str) -> None:
        assert tracking_uri == "http://user:secret@host:5000"

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return "1"

    def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> SimpleNamespace:
        self.told.append(("run", run_name, tags["fingerprint"]))
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def __getattr__(self, name: str) -> Any:
        return lambda *a, **k: self.told.append((name, *a[1:], *k.values()))


def test_a_resumed_run_goes_on_in_the_same_one(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    told: list[tuple[Any, ...]] = []
    _install(monkeypatch, type("Client", (_Client,), {"told": told}))
    uri = "http://user:secret@host:5000"
    with contextlib.suppress(KeyboardInterrupt), tracked(run, uri):
        _train(run, 1, finish=False)
        raise KeyboardInterrupt
    assert told[-1] == ("set_terminated", "FAILED")
    with tracked(run, uri):
        _train(run, 2, finish=True)
    assert warnings == []
    assert [t for t in told if t[0] == "run"] == [("run", "run", "abc")]
    assert ("log_param", "loss", "ce+dice") in told
    assert ("log_param", "workers", 2) in told
    assert [t[2:] for t in told if t[:2] == ("log_metric", "loss")] == [(1.0, 10), (0.5, 20)]
    assert ("log_metric", "iou/a_b_", 0.5, 10) in told
    assert ("log_metric", "best/mean_iou", 0.2, 20) in told
    assert ("log_artifact", str(run.report)) in told
    assert told[-1] == ("set_terminated", "FINISHED")
    assert "secret" not in run.tracking.read_text()
    run.clear()
    assert not run.tracking.exists()


def test_a_dead_server_is_said_once_and_the_training_goes_on(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    class Dead(_Client):
        def get_experiment_by_name(self, name: str) -> None:
            raise ConnectionError("no route to http://user:secret@host:5000\nat all")

    _install(monkeypatch, Dead)
    with tracked(run, "http://user:secret@host:5000"):
        _train(run, 2, finish=True)
        time.sleep(0.1)
    assert warnings == [
        "cannot log to MLflow at http://host:5000, the training goes on without: no route to http://host:5000"
    ]


def test_a_server_that_hangs_does_not_hold_up_the_end(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    awake = threading.Event()

    class Slow(_Client):
        def get_experiment_by_name(self, name: str) -> None:
            awake.wait(60)
            raise ConnectionError("too late")

    _install(monkeypatch, Slow)
    monkeypatch.setattr(tracking, "_LAST_WORD_S", 0.1)
    with tracked(run, "http://user:secret@host:5000"):
        pass
    assert warnings == ["MLflow at http://host:5000 does not answer: the end of the run is not logged there"]
    (thread,) = (t for t in threading.enumerate() if t.name == "mlflow")
    awake.set()
    thread.join(10)
    assert not thread.is_alive()


def test_where_it_logs_to(monkeypatch: pytest.MonkeyPatch, warnings: list[str]) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert tracking_uri(None) is None
    with pytest.raises(UsageError, match=r"--mlflow http://host: MLflow is not installed: pip install 'rays"):
        tracking_uri("http://me:pass@host")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    assert tracking_uri(None) is None
    assert len(warnings) == 1
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert tracking_uri(None) == "http://there"
    assert tracking_uri("here") == "here"


def test_the_real_client_writes_a_store(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'raysegment[mlflow]'")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv(
        "MLFLOW_ALLOW_FILE_STORE", "true"
    )  # servers keep a database; a folder is enough for a test
    store = (tmp_path / "store").as_uri()
    with tracked(run, store):
        _train(run, 2, finish=True)
    assert warnings == []
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("raysegment")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params == {"epochs": "2", "loss": "ce+dice", "workers": "2"}
    assert found.data.metrics["best/mean_iou"] == pytest.approx(0.2)
    assert [m.value for m in client.get_metric_history(found.info.run_id, "mean_iou")] == pytest.approx(
        [0.1, 0.2]
    )
    assert {a.path for a in client.list_artifacts(found.info.run_id)} == {"config.toml", "report.html"}
