"""MLflow, where someone asks for it: a thread of the driver reads metrics.jsonl and logs what is new.

The workers know nothing of it, so a slow or dead server costs them nothing: the first failure is said, and the
training goes on without. A resumed run goes on in the same MLflow run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from raysegment import console
from raysegment.errors import UsageError
from raysegment.storage import Url
from raysegment.storage.objects import fetched
from raysegment.training.run import SCALARS, RunFolder, write_json

_POLL_S = 2.0
#: How long the end of a run waits for the last lines and the report to arrive.
_LAST_WORD_S = 60.0
#: MLflow takes no other characters.
_NOT_IN_A_NAME = re.compile(r"[^\w .:/-]", re.ASCII)
#: A dead server is given up in seconds rather than minutes; MLflow neither reports to its makers nor prints on stdout.
_MANNERS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def tracking_uri(asked: str | None) -> str | None:
    """Where to log to: what was asked for, else MLFLOW_TRACKING_URI, else None. Raises UsageError when MLflow was
    asked for and is not installed; says so when only the environment asks."""
    uri = asked or os.environ.get("MLFLOW_TRACKING_URI") or None
    if uri is None or importlib.util.find_spec("mlflow") is not None:
        return uri
    if asked is not None:
        raise UsageError(
            f"--mlflow {_public(asked)}: MLflow is not installed: pip install 'raysegment[mlflow]'"
        )
    console.warn("MLFLOW_TRACKING_URI is set, but MLflow is not installed: pip install 'raysegment[mlflow]'")
    return None


@contextlib.contextmanager
def tracked(run: RunFolder, uri: str | None) -> Iterator[None]:
    """Log the run to MLflow for the time of the block, if there is a place to log to. Raises nothing of its own."""
    if uri is None:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_follow, args=(run, uri, over), name="mlflow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_LAST_WORD_S)
        if thread.is_alive():
            console.warn(f"MLflow at {_public(uri)} does not answer: the end of the run is not logged there")


def _follow(run: RunFolder, uri: str, over: threading.Event) -> None:
    try:
        for name, value in _MANNERS.items():
            os.environ.setdefault(name, value)
        log = _Log(run, uri)
        while not over.wait(_POLL_S):
            log.epochs()
        log.epochs()
        log.end()
    except Exception as e:  # whatever a server, a proxy or a client library does: the training must go on
        lines = str(e).replace(uri, _public(uri)).strip().splitlines() or [type(e).__name__]
        console.warn(f"cannot log to MLflow at {_public(uri)}, the training goes on without: {lines[0]}")


class _Log:
    """One MLflow run."""

    def __init__(self, run: RunFolder, uri: str) -> None:
        from mlflow.tracking import MlflowClient

        self.run, self.uri = run, uri
        self.client = MlflowClient(tracking_uri=uri)
        before = json.loads(run.tracking.read_text(encoding="utf-8")) if run.tracking.is_file() else {}
        if before.get("uri") == _public(uri):
            self.run_id, self.logged = before["run_id"], before["epochs"]
            self.client.update_run(self.run_id, status="RUNNING")
        else:
            self.run_id, self.logged = self._begin(run.read_record() or {}), 0
            self._keep()

    def _begin(self, record: Mapping[str, Any]) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "raysegment")
        experiment = self.client.get_experiment_by_name(name)
        id_ = self.client.create_experiment(name) if experiment is None else experiment.experiment_id
        tags = {"fingerprint": record["fingerprint"], "git": str(record["git"]), **record["versions"]}
        run_id = self.client.create_run(id_, run_name=self.run.root.name, tags=tags).info.run_id
        for key, value in {**record["settings"], "workers": record["workers"]}.items():
            self.client.log_param(run_id, key, value)
        return str(run_id)

    def epochs(self) -> None:
        """Those of metrics.jsonl that were not logged before."""
        if not self.run.metrics.is_file():
            return
        for line in self.run.metrics.read_text(encoding="utf-8").splitlines()[self.logged :]:
            record = json.loads(line)
            self._metrics("", record, record["step"])
            self.logged += 1
            self._keep()

    def end(self) -> None:
        """The kept model's scores, the report, and how the run ended."""
        record = self.run.read_record() or {}
        result = record.get("result")
        if result is not None:
            self._metrics(
                "best/", {"images_per_s": result["images_per_s"], **result["metrics"]}, result["steps"]
            )
        for path in (self.run.report, self.run.config):
            if path.is_file():
                here = fetched(path) if isinstance(path, Url) else path
                self.client.log_artifact(self.run_id, str(here))
        self.client.set_terminated(self.run_id, status="FAILED" if result is None else "FINISHED")

    def _metrics(self, prefix: str, record: Mapping[str, Any], step: int) -> None:
        values = {name: record[name] for name in SCALARS if name in record}
        values |= {
            f"iou/{_NOT_IN_A_NAME.sub('_', name)}": score["iou"] for name, score in record["classes"].items()
        }
        for name, value in values.items():
            self.client.log_metric(self.run_id, prefix + name, value, step=step)

    def _keep(self) -> None:
        write_json(
            self.run.tracking, {"uri": _public(self.uri), "run_id": self.run_id, "epochs": self.logged}
        )


def _public(uri: str) -> str:
    """Without the user and password that an address may hold."""
    host = urlsplit(uri).netloc
    return uri.replace(host, host.rsplit("@", 1)[-1], 1) if "@" in host else uri
