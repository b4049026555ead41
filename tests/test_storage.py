"""Paths and URLs: one set of promises, kept on a disk and in memory; the lock that runs out."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from raysegment.errors import LockedError, UsageError, WorkError
from raysegment.storage import Location, Url, is_url, location
from raysegment.storage.byte_file import ByteFile
from raysegment.storage.file_lock import locked
from raysegment.storage.lease import _kernel, hold
from raysegment.storage.objects import check_writable, entries, fetched, glob, put, put_new, remove


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Location]:
    place = tmp_path if request.param == "disk" else location("memory://storage-test")
    yield place
    remove(place)


def test_a_url_answers_like_a_path() -> None:
    url, path = location("s3://bucket/masks/a.ome.zarr"), Path("/bucket/masks/a.ome.zarr")
    assert isinstance(url, Url)
    assert (url.name, url.stem, url.suffix) == (path.name, path.stem, path.suffix)
    assert str(url.with_name("b.zarr")) == "s3://bucket/masks/b.zarr"
    assert str(url / "0" / "zarr.json") == "s3://bucket/masks/a.ome.zarr/0/zarr.json"
    assert str(url.parent) == "s3://bucket/masks"
    assert pickle.loads(pickle.dumps(url)) == url


def test_a_signed_address_keeps_its_query() -> None:
    url = location("https://host/folder/a.tif?sig=1/2")
    assert (url.name, url.suffix) == ("a.tif", ".tif")
    assert str(url.with_name("b.tif")) == "https://host/folder/b.tif?sig=1/2"


@pytest.mark.parametrize("name", ["ftp://host/a", "s3://", "az://x/y"])
def test_what_names_no_place_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        location(name)


@pytest.mark.parametrize("name", ["", "file://", "FILE://"])
def test_an_empty_name_is_no_place(name: str) -> None:
    with pytest.raises(UsageError, match="is an empty path"):
        location(name)


@pytest.mark.parametrize("name", [None, 7, b"a.tif", ["a.tif"]])
def test_what_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises(UsageError, match=f"^a {type(name).__name__} is no path"):
        location(name)


def test_a_file_appears_whole_and_is_listed(folder: Location) -> None:
    put(folder / "a/b.bin", b"one")
    put(folder / "a/b.bin", b"three")
    put(folder / "c.txt", b"")
    assert (folder / "a/b.bin").read_bytes() == b"three"
    assert {name: entry.size for name, entry in entries(folder).items()} == {"a/b.bin": 5, "c.txt": 0}
    assert glob(f"{folder}/**/*.bin") == [str(folder / "a/b.bin")]
    assert ((folder / "a").is_dir(), (folder / "a").is_file(), (folder / "none").exists()) == (
        True,
        False,
        False,
    )
    with pytest.raises(FileNotFoundError):
        (folder / "none").read_bytes()
    remove(folder / "a")
    remove(folder / "a")
    assert list(entries(folder)) == ["c.txt"]


def test_of_many_who_create_a_file_one_does(folder: Location) -> None:
    won = [put_new(folder / "lock", str(i).encode()) for i in range(5)]
    assert won == [True, False, False, False, False]
    assert (folder / "lock").read_bytes() == b"0"


def test_threads_may_write_the_same_file_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: put(tmp_path / "batch", str(i).encode(), survives=False), range(400)))
    assert [path.name for path in tmp_path.iterdir()] == ["batch"]


def test_a_file_that_nobody_refers_to_is_closed(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"pixels")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(40):
        assert ByteFile(str(tmp_path / "image")).read(0, 6) == b"pixels"
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_file_is_created_once_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")  # as exFAT says it

    monkeypatch.setattr(os, "link", refused)
    assert put_new(tmp_path / "lock", b"one")
    assert not put_new(tmp_path / "lock", b"two")
    assert (tmp_path / "lock").read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]


def test_what_can_only_be_read_is_no_output() -> None:
    with pytest.raises(UsageError, match="--out: https:// can only be read"):
        check_writable(location("https://host/masks"), "--out")


def test_a_copy_is_brought_again_when_it_was_replaced() -> None:
    url = location("memory://storage-test/model.bin")
    assert isinstance(url, Url)
    put(url, b"old")
    assert fetched(url).read_bytes() == b"old"
    put(url, b"newer")
    assert fetched(url).read_bytes() == b"newer"
    remove(url)


def holder(pid: int, lasts_s: float, host: str = "", kernel: str = "") -> bytes:
    about = {
        "host": host or socket.gethostname(),
        "pid": pid,
        "token": "theirs",
        "expires_at": time.time() + lasts_s,
        "kernel": kernel,
    }
    return json.dumps(about).encode()


def dead_pid() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_a_lock_is_gone_with_its_holder(folder: Location) -> None:
    with hold(folder / "lock"):
        assert (folder / "lock").exists()
    assert not (folder / "lock").exists()


@pytest.mark.parametrize("content", [b"", holder(1, -1, "elsewhere"), b"{}"])
def test_a_lock_that_has_run_out_is_taken_over(folder: Location, content: bytes) -> None:
    put(folder / "lock", content)
    with hold(folder / "lock") as lease:
        lease.check()


def test_a_lock_of_a_dead_process_of_this_machine_is_taken_over_at_once(folder: Location) -> None:
    put(folder / "lock", holder(dead_pid(), 3600, kernel=_kernel()))
    started = time.monotonic()
    with hold(folder / "lock"):
        assert time.monotonic() - started < 5


def test_a_container_s_pids_are_its_own(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the name of its host, as pods on the host's network have."""
    monkeypatch.setattr("raysegment.storage.lease._POLL_S", 0.1)
    boot, _ = _kernel().split(" ")
    put(folder / "lock", holder(dead_pid(), 1.0, kernel=f"{boot} pid:[1]"))
    started = time.monotonic()
    with hold(folder / "lock"):
        assert time.monotonic() - started >= 0.9


def test_a_living_holder_keeps_others_out_at_once(folder: Location) -> None:
    started = time.monotonic()
    with (
        hold(folder / "lock"),
        pytest.raises(LockedError, match=f"process {os.getpid()}"),
        hold(folder / "lock"),
    ):
        pass
    assert time.monotonic() - started < 5


def test_a_holder_far_away_lives_if_it_renews(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysegment.storage.lease._POLL_S", 0.1)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("raysegment.storage.lease._kernel", lambda: "")
        with (
            hold(folder / "lock", lasts_s=1.0),
            pytest.raises(LockedError, match=f"process {os.getpid()}"),
            hold(folder / "lock"),
        ):
            pass


def test_a_holder_far_away_that_is_silent_is_waited_for(
    folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raysegment.storage.lease._POLL_S", 0.1)
    put(folder / "lock", holder(1, 1.0, "elsewhere"))
    started = time.monotonic()
    with hold(folder / "lock"):
        assert time.monotonic() - started >= 0.9


def test_a_lock_that_was_lost_is_noticed(folder: Location) -> None:
    with hold(folder / "lock", lasts_s=0.3) as lease:
        put(folder / "lock", holder(1, 60, "elsewhere"))
        for thread in threading.enumerate():
            if thread.name == "lease":
                thread.join(5)
        with pytest.raises(WorkError, match="lost to process 1 on elsewhere"):
            lease.check()
    assert (folder / "lock").exists()


def test_a_locked_file_keeps_others_out_and_says_who_has_it(tmp_path: Path) -> None:
    lock = tmp_path / "run" / "lock"

    def waits() -> None:
        with locked(lock, wait=True):
            assert lock.exists()

    with ThreadPoolExecutor(1) as other:
        with locked(lock):
            with (
                pytest.raises(LockedError, match=f"run/lock is held by process {os.getpid()} on "),
                locked(lock),
            ):
                pass
            waiting = other.submit(waits)
            with pytest.raises(TimeoutError):
                waiting.result(0.05)
            lock.unlink()  # as who is done does, with its folder
            lock.parent.rmdir()
        waiting.result(10)


def test_a_lock_file_without_a_name_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened by one while its holder, done, deletes it; a third makes a new one."""
    lock = tmp_path / "run" / "lock"
    flock, deleted = fcntl.flock, []

    def late(file: Any, how: int) -> None:
        if not deleted:
            deleted.append(lock.unlink())
            lock.parent.rmdir()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(lock), pytest.raises(LockedError, match="is held by"), locked(lock):
        pass


def test_who_was_asleep_looks_whose_the_lock_is(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a machine that was paused does, before the thread that renews has had its turn."""
    with hold(folder / "lock") as lease, monkeypatch.context() as awake:
        now = time.time
        awake.setattr("raysegment.storage.lease.time.time", lambda: now() + 90)
        assert not lease.is_lost  # nobody took it
        put(folder / "lock", holder(1, 60, "elsewhere"))
        lease.check()  # it was renewed
        awake.setattr("raysegment.storage.lease.time.time", lambda: now() + 180)
        assert lease.is_lost
        with pytest.raises(WorkError, match="lost to process 1 on elsewhere"):
            lease.check()


def test_a_lock_that_ran_out_and_cannot_be_renewed_is_none(
    folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with hold(folder / "lock") as lease, monkeypatch.context() as awake:
        now = time.time
        awake.setattr("raysegment.storage.lease.put", refused)
        awake.setattr("raysegment.storage.lease.time.time", lambda: now() + 30)
        lease.check()
        awake.setattr("raysegment.storage.lease.time.time", lambda: now() + 90)
        with pytest.raises(WorkError, match="lock ran out and cannot be renewed"):
            lease.check()


def test_a_path_is_no_url() -> None:
    assert not is_url("/a/b://c")
    assert not is_url("file:///a.tif")
    assert location("file:///a%20b.tif") == Path("/a b.tif")
