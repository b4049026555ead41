"""The pod that creates a RayJob and waits for it, against an API server that answers as Kubernetes does."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raysegment.scheduling.rayjob import Api, RefusedError, run

MANIFEST = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"generateName": "nightly-", "namespace": "ml", "labels": {"raysegment/job": "nightly"}},
    "spec": {},
}
PATH = "/apis/ray.io/v1/namespaces/ml/rayjobs"


class Server(http.server.ThreadingHTTPServer):
    """Keeps RayJobs; each `get` of one takes the next status of `story`, an integer is an HTTP error."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.jobs: list[dict[str, Any]] = []
        self.story: list[dict[str, Any] | int] = []
        self.tokens: list[str | None] = []


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        """Quietly."""

    def do_GET(self) -> None:
        self.server.tokens.append(self.headers["Authorization"])
        path, _, query = self.path.partition("?")
        if path == PATH:
            assert query == "labelSelector=raysegment%2Fjob%3Dnightly"
            self._answer({"items": self.server.jobs})
            return
        now = self.server.story.pop(0) if len(self.server.story) > 1 else self.server.story[0]
        if isinstance(now, int):
            self.send_error(now, "not now")
        else:
            self._answer({"metadata": {"name": path.rpartition("/")[2]}, "status": now})

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        job["metadata"]["name"] = job["metadata"]["generateName"] + "x7k2q"
        self.server.jobs.append(job)
        self._answer(job)

    def _answer(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def api(server: Server, folder: Path) -> Api:
    (folder / "token").write_text("t0ken\n")
    return Api(f"http://127.0.0.1:{server.server_port}", "ml", account=folder, poll_s=0.01)


def ended(job_status: str, message: str = "") -> dict[str, Any]:
    whole = "Complete" if job_status == "SUCCEEDED" else "Failed"
    return {"jobDeploymentStatus": whole, "jobStatus": job_status, "message": message}


def test_it_waits_to_the_end_and_the_job_belongs_to_its_owner(server: Server, tmp_path: Path) -> None:
    server.story = [
        {},
        {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"},
        503,
        429,
        ended("SUCCEEDED"),
    ]
    assert run(api(server, tmp_path), MANIFEST, ("nightly-29", "uid-1")) == 0
    assert len(server.story) == 1, "it ended too early"
    (job,) = server.jobs
    assert job["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": "nightly-29", "uid": "uid-1"}
    ]
    assert set(server.tokens) == {"Bearer t0ken"}


def test_a_job_that_still_runs_is_waited_for_and_none_is_made(server: Server, tmp_path: Path) -> None:
    old, living = (
        {**MANIFEST, "metadata": {"name": name}, "status": status}
        for name, status in (
            ("nightly-old", ended("FAILED")),
            ("nightly-living", {"jobDeploymentStatus": "Running"}),
        )
    )
    server.jobs, server.story = [old, living], [ended("SUCCEEDED")]
    assert run(api(server, tmp_path), MANIFEST, ("nightly-29", "uid-1")) == 0
    assert len(server.jobs) == 2


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (ended("FAILED", "Job entrypoint command failed with exit code 3, last available logs: …"), 3),
        (ended("FAILED", "Job entrypoint command failed with exit code 130"), 130),
        (ended("FAILED", "no node for the head"), 1),
        (ended("STOPPED"), 1),
        ({"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed"}, 1),
    ],
)
def test_its_exit_code_is_that_of_the_run(
    server: Server, tmp_path: Path, status: dict[str, Any], code: int
) -> None:
    server.story = [status]
    assert run(api(server, tmp_path), MANIFEST, ("nightly-29", "uid-1")) == code


@pytest.mark.parametrize("code", [403, 404])
def test_what_will_never_be_answered_ends_it(server: Server, tmp_path: Path, code: int) -> None:
    server.story = [code]
    with pytest.raises(RefusedError, match=f"HTTP {code}"):
        run(api(server, tmp_path), MANIFEST, ("nightly-29", "uid-1"))
