"""Addresses, tokens, what travels, what is refused, and a job's log: all that needs no cluster."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from raysegment.cli import remote
from raysegment.cli.app import app
from raysegment.errors import JobError, UsageError, WorkError
from raysegment.runtime import connected as connecting
from raysegment.runtime import embedded, security
from raysegment.runtime import follow as following
from raysegment.runtime import parcel as packing
from raysegment.runtime.address import Address, undisturbed, where
from raysegment.runtime.connected import fitted
from raysegment.runtime.dashboard import JobState, Unreachable
from raysegment.runtime.embedded import PRIVATE
from raysegment.runtime.follow import Log, follow
from raysegment.runtime.parcel import Parcel, forwarded, is_shared
from raysegment.runtime.security import exposure, find_token, present_token, refuse_exposure, refuse_secrets
from raysegment.runtime.submission import submit
from raysegment.runtime.survey import survey

AWAY = Address("jobs", "https://ray.example.org", host="ray.example.org", port=443)


@pytest.mark.parametrize(
    ("option", "variable", "kind", "host", "port", "said_by"),
    [
        (None, None, "local", None, 0, "--address"),
        ("local", "10.0.0.1:6379", "local", None, 0, "--address"),
        (None, "auto", "cluster", None, 0, "RAY_ADDRESS"),
        ("10.0.0.2:6379", "10.0.0.1:6379", "cluster", "10.0.0.2", 6379, "--address"),
        (None, "[::1]:6379", "cluster", "::1", 6379, "RAY_ADDRESS"),
        ("http://head:8265/", "auto", "jobs", "head", 8265, "--address"),
        ("https://ray.example.org/team", None, "jobs", "ray.example.org", 443, "--address"),
        (None, "http://head:8265", "jobs", "head", 8265, "RAY_ADDRESS"),
    ],
)
def test_where(option: Any, variable: Any, kind: str, host: Any, port: int, said_by: str) -> None:
    found = where(option, {} if variable is None else {"RAY_ADDRESS": variable})
    assert (found.kind, found.host, found.port) == (kind, host, port)
    assert kind == "local" or found.said_by == said_by


@pytest.mark.parametrize(
    "text", ["head", "head:", "head:99999", "ray://head:10001", "ftp://x:1", "http://", "a b:1"]
)
def test_no_address(text: str) -> None:
    with pytest.raises(UsageError, match=r"http://HOST:8265"):
        where(text, {})


def test_a_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(UsageError) as refused:
        where("http://me:hunter2@head:8265", {})
    assert "hunter2" not in str(refused.value)


def test_ray_s_own_variables_do_not_interfere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "a")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "b")
    with undisturbed():
        assert not {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"} & set(os.environ)
    assert (os.environ["RAY_ADDRESS"], os.environ["RAY_API_SERVER_ADDRESS"]) == ("a", "b")


def test_the_token_and_its_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("words\n")
    path.chmod(0o644)
    environment = {"RAY_AUTH_TOKEN_PATH": str(path)}
    assert find_token(environment) == "words"
    assert path.stat().st_mode & 0o777 == 0o600
    assert find_token({**environment, "RAY_AUTH_TOKEN": "other"}) == "other"
    assert find_token({**environment, "RAY_AUTH_MODE": "disabled"}) is None
    assert find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}) is None


@pytest.mark.parametrize("home", ["fine", "file", "nobody's"])
def test_an_embedded_ray_without_a_home_has_a_token_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    (tmp_path / "fine").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    # so that what is set below is undone in the end
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    if home == "nobody's":
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(os.path, "expanduser", str)
    else:
        monkeypatch.setenv("HOME", str(tmp_path / home))
    security.ensure_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == (0 if home == "fine" else 64)
    assert (find_token() is None) == (home == "fine")


@pytest.fixture
def dashboard() -> Iterator[tuple[str, dict[str, Any]]]:
    """Something that answers like a dashboard: its address, and what to answer with (path → status, body)."""
    answers: dict[str, Any] = {"/api/version": (200, {"ray_version": "2.0.0"})}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.get(self.path, (404, {}))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", answers
    finally:
        server.shutdown()
        server.server_close()


def test_a_cluster_without_a_token_is_refused(dashboard: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    url, answers = dashboard
    image = tmp_path / "a.png"
    command = ["infer", str(image), "--model", "m.onnx", "--out", str(tmp_path / "m.zarr"), "--address", url]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 2
    assert "anyone who reaches it can run code there" in json.loads(done.stdout)["error"]
    assert "--allow-insecure" in done.stderr
    seen = survey(url)
    assert (seen.needs_token, seen.ray_version) == (False, "2.0.0")
    assert len([w for w in seen.warnings if "asks for no token" in w or "runs Ray 2.0.0" in w]) == 2
    answers["/api/version"] = (404, {})
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert "not as a Ray dashboard does" in done.stderr


def test_who_is_refused(dashboard: tuple[str, dict[str, Any]]) -> None:
    url, answers = dashboard
    found = exposure(where(url))
    answers["/api/version"] = (401, {})
    guarded = exposure(where(url))
    plain = Address("jobs", "http://ray.example.org:8265", host="ray.example.org", port=8265)
    for address, seen, code, refused in [
        (where(url), found, True, "asks for no token"),
        (where(url), found, False, None),  # to look is no risk
        (where(url), guarded, True, None),
        (plain, guarded, False, "could read the token"),
    ]:
        refuse_exposure(address, seen, is_allowed=True, sends_code=code)
        if refused is None:
            refuse_exposure(address, seen, is_allowed=False, sends_code=code)
        else:
            with pytest.raises(UsageError, match=refused):
                refuse_exposure(address, seen, is_allowed=False, sends_code=code)


@pytest.mark.parametrize("code", [None, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED])
def test_a_port_that_answers_strangers(code: grpc.StatusCode | None) -> None:
    """Of Ray's own port, HOST:6379, a double."""

    class Ray(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            if details.method != "/ray.rpc.NodeInfoGcsService/CheckAlive":
                return None

            def answer(_: bytes, context: Any) -> bytes:
                if code is not None:
                    context.abort(code, "no")
                return b""

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Ray()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert security._answers_strangers(where(f"127.0.0.1:{port}")) == (code is None)
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("address", "allow_insecure", "mode"),
    [
        ("10.0.0.1:6379", False, None),  # refused
        ("10.0.0.1:6379", True, "disabled"),
        ("127.0.0.1:6379", False, "disabled"),
        ("auto", False, "token"),
    ],
)
def test_who_enters_an_open_cluster_and_how(
    address: str, allow_insecure: bool, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "_answers_strangers", lambda _: True)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    if mode is None:
        with pytest.raises(
            UsageError, match=r"10\.0\.0\.1:6379 asks for no token: .* or pass --allow-insecure"
        ):
            present_token(where(address), allow_insecure=allow_insecure)
    else:
        present_token(where(address), allow_insecure=allow_insecure)
    assert os.environ.get("RAY_AUTH_MODE") == mode


def test_a_job_takes_its_clusters_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was looked at when the job was submitted."""

    class Entered(Exception):
        pass

    def entered() -> None:
        raise Entered

    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setattr(connecting, "reach", lambda _: None)
    monkeypatch.setattr(connecting, "use_token", entered)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    with pytest.raises(Entered), connecting.connected(where("10.0.0.1:6379")):
        pass


def test_a_folder_too_long_for_ray_s_sockets_is_named(tmp_path: Path) -> None:
    folder = tmp_path / ("scratch-of-a-batch-job" * 4)
    folder.mkdir()
    code = "from raysegment.runtime import cluster\nwith cluster(1): pass"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"RAY_TMPDIR": str(folder)},
        capture_output=True,
        text=True,
    )
    assert "UsageError" in done.stderr.splitlines()[-1]
    assert f"{folder} have longer names than the system takes: set RAY_TMPDIR" in done.stderr


def test_a_ray_that_another_command_has_for_itself_is_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with that command, in the middle of whatever else runs in it."""
    left: list[bool] = []
    private = SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda **_: None,
        cluster_resources=lambda: {"CPU": 4.0, PRIVATE: 1.0},
        shutdown=lambda: left.append(True),
    )
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setattr(connecting, "use_token", lambda: None)
    monkeypatch.setitem(sys.modules, "ray", private)
    with (
        pytest.raises(UsageError, match=r"--address auto: that Ray belongs to another raysegment"),
        connecting.connected(where("auto")),
    ):
        raise AssertionError("joined")
    assert left == [True]


def test_threads_share_one_ray_until_the_last_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()
    said: list[str] = []

    def start(**how: Any) -> None:
        said.append("started")
        begun.wait(0.1)  # long enough for the others to come by

    ray = SimpleNamespace(is_initialized=lambda: bool(said), shutdown=lambda: said.append("ended"))
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(embedded, "OURS", threading.Event())  # others may hold a Ray
    monkeypatch.setattr(embedded, "_sharers", 0)
    monkeypatch.setattr(embedded, "_start", start)
    monkeypatch.setattr(embedded, "joined", contextlib.nullcontext)
    together, is_there, others_left = threading.Barrier(3, timeout=10), threading.Event(), threading.Event()

    def work(number: int) -> None:
        if number == 2:
            is_there.wait(10)
        with embedded.cluster(1):
            is_there.set()
            together.wait()
            if number == 2:
                others_left.wait(10)
            said.append("worked")

    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(work, number) for number in range(3)]
        for one in running[:2]:
            one.result(10)
        others_left.set()
        running[2].result(10)
    assert said == ["started", "worked", "worked", "worked", "ended"]


@pytest.mark.parametrize("failures", [1, 9])
def test_a_ray_that_does_not_come_up_is_started_again(
    failures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of a start that failed is ended; other children of this process are not."""
    ours = subprocess.Popen(["sleep", "600"])
    started: list[subprocess.Popen[bytes]] = []

    def init(**_: Any) -> None:
        if len(started) < failures:
            code = "import time; print(flush=True); time.sleep(600)"
            child = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
            started.append(child)
            assert child.stdout is not None
            child.stdout.readline()  # by now it has the name that it is known by
            raise Exception("The current node\n timed out during startup.")  # as plain as Ray's own

    ray = SimpleNamespace(
        __file__=str(tmp_path / "__init__.py"),
        init=init,
        is_initialized=lambda: False,
        shutdown=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(embedded, "close_token_file", lambda: None)
    monkeypatch.setattr(embedded, "OURS", threading.Event())  # others may hold a Ray
    monkeypatch.setattr(embedded, "_sharers", 0)
    try:
        if failures == 1:
            with embedded.cluster(1):
                assert len(started) == 1
        else:
            with (
                pytest.raises(
                    WorkError, match=r"in 3 tries: The current node timed out during startup\. \(is"
                ),
                embedded.cluster(1),
            ):
                raise AssertionError("started")
            assert len(started) == 3
        assert [child.wait(10) for child in started] == [-signal.SIGKILL] * len(started)
        assert ours.poll() is None
    finally:
        for child in (ours, *started):
            child.kill()
            child.communicate()


@pytest.mark.parametrize(
    "word",
    [
        "--mlflow=https://me:hunter2@host/x",
        "https://b.example/x.tif?X-Amz-Signature=hunter2",
        "https://b/x?sig=hunter2",
    ],
)
def test_secrets_are_not_sent_and_not_repeated(word: str) -> None:
    refuse_secrets(["s3://bucket/a:b.tif", "--out=/x@y", "https://host:8080/x"])
    with pytest.raises(UsageError) as refused:
        refuse_secrets(["--out=/x", word])
    assert "hunter2" not in str(refused.value)


def test_what_is_forwarded() -> None:
    environment = {"AWS_REGION": "eu-1", "AWS_SECRET_ACCESS_KEY": "x", "MLFLOW_TRACKING_URI": "https://a:b@c"}
    assert forwarded(environment) == {"AWS_REGION": "eu-1"}


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> Parcel:
    monkeypatch.setattr(packing, "is_this_machine", lambda *_: True)
    return Parcel(AWAY, None)


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Parcel:
    monkeypatch.setattr(packing, "is_this_machine", lambda *_: False)
    return Parcel(AWAY, None)


def test_what_a_cluster_on_this_machine_sees(
    near: Parcel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.tif").touch()
    monkeypatch.chdir(tmp_path)
    assert near.sees("--source", "a.tif") == str(tmp_path / "a.tif")
    assert near.sees("--out", "new/m.zarr", is_new=True) == str(tmp_path / "new" / "m.zarr")
    with pytest.raises(UsageError, match="no such file"):
        near.sees("--source", "b.tif")


def test_what_a_cluster_elsewhere_sees(far: Parcel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tif").touch()
    monkeypatch.chdir(tmp_path)
    for here in ("a.tif", str(tmp_path / "a.tif"), str(tmp_path / "*.tif")):
        with pytest.raises(UsageError, match=r"disk of this machine|no such file"):
            far.sees("--source", here)
    for out in ("m.zarr", str(tmp_path / "m.zarr"), "new/m.zarr"):
        with pytest.raises(UsageError, match="disk of this machine"):
            far.sees("--out", out, is_new=True)
    assert far.sees("--source", "/no/such/mount/a.tif") == "/no/such/mount/a.tif"
    assert far.sees("--source", "s3://bucket/a.tif") == "s3://bucket/a.tif"
    monkeypatch.setattr(packing, "is_shared", lambda _: True)
    assert far.sees("--source", "a.tif") == str(tmp_path / "a.tif")


def test_file_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    kinds = {"/": "ext4", "/data": "nfs4", "/data/scratch": "xfs", "/mnt/b": "fuse.s3fs"}
    parts = [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in kinds.items()]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: parts)
    shared = {path: is_shared(Path(path)) for path in ("/x", "/data/x", "/data/scratch/x", "/mnt/b/c/d")}
    assert shared == {"/x": False, "/data/x": True, "/data/scratch/x": False, "/mnt/b/c/d": True}


def test_what_travels(far: Parcel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("net.onnx", "net.toml", "net.onnx.data", "net.png", "big.safetensors"):
        (tmp_path / name).write_bytes(name.encode() * 10)
    (tmp_path / ".gitignore").write_text("*")
    assert far.carry("model", str(tmp_path / "net.onnx")) == "model/net.onnx"
    assert sorted(far.files) == ["model/net.onnx", "model/net.onnx.data", "model/net.toml"]
    with far.packed() as environment:
        [package] = map(Path, environment["py_modules"])
        assert {p.name for p in (Path(environment["working_dir"]) / "model").iterdir()} == {
            *("net.onnx", "net.onnx.data", "net.toml")
        }
        assert (package / "__main__.py").is_file()
        assert (package / "report" / "templates").is_dir()
        assert not list(package.rglob("__pycache__"))
    assert not package.exists()
    before = far.digest()
    (tmp_path / "net.toml").write_text("changed")
    assert far.digest() != before
    monkeypatch.setattr(packing, "MAX_BYTES", 100)
    with pytest.raises(UsageError, match="travel with a job"):
        far.carry("model", str(tmp_path / "big.safetensors"))


@given(st.integers(0, 2**32), st.lists(st.integers(1, 40)))
def test_a_log_reads_the_same_however_it_is_cut(seed: int, cuts: list[int]) -> None:
    text = f'one\n{{"not": the end\nerror: not yet\ntwo {seed}\n2026-01-01 00:00:00,1\tINFO x.py -- x\n'
    text += 'last\n{"a": 1}\n'
    shown: list[str] = []
    log = Log(shown.append)
    for cut in cuts:
        log.take(text[log.seen : log.seen + cut])
    log.take(text[log.seen :])
    log.end()
    assert shown == ["one", '{"not": the end', "error: not yet", f"two {seed}", "last"]
    assert (log.answer, log.error) == ({"a": 1}, None)


def state(status: str, code: int | None = None, job: str = "j") -> JobState:
    return JobState(job, status, code, "a message", "", 1.0, None)


class Flaky:
    """Jobs whose connection breaks: every tail begins at the beginning and ends somewhere."""

    text = "one\ntwo\nthree\nerror: it broke\n"

    def __init__(self, states: list[JobState | Exception], cuts: list[int]) -> None:
        self.states, self.cuts = states, cuts

    def state(self, _: str) -> JobState:
        found = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(found, Exception):
            raise found
        return found

    def log(self, _: str) -> str:
        return self.text

    async def tail(self, _: str) -> AsyncIterator[str]:
        for at in range(0, self.cuts.pop(0), 3):
            yield self.text[at : at + 3]
        raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")


def test_a_log_is_followed_through_lost_connections() -> None:
    gone, running = Unreachable("away"), state("RUNNING")
    jobs: Any = Flaky([state("PENDING"), running, gone, running, running, state("FAILED", 3)], [7, 12, 3])
    shown: list[str] = []
    ended, log = follow(jobs, "j", shown.append)
    assert shown == ["one", "two", "three"]
    assert (ended.exit_code, log.error) == (3, "it broke")


def test_a_cluster_that_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "AWAY_S", 0.1)
    jobs: Any = Flaky([Unreachable("away")], [])
    with pytest.raises(Unreachable, match="the same command follows it") as lost:
        follow(jobs, "j", lambda _: None)
    assert lost.value.exit_code == 1


@pytest.mark.parametrize(
    ("ended", "text", "code", "error"),
    [
        (state("SUCCEEDED", 0), '{"a": 1}', 0, None),
        (state("FAILED", 3), '{"failed_regions": [1]}', 3, None),
        (state("FAILED", 2), "error: wrong\n", 2, "wrong"),
        (state("FAILED", 1), "Killed", 1, "a message"),
        (state("STOPPED", 130), "", 130, "was stopped"),
    ],
)
def test_a_job_s_answer(ended: JobState, text: str, code: int, error: str | None) -> None:
    log = Log(lambda _: None)
    log.take(text)
    log.end()
    if error is None:
        found = remote.outcome(ended, log)
        assert (found.exit_code, found.to_json()) == (code, log.answer)
    else:
        with pytest.raises(JobError, match=error) as raised:
            remote.outcome(ended, log)
        assert raised.value.exit_code == code


class Interrupted(Flaky):
    """Someone presses Ctrl-C."""

    address = AWAY

    def state(self, _: str) -> JobState:
        raise KeyboardInterrupt

    def stop(self, job: str) -> JobState:
        return state("STOPPED", 130, job)


@pytest.mark.parametrize(("stop", "said"), [(None, "goes on at"), (False, "goes on at"), (True, "j stopped")])
def test_ctrl_c_asks_a_person(monkeypatch: pytest.MonkeyPatch, stop: bool | None, said: str) -> None:
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: stop is not None)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: stop)
    jobs: Any = Interrupted([], [])
    with pytest.raises(JobError, match=said) as left:
        remote.attend(jobs, "j")
    assert left.value.exit_code == 130
    assert ("raysegment jobs stop j --address" in str(left.value)) is not stop


class Queue:
    """Jobs that only remember."""

    address = AWAY
    token = None

    def __init__(self, *jobs: JobState, taken: str = "") -> None:
        self.jobs, self.taken = list(jobs), taken
        self.entry: list[str] = []

    def list(self) -> list[JobState]:
        return self.jobs

    def submit(self, job: str, command: str, environment: Any) -> None:
        if job == self.taken:
            self.jobs.append(state("RUNNING", job=job))
            raise KeyError(job)
        self.entry = shlex.split(command)
        self.jobs.append(state("RUNNING", job=job))


def test_a_command_runs_once(far: Parcel) -> None:
    def go(queue: Any, *words: str) -> str:
        return submit(queue, "infer", words, far)

    queue = Queue()
    first = go(queue, "--out=/x y", "--", "s3://a")
    assert queue.entry == ["python", "-m", "raysegment", "infer", "--out=/x y", "--", "s3://a"]
    assert go(queue, "--json", "--out=/x y", "--", "s3://a") == first  # however it is to speak
    assert go(Queue(state("FAILED", 1, first)), "--out=/x y", "--", "s3://a") == f"{first}-2"
    assert go(
        Queue(state("FAILED", 1, first), state("STOPPED", 130, f"{first}-9")), "--out=/x y", "--", "s3://a"
    ) == (f"{first}-10")
    assert go(Queue(taken=first), "--out=/x y", "--", "s3://a") == first  # somebody was faster
    assert go(Queue(), "--out=/other", "--", "s3://a") != first


def test_jobs_from_python(monkeypatch: pytest.MonkeyPatch) -> None:
    import raysegment as rs

    asked: list[tuple[str | None, bool]] = []
    running, ended = state("RUNNING", None, "a"), state("STOPPED", 130, "b")

    class Fake:
        @classmethod
        def at(cls, address: str | None, *, allow_insecure: bool = False) -> Fake:
            asked.append((address, allow_insecure))
            return cls()

        def list(self) -> list[JobState]:
            return [running, ended]

        def state(self, job: str) -> JobState:
            return {"a": running, "b": ended}[job]

        stop = state

        def log(self, job: str) -> str:
            return f"what {job} said"

    monkeypatch.setattr(rs.jobs, "Jobs", Fake)
    where = {"address": "http://h:8265", "allow_insecure": True}
    assert rs.jobs.list(**where) == (running, ended)
    assert rs.jobs.status("a", **where) is running
    assert rs.jobs.logs("b", **where) == "what b said"
    assert rs.jobs.stop("b", **where) is ended
    with pytest.raises(rs.JobError, match="a was told to stop and is RUNNING still"):
        rs.jobs.stop("a")
    assert asked == [("http://h:8265", True)] * 4 + [(None, False)]


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> Queue:
    """What is submitted to a cluster elsewhere."""
    from raysegment.runtime import dashboard

    queue = Queue()
    monkeypatch.setattr(dashboard, "Jobs", lambda *_, **__: queue)
    monkeypatch.setattr(packing, "is_this_machine", lambda *_: False)
    return queue


def test_flags_and_files_become_the_job_s_words(submitted: Queue, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    (tmp_path / "c.toml").write_text('tile = 256\nforeground = "auto"\n')
    command = [
        *("infer", "s3://b/a.tif", "s3://b/c.tif", "--out", "s3://b/out"),
        *("--model", str(tmp_path / "m.onnx")),
        *("--region", "1", "2", "3", "4", "--config", str(tmp_path / "c.toml"), "--probabilities"),
    ]
    done = CliRunner().invoke(app, [*command, "--address", AWAY.text, "--detach", "--json"])
    assert done.exit_code == 0, done.stderr
    assert submitted.entry[4:] == [
        *("--json", "--model=model/m.onnx", "--out=s3://b/out", "--tile=256", "--region", "1", "2", "3", "4"),
        *("--foreground=auto", "--probabilities", "--", "s3://b/a.tif", "s3://b/c.tif"),
    ]
    assert json.loads(done.stdout) == {"id": submitted.jobs[0].id, "address": AWAY.text}
    train = [
        "train",
        "/no/such/mount/set",
        "--out",
        "/no/such/mount/run",
        "--val",
        "0.3",
        "--no-ema",
        "--norm",
        "group",
    ]
    done = CliRunner().invoke(app, [*train, "--address", AWAY.text, "--detach"])
    assert done.exit_code == 0, done.stderr
    assert submitted.entry[4:] == [
        *("--out=/no/such/mount/run", "--val=0.3", "--norm=group", "--no-ema", "--", "/no/such/mount/set"),
    ]


def test_files_that_the_cluster_cannot_see_are_named(submitted: Queue, tmp_path: Path) -> None:
    (tmp_path / "a.tif").touch()
    (tmp_path / "m.onnx").touch()
    command = [
        "infer",
        str(tmp_path / "a.tif"),
        "--model",
        str(tmp_path / "m.onnx"),
        "--out",
        "s3://b/m.zarr",
    ]
    done = CliRunner().invoke(app, [*command, "--address", AWAY.text])
    assert done.exit_code == 2
    assert str(tmp_path / "a.tif") in done.stderr
    assert submitted.entry == []


def test_a_batch_job_s_own_places(submitted: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "night.toml"
    head = f'name = "night"\n[cluster]\naddress = "{AWAY.text}"\n[input]\npaths = "s3://b/*.tif"\n'
    rest = '[model]\npath = "s3://b/m.safetensors"\n[output]\npath = "{}/{{stem}}.zarr"\n'
    job.write_text(head + rest.replace("{}", "masks"))
    done = CliRunner().invoke(app, ["batch", str(job), "--detach"])
    assert done.exit_code == 2
    assert f"[output] path {tmp_path}/masks is on a disk of this machine" in done.stderr
    assert submitted.entry == []
    job.write_text(head + rest.replace("{}", "s3://b/masks"))
    done = CliRunner().invoke(app, ["batch", str(job), "--detach"])
    assert done.exit_code == 0, done.stderr
    assert submitted.entry[3:] == ["batch", "--", "job/night.toml"]
    # the copy in the job must not submit itself again
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    done = CliRunner().invoke(app, ["batch", str(job), "--detach"])
    assert "--detach needs a job" in done.stderr


def test_options_that_need_an_address() -> None:
    done = CliRunner().invoke(app, ["evaluate", "a", "b", "--detach"])
    assert done.exit_code == 2
    assert "--detach needs a job" in done.stderr
    done = CliRunner().invoke(app, ["jobs", "list"])
    assert done.exit_code == 2
    assert "no --address" in done.stderr
    done = CliRunner().invoke(app, ["jobs", "lsit"])
    assert done.exit_code == 2
    assert "'list'" in done.stderr


@pytest.mark.parametrize(("asked", "answer"), [(3, 3), (None, None)])
def test_a_cluster_without_workers_yet_grows_for_those_asked_for_by_number(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, answer: int | None
) -> None:
    nodes = [{"Alive": True, "Resources": {"memory": 4e9}}]  # a head that takes no work
    empty = SimpleNamespace(is_initialized=lambda: True, nodes=lambda: nodes, available_resources=dict)
    monkeypatch.setitem(sys.modules, "ray", empty)
    monkeypatch.setattr("raysegment.runtime.connected.OURS", threading.Event())  # others may hold a Ray
    monkeypatch.setattr("raysegment.runtime.connected._FREED_S", 0.0)
    if answer is not None:
        assert fitted(asked, cpus=1, gpus=0, memory=0) == answer
        return
    with pytest.raises(
        UsageError, match=r"no node .* has room for a worker of 1 CPU: .* give --workers a number"
    ):
        fitted(asked, cpus=1, gpus=0, memory=0)
