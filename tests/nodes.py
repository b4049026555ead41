"""Work over the nodes of a test cluster, one of which is killed or drained on the way: a process of its own, see `run`.

python tests/nodes.py train NODES kill|drain DATA OUT WORKERS OPTIONS
python tests/nodes.py batch NODES kill JOB.toml RECORDS
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

import raysegment as rs


def run(*words: object) -> tuple[float, dict[str, Any]]:
    """Of such a process: when it lost a node, in seconds since the epoch, and what it answered."""
    with tempfile.TemporaryDirectory(prefix="rs", dir="/tmp") as home:  # a socket's path ends at 107 bytes
        (Path(home) / "ray").mkdir()
        done = subprocess.run(
            [sys.executable, __file__, *map(str, words)],
            env={**os.environ, "RAY_TMPDIR": home, "RAY_health_check_period_ms": "1000"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return said[0]["disturbed"], said[1]


def train(count: str, action: str, data: str, out: str, workers: str, options: str) -> dict[str, Any]:
    """After two epochs, take a node that trains."""
    metrics = Path(out) / "metrics.jsonl"

    def is_time() -> bool:
        return metrics.is_file() and len(metrics.read_text().splitlines()) >= 2

    with _nodes(int(count), 1, action, "RayTrainWorker", is_time):
        result = rs.train(data, out=out, workers=workers, **json.loads(options))
        return {**result.to_json(), "ended": time.time()}


def batch(count: str, action: str, job: str, records: str) -> dict[str, Any]:
    """With thirty blocks on record, take a node that segments."""

    def is_time() -> bool:
        return len(list(Path(records).rglob("*.safetensors"))) >= 30

    with _nodes(int(count), 2, action, "InferenceWorker", is_time):
        return rs.batch(job).to_json()


@contextmanager
def _nodes(count: int, cpus: int, action: str, work: str, is_time: Callable[[], bool]) -> Iterator[None]:
    """A Ray of `count` nodes, besides a head that does no work; at its time, `action` on one that does `work`."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 10**8})
    nodes = [cluster.add_node(num_cpus=cpus, object_store_memory=10**8) for _ in range(count)]
    ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)

    def disturb() -> None:
        while not is_time():
            time.sleep(0.05)
        _disturb(cluster, next(node for node in nodes if _does(work, node)), action)

    threading.Thread(target=disturb, daemon=True).start()
    try:
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def _disturb(cluster: Any, node: Any, action: str) -> None:
    if action == "kill":
        cluster.remove_node(node, allow_graceful=False)
    else:
        from ray._raylet import GcsClient
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason

        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline_ms = int(1000 * time.time()) + 8000
        assert GcsClient(address=cluster.address).drain_node(node.node_id, reason, "", deadline_ms)[0]
    print(json.dumps({"disturbed": time.time()}), flush=True)


def _does(work: str, node: Any) -> bool:
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return any(work in " ".join(child.cmdline()) for child in raylet.children())


if __name__ == "__main__":
    answer = {"train": train, "batch": batch}[sys.argv[1]](*sys.argv[2:])
    print(json.dumps(answer))
