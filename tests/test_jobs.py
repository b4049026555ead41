"""Commands on a real cluster that asks for a token: submitted, followed, left, stopped, refused."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trained
from head import Head

pytestmark = [pytest.mark.ray, pytest.mark.slow]
_TINY = (
    *("--steps-per-epoch", "8", "--base-width", "4", "--depth", "2", "--tile", "32", "--batch-size", "4"),
    *("--lr", "1e-2", "--workers", "1"),
)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    started = Head()
    try:
        yield started.start()
    finally:
        started.stop()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training set, and a model of it in `run`."""
    root = tmp_path_factory.mktemp("data")
    trained.make(root / "set")
    trained.run_here(root / "set", root / "run", epochs=2)
    return root


def last(text: str) -> dict[str, Any]:
    return dict(json.loads(text.strip().splitlines()[-1]))


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The only error line there is, no traceback beside it."""
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return said[0]


def infer(data: Path, image: int, out: Path) -> list[object]:
    model = data / "run" / "model.safetensors"
    return ["infer", data / "set" / "images" / f"{image}.png", "--model", model, "--out", out]


def test_infer_as_a_job(head: Head, data: Path, tmp_path: Path) -> None:
    command = [*infer(data, 0, tmp_path / "m.zarr"), "--address", head.url, "--json"]
    # Ray itself would go to these; what was said to us is what counts
    elsewhere = {"RAY_ADDRESS": "http://127.0.0.1:1", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}
    done = head.run(*command, **elsewhere)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert last(done.stdout)["output"] == str(tmp_path / "m.zarr")
    assert last(done.stdout)["shape"] == [64, 64]
    assert (tmp_path / "m.zarr" / "zarr.json").is_file()
    again = head.run(*command)
    assert again.returncode == 0, again.stderr
    assert last(again.stdout)["already_done"] is True
    ids = re.findall(r"raysegment-infer-[0-9a-f]{10}\S*", done.stderr + again.stderr)
    assert ids[1] == f"{ids[0]}-2"
    state = head.run("jobs", "status", ids[0], "--address", head.url, "--json")
    assert last(state.stdout)["status"] == "SUCCEEDED"
    assert last(state.stdout)["job_exit_code"] == 0
    log = head.run("jobs", "logs", ids[0], RAY_ADDRESS=head.url)
    assert str(tmp_path / "m.zarr") in log.stdout
    # the job's own exit code, and its own line
    wrong = head.run(*command, "--tile", "33", "--overwrite")
    assert wrong.returncode == 2
    assert "33" in one_line(wrong)
    assert last(wrong.stdout)["exit_code"] == 2


def test_infer_as_a_driver(head: Head, data: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{head.port}"
    done = head.run(*infer(data, 1, tmp_path / "m.zarr"), "--json", RAY_ADDRESS=address)
    assert done.returncode == 0, done.stderr
    assert last(done.stdout)["tiles"] > 0
    stranger = {"RAY_AUTH_TOKEN": "f" * 64}
    began = time.monotonic()
    refused = head.run(*infer(data, 1, tmp_path / "n.zarr"), "--address", address, **stranger)
    assert refused.returncode == 2
    assert "token" in one_line(refused)
    assert time.monotonic() - began < 30


def test_a_driver_on_the_network_and_a_cluster_open_to_strangers(
    head: Head, data: Path, tmp_path: Path
) -> None:
    found = [a.address for card in psutil.net_if_addrs().values() for a in card if a.family is socket.AF_INET]
    here = next((address for address in found if not address.startswith("127.")), None)
    if here is None:
        pytest.skip("this machine has no network: it can only be reached at loopback")
    guarded = head.run(*infer(data, 1, tmp_path / "a.zarr"), "--address", f"{here}:{head.port}")
    assert guarded.returncode == 0, guarded.stderr
    cluster = Head(asks_for_token=False)
    try:
        cluster.start()
        command = [*infer(data, 1, tmp_path / "b.zarr"), "--address", f"{here}:{cluster.port}"]
        refused = cluster.run(*command)
        assert refused.returncode == 2
        assert f"{here}:{cluster.port} asks for no token: anyone who reaches it" in one_line(refused)
        assert not (tmp_path / "b.zarr").exists()
        let_in = cluster.run(*command, "--allow-insecure")
        assert let_in.returncode == 0, let_in.stderr
        near = infer(data, 1, tmp_path / "c.zarr")
        beside = cluster.run(*near, "--address", f"127.0.0.1:{cluster.port}")
        assert beside.returncode == 0, beside.stderr
    finally:
        cluster.stop()


def test_train_detached_followed_left_and_stopped(head: Head, data: Path, tmp_path: Path) -> None:
    command = [
        "train",
        data / "set",
        "--out",
        tmp_path / "run",
        "--epochs",
        "2000",
        *_TINY,
        "--address",
        head.url,
    ]
    left = head.run(*command, "--detach")
    assert left.returncode == 0, left.stderr
    job = left.stdout.strip()
    assert re.fullmatch(r"raysegment-train-[0-9a-f]{10}", job)
    until = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert time.monotonic() < until, head.run("jobs", "logs", job, "--address", head.url).stdout
        time.sleep(1)
    # the same command does not run twice
    follower = subprocess.Popen(
        [sys.executable, "-m", "raysegment", *map(str, command)],
        env=head.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert follower.stdout is not None
    assert "masks: 0 → class 0" in follower.stdout.readline()
    follower.send_signal(signal.SIGINT)
    _, said = follower.communicate(timeout=60)
    assert follower.returncode == 130, said
    assert f"{job} runs already" in said
    assert f"raysegment jobs stop {job} --address {head.url}" in said
    listed = last(head.run("jobs", "list", "--address", head.url, "--json").stdout)["jobs"]
    assert [one["status"] for one in listed if one["id"] == job] == ["RUNNING"]
    stopped = head.run("jobs", "stop", job, "--address", head.url, "--json")
    assert stopped.returncode == 0, stopped.stderr
    assert last(stopped.stdout)["status"] == "STOPPED"
    followed = head.run("jobs", "logs", job, "--follow", "--address", head.url)
    assert followed.returncode == 130
    assert "was stopped" in one_line(followed)
    assert head.run("jobs", "stop", job, "--address", head.url).returncode == 0  # it has ended: nothing to do


def test_train_as_a_job_and_no_secret_anywhere(head: Head, data: Path, tmp_path: Path) -> None:
    command = [
        "train",
        data / "set",
        "--out",
        tmp_path / "run",
        "--epochs",
        "4",
        *_TINY,
        "--address",
        head.url,
    ]
    done = head.run(*command, "--json")
    assert done.returncode == 0, done.stderr
    assert last(done.stdout)["model"] == str(tmp_path / "run" / "model.safetensors")
    everything = done.stdout + done.stderr + head.run("jobs", "list", "--address", head.url, "--json").stdout
    assert head.token not in everything
    written = [*(tmp_path / "run").rglob("*"), *(head.folder / "r").glob("session_2*/logs/**/*")]
    assert len(written) > 20
    assert not [path for path in written if path.is_file() and head.token.encode() in path.read_bytes()]
    token = Path(head.environment["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o777 == 0o600  # it was found at 0644


def test_more_than_there_is(head: Head, data: Path, tmp_path: Path) -> None:
    command = ["train", data / "set", "--out", tmp_path / "run", "--epochs", "2", *_TINY[:-2]]
    full = head.run(*command, "--batch-size", "64", "--workers", "50", "--address", head.url, "--json")
    assert full.returncode == 2, full.stderr
    assert "room for 2" in one_line(full)
    assert last(full.stdout)["exit_code"] == 2


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["list"], {"RAY_AUTH_TOKEN": "f" * 64}, "refuses this token"),
        (["list"], {"RAY_AUTH_TOKEN_PATH": "/nowhere"}, "asks for a token, and there is none"),
        (["status", "raysegment-infer-0"], {}, "no job 'raysegment-infer-0'"),
        (["logs", "raysegment-infer-0", "--follow"], {}, "no job 'raysegment-infer-0'"),
        (["stop", "raysegment-infer-0"], {}, "no job 'raysegment-infer-0'"),
    ],
)
def test_refused(head: Head, words: list[str], environment: dict[str, str], said: str) -> None:
    done = head.run("jobs", *words, "--address", head.url, **environment)
    assert done.returncode == 2
    assert said in one_line(done)


def test_the_doctor_sees_what_is_open(head: Head) -> None:
    found = last(head.run("doctor", "--address", head.url, "--json").stdout)
    assert found["cluster"]["needs_token"] is True
    assert found["cluster"]["nodes"] == 1
    assert (
        head.port in found["cluster"]["open_ports"]
    )  # on all interfaces, although the dashboard is on loopback
    assert any("listen on all interfaces" in warning for warning in found["warnings"])
    assert head.token not in json.dumps(found)


def test_a_node_that_does_not_see_the_output(data: Path, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to give a node another view of the disk")
    cluster = Head()
    try:
        cluster.start(cpus=1)
        (tmp_path / "out").mkdir()
        cluster.add_node_without(tmp_path / "out")
        address = ["--address", f"127.0.0.1:{cluster.port}"]
        until = time.monotonic() + 60
        while True:  # until the second node is there, all nodes see it
            done = cluster.run(*infer(data, 2, tmp_path / "out" / "m.zarr"), "--plan", *address)
            if done.returncode or time.monotonic() > until:
                break
        assert done.returncode == 2, done.stdout
        assert f"does not see {tmp_path / 'out' / 'm.zarr'}" in one_line(done)
        assert list((tmp_path / "out").iterdir()) == []
        seen = cluster.run(*infer(data, 2, tmp_path / "m.zarr"), "--plan", *address)
        assert seen.returncode == 0, seen.stderr
    finally:
        cluster.stop()


def test_a_head_that_died(data: Path, tmp_path: Path) -> None:
    nobody = Head(dashboard=1, port=1)
    try:
        for words in (["jobs", "list"], infer(data, 0, tmp_path / "m.zarr")):
            for address in (nobody.url, f"127.0.0.1:{nobody.port}"):
                done = nobody.run(*words, "--address", address)
                assert done.returncode == 2
                assert address in one_line(done)
    finally:
        nobody.stop()
