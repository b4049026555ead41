"""Training sets and runs at URLs: the same pixels, the same bits, whole files, one line for what cannot be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_forms import _FORMS, _SIZE, _TWO, _csv, _files, _pixels
from test_url_infer import Bucket, bucket  # noqa: F401
from trained import Killed, kill_after, run_here, weights
from web import serve

from raysegment.classes import ClassMap
from raysegment.errors import InputError, LockedError, UsageError
from raysegment.geometry import Window
from raysegment.inspection import inspect
from raysegment.storage import Location, lease, location
from raysegment.storage.objects import entries, put, remove
from raysegment.storage.remote import remote
from raysegment.training import train
from raysegment.training.dataset import Scene, find_scenes, identities
from raysegment.training.parallel import Stopped
from raysegment.training.run import RunFolder, earlier_run
from raysegment.training.windows import WindowReader


@pytest.fixture
def memory() -> Iterator[Location]:
    yield location("memory://training")
    remove(location("memory://training"))


def _copied(root: Path, place: Location) -> None:
    for name in entries(root):
        put(place / name, (root / name).read_bytes())


def _assert_as_put_in(scenes: tuple[Scene, ...], count: int) -> None:
    assert [s.size for s in scenes] == [_SIZE] * count
    reader = WindowReader(scenes, (0, 1, 2), _TWO)
    window = Window(y=3, x=7, height=9, width=11)
    for i in range(count):
        image, mask = _pixels(i)
        sample = reader.read(i, window)
        assert np.array_equal(sample.pixels, image[window.slices()])
        assert np.array_equal(sample.target, mask[window.slices()])
    assert len({image for image, _ in identities(scenes)}) == count


@pytest.mark.parametrize("form", _FORMS)
def test_every_form_is_read_from_a_url(tmp_path: Path, memory: Location, form: str) -> None:
    path = _FORMS[form](tmp_path / "set", 3)
    _copied(tmp_path, memory)
    url = f"{memory}/{path.relative_to(tmp_path).as_posix()}"
    _assert_as_put_in(find_scenes(url), 3)
    assert [s.name for s in find_scenes(url)] == [s.name for s in find_scenes(path)]
    facts = inspect(url).facts
    assert (inspect(url).kind, facts["pairs"], facts["problems"]) == ("dataset", 3, [])


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "zarr stack", "ome-zarr"])
def test_what_needs_no_list_of_files_is_read_from_a_web_server(tmp_path: Path, form: str) -> None:
    path = _FORMS[form](tmp_path / "set", 2)
    with serve(tmp_path) as web:
        _assert_as_put_in(find_scenes(f"{web.url}/{path.relative_to(tmp_path).as_posix()}"), 2)


def test_records_are_read_from_a_web_server_and_a_folder_is_refused_there(tmp_path: Path) -> None:
    folder = _FORMS["tfrecords"](tmp_path / "set", 2)
    with serve(tmp_path) as web:
        _assert_as_put_in(find_scenes(f"{web.url}/set/a.tfrecord"), 2)
        with pytest.raises(InputError, match=rf"^{web.url}/set .* web server gives no list: give a manifest"):
            find_scenes(f"{web.url}/{folder.name}")


@pytest.mark.parametrize(
    ("failures", "message"),
    [([], "it does not exist"), ([403] * 9, "no right to"), (None, "does not answer")],
)
def test_a_manifest_that_a_web_server_does_not_give_is_said_to_be_missing(
    tmp_path: Path, failures: list[int] | None, message: str
) -> None:
    with serve(tmp_path) as web:
        web.failures = failures or []
        url = f"{web.url}/set.csv" if failures is not None else "http://127.0.0.1:9/set.csv"
        with pytest.raises(InputError, match=f"^cannot read {url}: .*{message}"):
            find_scenes(url)


def test_a_folder_with_polygons_and_marker_objects(tmp_path: Path, memory: Location) -> None:
    row = _files(tmp_path, 1)[0]
    square = {"type": "Polygon", "coordinates": [[[2, 3], [9, 3], [9, 8], [2, 8], [2, 3]]]}
    put(memory / "images" / "a.tif", (tmp_path / row["image"]).read_bytes())
    put(memory / "images" / "notes.txt", b"no image")
    put(memory / "masks" / "a.geojson", json.dumps(square).encode())
    put(memory / "masks" / "sub" / "b.png", b"in a folder of its own")
    (scene,) = find_scenes(str(memory))
    drawn = scene.mask.open().read(Window(y=0, x=0, height=20, width=30))[:, :, 0] != 0
    assert np.array_equal(np.argwhere(drawn).min(axis=0), (3, 2))
    assert drawn.sum() == 5 * 7
    remove(memory / "masks" / "a.geojson")
    put(memory / "masks" / "a.shp", b"")
    with pytest.raises(InputError, match=r"masks/a\.shp: a Shapefile is several files: save it as"):
        find_scenes(str(memory))


def test_rows_beside_and_above_a_manifest_at_a_url(tmp_path: Path, memory: Location) -> None:
    row = _files(tmp_path, 1)[0]
    for name in row.values():
        put(memory / name, (tmp_path / name).read_bytes())
    rows = [
        {"image": "../deep/i0.tif", "mask": f"{memory}/deep/m0.png"},
        {"image": str(tmp_path / row["image"]), "mask": "./../deep/m0.png"},
    ]
    put(memory / "lists" / "set.csv", _csv(tmp_path / "set.csv", rows).read_bytes())
    for scene in find_scenes(f"{memory}/lists/set.csv"):
        assert np.array_equal(scene.image.open().read(Window(y=0, x=0, height=20, width=30)), _pixels(0)[0])
        assert scene.size == _SIZE
    put(memory / "set.csv", b"image,mask\ndeep/i0.tif,deep/none.png\n")
    with pytest.raises(InputError, match=rf"^{memory}/deep/none\.png does not exist"):
        find_scenes(f"{memory}/set.csv")


def test_a_classes_file_at_a_url(tmp_path: Path, memory: Location) -> None:
    data = _FORMS["csv"](tmp_path / "set", 2)
    told = b'[[class]]\nname = "ground"\nvalue = 0\n[[class]]\nname = "roof"\nvalues = [1, 255]\n'
    put(memory / "classes.toml", told)
    (tmp_path / "classes.toml").write_bytes(told)
    with serve(tmp_path) as web:
        for place in (f"{memory}/classes.toml", f"{web.url}/classes.toml", str(tmp_path / "classes.toml")):
            assert ClassMap.load(place).names == ("ground", "roof")
            assert [c["name"] for c in inspect(data, classes=place).facts["classes"]] == ["ground", "roof"]
    with pytest.raises(InputError, match=rf"^cannot read {memory}/none\.toml: it does not exist"):
        ClassMap.load(f"{memory}/none.toml")


@pytest.mark.parametrize("killed_at", [3, 9])
def test_a_run_at_a_url_goes_on_to_the_bit(
    discs: Path, undisturbed: RunFolder, memory: Location, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    with monkeypatch.context() as patched:
        kill_after(patched, killed_at)
        with pytest.raises(Killed):
            run_here(discs, memory / "run")
    run = run_here(discs, memory / "run")
    _assert_same(undisturbed, run)
    held = set(entries(memory / "run"))
    assert held >= {
        "model.safetensors", "metrics.jsonl", "run.json", "report.html", "last/state.pt"
    }  # fmt: skip
    assert "last/lock" not in held
    assert [name for name in held if name.startswith("events/")]
    run.clear()
    assert not {name for name in entries(memory / "run") if not name.startswith("last/")}


def _assert_same(first: RunFolder, second: RunFolder) -> None:
    for name, value in weights(first).items():
        assert torch.equal(value, weights(second)[name]), name
    told = [
        [{k: v for k, v in json.loads(line).items() if k != "images_per_s"} for line in text.splitlines()]
        for text in (first.metrics.read_text(), second.metrics.read_text())
    ]
    assert told[0] == told[1]


def test_a_run_at_a_url_is_locked_and_keeps_as_many_checkpoints_as_asked(
    discs: Path, memory: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_POLL_S", 0.1)
    run = RunFolder(memory / "run")
    with (
        lease.hold(memory / "run" / "last" / "lock", lasts_s=1),
        pytest.raises(LockedError, match=rf"run/last/lock is held by process {os.getpid()} on "),
        run.locked(),
    ):
        pass
    run_here(discs, memory / "run", keep=2, sampling="balanced")
    assert sorted(entries(run.checkpoints)) == ["step-00000008.pt", "step-00000012.pt"]
    assert run.class_index.is_file()
    with pytest.raises(InputError, match=r"--resume: memory://training/run holds a run with other data"):
        earlier_run(run, "another", resume=True, overwrite=False)


def test_storage_that_fails_in_the_middle_is_one_line_and_what_was_trained_is_kept(
    discs: Path, undisturbed: RunFolder, memory: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs: Any = remote(location("memory://x")).fs
    write, left = type(fs).pipe_file, [14]

    def refuse(self: Any, *args: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise PermissionError
        write(self, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(type(fs), "pipe_file", refuse)
        with pytest.raises(Stopped, match=r"^cannot write memory://training/run/\S+: no right to, .*here$"):
            run_here(discs, memory / "run")
    assert (memory / "run" / "last" / "state.pt").is_file()
    _assert_same(undisturbed, run_here(discs, memory / "run"))


def test_where_nothing_can_be_written_is_said_before_work(discs: Path) -> None:
    with pytest.raises(UsageError, match=r"--out: https:// can only be read: give a path, s3:// or gs://"):
        train(discs, out="https://host/run")


@pytest.mark.ray
def test_a_bucket_without_rights_is_one_line(discs: Path, tmp_path: Path) -> None:
    with serve(tmp_path) as web:
        web.failures = [403] * 1000
        code, answer, _ = Bucket(web.url).run("train", str(discs), "--out", "s3://secret/run")
        assert code == 2
        assert "--out: cannot write s3://secret/run/" in answer["error"]
        assert "no right to" in answer["error"]
        code, answer, _ = Bucket(web.url).run("train", "s3://secret/set.csv", "--out", str(tmp_path / "run"))
        assert code == 2
        assert "s3://secret/set.csv" in answer["error"]
        assert "no right to" in answer["error"]


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_in_a_bucket_that_is_killed_ends_with_the_bytes_of_an_undisturbed_one(
    discs: Path,
    bucket: Bucket,  # noqa: F811
    tmp_path: Path,
) -> None:
    for name in entries(discs):
        bucket.ask("PUT", f"/discs/{name}", (discs / name).read_bytes())
    command = ["train", "s3://scenes/discs", "--epochs", "4", "--steps-per-epoch", "40", "--lr", "0.01",
               "--base-width", "4", "--depth", "2", "--tile", "32", "--batch-size", "4", "--workers", "2"]  # fmt: skip
    code, _, talk = bucket.run(*command, "--out", str(tmp_path / "run"))
    assert code == 0, talk
    there = [*command, "--out", "s3://scenes/run"]
    with subprocess.Popen(
        [sys.executable, "-m", "raysegment", *there, "--quiet"],
        env=bucket.environment,
        stderr=subprocess.PIPE,
    ) as process:
        until = time.monotonic() + 200
        while "run/last/state.pt" not in bucket.keys("run/"):
            assert time.monotonic() < until
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
    assert "run/last/lock" in bucket.keys("run/")
    code, answer, talk = bucket.run(*there, "--resume")
    assert code == 0, talk
    assert "go on to train" in talk
    assert answer["model"] == "s3://scenes/run/model.safetensors"
    held = bucket.files("run")
    assert held["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert held.keys() >= {"metrics.jsonl", "config.toml", "run.json", "report.html", "last/state.pt"}
    assert not [name for name in held if name.startswith(("last/ray", "last/lock", "last/stop"))]
    code, again, _ = bucket.run(*there)
    assert (code, again["steps"]) == (0, answer["steps"])
