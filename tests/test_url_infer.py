"""`infer` between buckets: an S3 double on loopback, the command line in processes of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from web import serve

from raysegment.model.architectures import build
from raysegment.model.file import save_model
from raysegment.model.spec import ModelSpec, default_classes

pytest.importorskip("s3fs")
pytest.importorskip("moto")
pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ["--tile", "128", "--overlap", "32", "--precision", "fp32", "--workers", "1", "--block", "384"]


class Bucket:
    """A bucket of the double, by its own plain requests: no part of what is tested takes part."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def ask(self, method: str, key: str, data: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"{self.endpoint}/scenes{key}", data=data, method=method)
        request.add_header("Content-Type", "application/octet-stream")  # or the double takes it for a form
        credential = "test/20260101/us-east-1/s3/aws4_request"  # it checks no signature, but asks for one
        request.add_header(
            "Authorization", f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature=0"
        )
        with urllib.request.urlopen(request) as answer:
            return bytes(answer.read())

    def keys(self, prefix: str) -> list[str]:
        text = self.ask("GET", f"?list-type=2&prefix={prefix}").decode()
        return [part.partition("</Key>")[0] for part in text.split("<Key>")[1:]]

    def files(self, prefix: str) -> dict[str, bytes]:
        return {key.removeprefix(prefix + "/"): self.ask("GET", f"/{key}") for key in self.keys(prefix + "/")}

    def run(self, *arguments: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, --json and talk of a command."""
        command = [sys.executable, "-m", "raysegment", *arguments, "--json"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300)
        return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    found = Bucket(f"http://127.0.0.1:{port}")
    try:
        for _ in range(100):
            try:
                found.ask("PUT", "")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        yield found
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bucket: Bucket) -> Path:
    """A scene and a model, on the disk and in the bucket."""
    path = tmp_path_factory.mktemp("here")
    pixels = np.random.default_rng(0).integers(1, 256, (1500, 1300, 3), dtype=np.uint8)
    pixels[:, :100] = 0
    tifffile.imwrite(
        path / "scene.tif",
        pixels,
        tile=(256, 256),
        compression="deflate",
        extratags=[(42113, "s", 0, "0", True)],
    )
    architecture = {"name": "unet", "in_channels": 3, "out_channels": 2, "base_width": 4, "depth": 2}
    spec = ModelSpec(classes=default_classes(2), channels=3, multiple=4, tile=128, architecture=architecture)
    save_model(build(architecture), spec, path / "model.safetensors")
    for name in ("scene.tif", "model.safetensors"):
        bucket.ask("PUT", f"/{name}", (path / name).read_bytes())
    return path


def local_files(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def without_source(files: dict[str, bytes]) -> dict[str, bytes]:
    """The root says which source it was made from: another identity at a URL than on a disk. So does level 0, and what
    was asked for beside the mask."""
    root, level = (json.loads(files[name]) for name in ("zarr.json", "0/zarr.json"))
    own = root["attributes"].get("raysegment") or root["attributes"]["raysegment_field"]
    del own["recipe"]["source"], level["attributes"]
    return {**files, "zarr.json": json.dumps(root).encode(), "0/zarr.json": json.dumps(level).encode()}


@pytest.fixture(scope="module")
def here(folder: Path, bucket: Bucket) -> Path:
    """The mask of the scene, on the disk."""
    out = folder / "mask.zarr"
    code, _, talk = bucket.run(
        "infer",
        f"{folder}/scene.tif",
        "--model",
        f"{folder}/model.safetensors",
        "--out",
        str(out),
        "--uncertainty",
        *SETTINGS,
    )
    assert code == 0, talk
    return out


def infer(bucket: Bucket, out: str, *more: str) -> tuple[int, dict[str, Any], str]:
    source, model = "s3://scenes/scene.tif", "s3://scenes/model.safetensors"
    return bucket.run("infer", source, "--model", model, "--out", out, *SETTINGS, *more)


def test_a_mask_in_a_bucket_has_the_bytes_of_one_on_a_disk(bucket: Bucket, here: Path) -> None:
    code, answer, talk = infer(bucket, "s3://scenes/out/mask.zarr", "--uncertainty")
    assert code == 0, talk
    assert answer["output"] == "s3://scenes/out/mask.zarr"
    assert without_source(bucket.files("out/mask.zarr")) == without_source(local_files(here))
    side = local_files(here.with_name("mask.uncertainty.zarr"))
    assert without_source(bucket.files("out/mask.uncertainty.zarr")) == without_source(side)
    assert {key.split("/")[1] for key in bucket.keys("out/")} == {"mask.zarr", "mask.uncertainty.zarr"}
    started = time.monotonic()
    code, again, _ = infer(bucket, "s3://scenes/out/mask.zarr", "--uncertainty")
    assert (code, again["already_done"]) == (0, True)
    assert time.monotonic() - started < 30
    code, judged, _ = bucket.run("evaluate", "s3://scenes/out/mask.zarr", str(here))
    assert (code, judged["accuracy"]) == (0, 1.0)
    code, looked, _ = bucket.run("inspect", "s3://scenes/out/mask.zarr")
    assert (code, looked["kind"], looked["shape"]) == (0, "mask", [1500, 1300])


@pytest.mark.slow
def test_a_killed_run_goes_on(bucket: Bucket, here: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "raysegment",
        "infer",
        "s3://scenes/scene.tif",
        "--out",
        "s3://scenes/killed.zarr",
    ]
    command += ["--model", "s3://scenes/model.safetensors", *SETTINGS]
    run = subprocess.Popen(command, env=bucket.environment, stderr=subprocess.DEVNULL)
    try:
        while len(bucket.keys("killed.zarr.scratch/records/")) < 3:
            assert run.poll() is None
            time.sleep(0.05)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert "killed.zarr.scratch/lock" in bucket.keys("killed.zarr.scratch/")
    code, answer, talk = infer(bucket, "s3://scenes/killed.zarr")
    assert code == 0, talk
    assert answer["blocks_resumed"] >= 3
    assert without_source(bucket.files("killed.zarr")) == without_source(local_files(here))
    assert not bucket.keys("killed.zarr.scratch/")


@pytest.mark.slow
def test_a_glob_names_all_that_match(bucket: Bucket, folder: Path, here: Path) -> None:
    data = (folder / "scene.tif").read_bytes()
    for name in ("a.tif", "deep/b.tif"):
        bucket.ask("PUT", f"/night/{name}", data)
    code, answer, talk = bucket.run(
        "infer",
        "s3://scenes/night/**/*.tif",
        "--model",
        f"{folder}/model.safetensors",
        "--out",
        "s3://scenes/masks",
        *SETTINGS,
    )
    assert code == 0, talk
    assert [image["output"] for image in answer["images"]] == [
        "s3://scenes/masks/a.zarr",
        "s3://scenes/masks/b.zarr",
    ]
    for name in ("a", "b"):
        found = bucket.files(f"masks/{name}.zarr")
        shards = {key: data for key, data in local_files(here).items() if "/c/" in key}
        assert {key: data for key, data in found.items() if "/c/" in key} == shards


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["s3://scenes/none.tif", "--out", "s3://scenes/x.zarr"], "s3://scenes/none.tif does not exist"),
        (["s3://scenes/*.png", "--out", "s3://scenes/x.zarr"], "matches no file"),
        (["s3://scenes/scene.tif", "--out", "s3://nowhere/x.zarr"], "does not exist"),
        (["s3://scenes/scene.tif", "--out", "https://host/x.zarr"], "https:// can only be read"),
        (["ftp://host/scene.tif", "--out", "s3://scenes/x.zarr"], "ftp:// cannot be opened"),
    ],
)
def test_what_cannot_be_is_said_before_work(
    bucket: Bucket, folder: Path, arguments: list[str], message: str
) -> None:
    code, answer, _ = bucket.run("infer", *arguments, "--model", f"{folder}/model.safetensors")
    assert code == 2
    assert message in answer["error"]
    assert "\n" not in answer["error"]


def test_a_bucket_without_rights_is_one_line(bucket: Bucket, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "scene.tif", tmp_path)
    with serve(tmp_path) as web:
        web.failures = [403] * 1000
        refused = Bucket(web.url)
        model = ["--model", f"{folder}/model.safetensors"]
        code, answer, _ = refused.run("infer", "s3://secret/a.tif", *model, "--out", str(tmp_path / "m.zarr"))
        assert (code, answer["exit_code"]) == (2, 2)
        assert "s3://secret/a.tif: no right to" in answer["error"]
        code, answer, _ = refused.run("infer", f"{tmp_path}/scene.tif", *model, "--out", "s3://secret/m.zarr")
        assert code == 2
        assert "no right to" in answer["error"]


@pytest.mark.slow
def test_an_object_that_is_no_more_stops_the_job_even_where_damage_is_skipped(
    bucket: Bucket, folder: Path, tmp_path: Path
) -> None:
    shutil.copy(folder / "scene.tif", tmp_path)
    with serve(tmp_path) as web:
        out = tmp_path / "mask.zarr"
        command = [
            "infer",
            f"{web.url}/scene.tif",
            "--model",
            f"{folder}/model.safetensors",
            "--out",
            str(out),
        ]
        command += [*SETTINGS, "--on-error", "skip"]
        run = subprocess.Popen(
            [sys.executable, "-m", "raysegment", *command],
            env=bucket.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not list((tmp_path / "mask.zarr.scratch" / "records").glob("*/*.safetensors")):
            assert run.poll() is None
            time.sleep(0.01)
        (tmp_path / "scene.tif").unlink()
        _, talk = run.communicate(timeout=120)
        assert run.returncode == 1
        assert "scene.tif: it does not exist" in talk
        shutil.copy(folder / "scene.tif", tmp_path)
        code, answer, talk = bucket.run(*command)
        assert code == 0, talk
        assert answer["failed_regions"] == []
