"""Nights on an object store, with and without rights: a real S3 server (moto), the command line, real Ray."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_batch import save_image, save_unet

pytest.importorskip("moto")

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
IMAGES = 40
JOB = """
name = "nightly"
[input]
paths = ["s3://bucket/scenes/{images}"]
[model]
path = "s3://bucket/models/unet.safetensors"
[output]
path = "s3://bucket/{folder}/{{date}}/{{stem}}.zarr"
[infer]
precision = "fp32"
workers = 2
"""


class Bucket:
    """The server, and how commands reach it."""

    def __init__(self, endpoint: str, rules: Path) -> None:
        self.endpoint, self.rules = endpoint, rules
        secrets = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        region = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        self.environment = {**os.environ, "AWS_ENDPOINT_URL": endpoint, **secrets, **region}

    def refuse(self, *rules: str) -> None:
        """From now on, these and nothing else: see refusing_s3.py."""
        self.rules.write_text("\n".join(rules))

    def put(self, key: str, data: bytes | None = None, method: str = "PUT") -> None:
        request = urllib.request.Request(f"{self.endpoint}/bucket{key}", data=data, method=method)
        request.add_header("Content-Type", "application/octet-stream")  # or the server takes it for a form
        credential = "test/20260101/us-east-1/s3/aws4_request"  # it checks no signature, but asks for one
        signature = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature=0"
        request.add_header("Authorization", signature)
        with urllib.request.urlopen(request, timeout=30):
            pass

    @property
    def fs(self) -> Any:
        import fsspec

        settings = {"endpoint_url": self.endpoint, "key": "test", "secret": "test"}
        return fsspec.filesystem("s3", **settings, skip_instance_cache=True)

    def files(self, prefix: str) -> dict[str, bytes]:
        """Every object below a prefix, by its name there."""
        root, fs = f"bucket/{prefix}", self.fs
        return {path.removeprefix(root): fs.cat_file(path) for path in fs.find(root)}

    def start(self, job: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "raysegment", "batch", str(job), "--json"],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def night(self, job: Path, code: int = 0) -> dict[str, Any]:
        """One run to its end; its JSON and how long it took."""
        began, run = time.monotonic(), self.start(job)
        out, said = run.communicate(timeout=500)
        assert run.returncode == code, said
        return {**json.loads(out.splitlines()[-1]), "took_s": time.monotonic() - began}


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rules = tmp_path / "refused"
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("refusing_s3.py")), str(port), str(rules)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        made = Bucket(f"http://127.0.0.1:{port}", rules)
        made.refuse()
        for _ in range(300):
            try:
                made.put("")
                break
            except OSError:
                time.sleep(0.1)
        save_unet(tmp_path / "unet.safetensors", 0)
        made.put("/models/unet.safetensors", (tmp_path / "unet.safetensors").read_bytes())
        yield made
    finally:
        server.terminate()
        server.wait()


def fill(bucket: Bucket, tmp_path: Path, count: int = IMAGES) -> None:
    for i in range(count):
        save_image(tmp_path / "i.tif", i)
        bucket.put(f"/scenes/day{i % 2}/s{i}.tif", (tmp_path / "i.tif").read_bytes())


def test_night_after_night(bucket: Bucket, tmp_path: Path) -> None:
    fill(bucket, tmp_path)
    job = tmp_path / "job.toml"
    job.write_text(JOB.format(folder="masks", images="**/*.tif"))
    whole = (tmp_path / "i.tif").read_bytes()
    bucket.put("/scenes/day0/s6.tif", whole[:6000])

    first = bucket.night(job, code=3)
    assert (first["done"], first["failed"], first["images"]) == (39, 1, 40)
    report = json.loads(bucket.fs.cat_file(first["report"]))
    (failed,) = [image for image in report["images"] if image["state"] == "failed"]
    assert failed["source"] == "s3://bucket/scenes/day0/s6.tif"
    assert "broken" in failed["reason"]

    second = bucket.night(job)
    assert (second["done"], second["skipped"]) == (0, 40)
    assert second["took_s"] < 15

    bucket.put("/scenes/day0/s6.tif", whole)
    third = bucket.night(job)
    assert (third["done"], third["skipped"]) == (1, 39)

    save_unet(tmp_path / "unet.safetensors", 1)
    bucket.put("/models/unet.safetensors", (tmp_path / "unet.safetensors").read_bytes())
    fourth = bucket.night(job)
    assert (fourth["done"], fourth["skipped"]) == (40, 0)


def test_killed_in_the_middle_the_rerun_gives_the_same_bytes(bucket: Bucket, tmp_path: Path) -> None:
    fill(bucket, tmp_path)
    job, other = tmp_path / "job.toml", tmp_path / "other.toml"
    few = "day1/s1*.tif"  # of the forty: s1, s11, s13 … s19
    job.write_text(JOB.format(folder="masks", images=few))
    other.write_text(JOB.format(folder="others", images=few))
    first, finished = bucket.start(job), 0
    deadline = time.monotonic() + 200
    while finished < 2 and time.monotonic() < deadline:
        assert first.poll() is None, first.communicate()
        finished = sum(name.endswith(".zarr/zarr.json") for name in bucket.fs.find("bucket/masks"))
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert bucket.night(job)["failed"] == 0
    assert bucket.night(other)["done"] == 6
    ours, theirs = (
        {name: data for name, data in bucket.files(folder).items() if ".raysegment" not in name}
        for folder in ("masks", "others")
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (["LIST /bucket/scenes"], "cannot list s3://bucket/scenes/**/*.tif: no right to"),
        (["GET /bucket/scenes/", "HEAD /bucket/scenes/"], "s3://bucket/scenes/day1/s1.tif: no right to"),
        (["GET /bucket/models/", "HEAD /bucket/models/"], "s3://bucket/models/unet.safetensors: no right to"),
        (["GET /bucket/masks/", "HEAD /bucket/masks/"], "nightly/ledger.json: no right to"),
        (["PUT /bucket/masks/"], "[output] path: cannot write s3://bucket/masks/"),
        (["PUT /bucket/masks/.raysegment/"], "[ledger] path: cannot write"),
    ],
)  # fmt: skip
def test_without_a_right_it_says_which_before_any_work(
    bucket: Bucket, tmp_path: Path, rules: list[str], said: str
) -> None:
    fill(bucket, tmp_path, count=2)
    job = tmp_path / "job.toml"
    job.write_text(JOB.format(folder="masks", images="**/*.tif"))
    bucket.refuse(*rules)
    assert said in refused(bucket, job)
    bucket.refuse()
    assert bucket.files("masks") == {}
    if "s1.tif" in said:  # of one image alone, it is that image's
        bucket.refuse("GET /bucket/scenes/day0/s0.tif", "HEAD /bucket/scenes/day0/s0.tif")
        assert bucket.night(job, code=3)["done"] == 1
        bucket.refuse()
        night = bucket.night(job)  # it is tried again by itself: it was not the image that failed
        assert (night["done"], night["skipped"]) == (1, 1)


def test_a_model_that_vanished_is_one_line(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("/models/unet.safetensors", method="DELETE")
    job = tmp_path / "job.toml"
    job.write_text(JOB.format(folder="masks", images="**/*.tif"))
    assert "cannot read s3://bucket/models/unet.safetensors: it does not exist" in refused(bucket, job)


def refused(bucket: Bucket, job: Path) -> str:
    """The one line that a run which exits 2 says."""
    run = bucket.start(job)
    out, said = run.communicate(timeout=120)
    assert run.returncode == 2, said
    assert json.loads(out)["exit_code"] == 2
    (line,) = said.splitlines()
    return line
