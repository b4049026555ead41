"""cluster/: what stands there is what `schedule` renders, parses, fits KubeRay, and names one version of each thing."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from namespace import need

from raysegment.nightly.job import load_job
from raysegment.nightly.metrics import Metrics
from raysegment.scheduling import kuberay
from raysegment.scheduling.cron import cron
from raysegment.scheduling.kubernetes import kubernetes
from raysegment.scheduling.scheduler import Scheduler, Site
from raysegment.scheduling.slurm import slurm
from raysegment.scheduling.systemd import systemd

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
SITE = Site(
    job_file=Path("/etc/raysegment/nightly.toml"),
    folder=Path("/var/lib/raysegment"),
    python="/opt/raysegment/bin/python",
    user="raysegment",
    timezone="UTC",
    ray_version=PINS["ray"],
)
TEXTS = [p for p in sorted(CLUSTER.rglob("*")) if p.is_file()]
MANIFESTS = [p for p in TEXTS if p.suffix in (".yaml", ".yml")]


@pytest.mark.parametrize(
    ("scheduler", "folder"), [(cron, "cron"), (systemd, "systemd"), (slurm, "slurm"), (kubernetes, "kuberay")]
)
def test_the_files_of_the_nights_are_what_schedule_renders(scheduler: Scheduler, folder: str) -> None:
    for name, text in scheduler(load_job(CLUSTER / "nightly.toml"), SITE).files.items():
        assert (CLUSTER / folder / name).read_text() == text


def documents(path: Path) -> list[dict[str, Any]]:
    found = list(yaml.safe_load_all(path.read_text()))
    inner = [yaml.safe_load(d["data"]["rayjob.yaml"]) for d in found if d.get("kind") == "ConfigMap"]
    return [*found, *inner]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_every_manifest_parses_and_fits_kuberay_and_this_version_of_ray(path: Path) -> None:
    for document in documents(path):
        if document.get("apiVersion") == "ray.io/v1":
            kuberay.check(document)
            spec = document["spec"].get("rayClusterSpec", document["spec"])
            assert spec["rayVersion"] == PINS["ray"]
            assert spec["authOptions"] == {"mode": "token"}
        assert document.get("kind") not in ("Ingress", "Secret")


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_one_image_tag_for_one_version_of_everything(path: Path) -> None:
    tags = set(re.findall(r"/raysegment:(\S+?)[\"',\s]", path.read_text() + "\n"))
    assert tags <= {f"{VERSION}-ray{PINS['ray']}-{kind}" for kind in ("cpu", "gpu")}
    assert set(re.findall(r"\bRay (2\.\d+\.\d+)", path.read_text())) <= {PINS["ray"]}


def test_the_pin_is_within_what_the_package_asks_for() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (floor,) = (re.search(r">=([\d.]+)", line)[1] for line in asked if line.startswith("ray["))  # type: ignore[index]
    assert [int(n) for n in floor.split(".")] <= [int(n) for n in PINS["ray"].split(".")]
    docker = (CLUSTER / "Dockerfile").read_text()
    assert docker.count("-c constraints.txt") == docker.count("pip install")


@pytest.mark.parametrize(
    "path", [p for p in TEXTS if p.name not in ("README.md", "nightly.toml")], ids=lambda p: p.name
)
def test_every_file_says_what_it_needs_at_its_top(path: Path) -> None:
    assert "Needs: " in "".join(path.read_text().splitlines(keepends=True)[:6])


@pytest.mark.parametrize("path", sorted(CLUSTER.glob("ray-up/*.yaml")), ids=lambda p: p.name)
def test_ray_up_takes_the_files(path: Path) -> None:
    from jsonschema import validate

    config = yaml.safe_load(path.read_text())
    validate(config, json.loads((files("ray.autoscaler") / "ray-schema.json").read_text()))
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])


def test_every_link_of_the_readme_is_a_file() -> None:
    links = re.findall(r"\]\(([^)]+)\)", (CLUSTER / "README.md").read_text())
    assert [link for link in links if not (CLUSTER / link).exists()] == []
    named = {(CLUSTER / link) for link in links}
    assert [p for p in TEXTS if p.name != "README.md" and not {p, p.parent} & (named - {CLUSTER})] == []


@pytest.mark.parametrize("path", sorted(CLUSTER.glob("slurm/*.sbatch")), ids=lambda p: p.name)
def test_bash_reads_the_batch_scripts(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    need("systemd-analyze")
    for unit in (CLUSTER / "systemd").iterdir():  # the interpreter of the example is not on this machine
        (tmp_path / unit.name).write_text(unit.read_text().replace(SITE.python, "/bin/true"))
    units = sorted(map(str, tmp_path.iterdir()))
    said = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (0, "")


def shown() -> set[str]:
    """The metrics that the dashboard asks for."""
    dashboard = json.loads((CLUSTER / "monitoring/grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return set(re.findall(r"\bray_\w+", " ".join(expressions)))


def own() -> set[str]:
    """The metrics that a batch run has, as Prometheus spells them."""
    with patch("ray.util.metrics.Counter") as counter, patch("ray.util.metrics.Gauge") as gauge:
        Metrics("night", 3)
    counters = {f"ray_{call.args[0]}_total" for call in counter.call_args_list}
    return counters | {f"ray_{call.args[0]}" for call in gauge.call_args_list}


def test_the_dashboard_shows_all_that_batch_measures() -> None:
    assert {name for name in shown() if "raysegment" in name} == own()


@pytest.mark.slow
@pytest.mark.ray
def test_the_dashboard_asks_for_metrics_that_a_real_ray_has(tmp_path: Path) -> None:
    """A Ray of its own, for its metrics port; GPUs' figures are there only where GPUs are."""
    import sys

    script = """
import os, re, sys, time, urllib.request
import ray
from raysegment.nightly.metrics import Metrics
ray.init(address="local", num_cpus=3, _metrics_export_port=int(sys.argv[1]), log_to_driver=False)
metrics = Metrics("night", 3)
metrics.done(1.5, time.time())
metrics.failed()
@ray.remote
class InferenceWorker:
    def segment(self):
        time.sleep(60)
worker = InferenceWorker.remote()
worker.segment.remote()
wanted, end = set(sys.argv[2:]), time.monotonic() + 60
while wanted and time.monotonic() < end:
    time.sleep(1)
    page = urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/metrics").read().decode()
    wanted -= {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")}
at_work = {
    re.compile('^ray_actors{.*Name="InferenceWorker".*State="ALIVE_RUNNING_TASKS".* 1', re.M),
    re.compile('^ray_tasks{.*Name="InferenceWorker.segment".*State="RUNNING".* 1', re.M),
}
while at_work and time.monotonic() < end:
    at_work = {line for line in at_work if not line.search(page)}
    time.sleep(1)
    page = urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/metrics").read().decode()
print("missing:", sorted(wanted) + [line.pattern for line in at_work])
"""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    wanted = sorted(name for name in shown() if "gpu" not in name)
    done = subprocess.run(
        [sys.executable, "-c", script, str(port), *wanted],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.stdout.splitlines()[-1:] == ["missing: []"], done.stderr[-2000:]
