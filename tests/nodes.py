"""A training over the nodes of a test cluster, one of which is killed or drained on the way: a process of its own.

python tests/nodes.py DATA OUT WORKERS NODES kill|drain OPTIONS
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from raysegment.training import train


def main(data: str, out: str, workers: str, count: str, action: str, options: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 10**8})
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=10**8) for _ in range(int(count))]
    ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
    threading.Thread(target=_disturb, args=(cluster, nodes, Path(out), action), daemon=True).start()
    try:
        result = train(data, out=out, workers=workers, **json.loads(options))
        print(json.dumps({**result.to_json(), "ended": time.time()}))
    finally:
        ray.shutdown()
        cluster.shutdown()


def _disturb(cluster: Any, nodes: list[Any], out: Path, action: str) -> None:
    """After two epochs, take a node that trains."""
    metrics = out / "metrics.jsonl"
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= 2):
        time.sleep(0.05)
    node = next(node for node in nodes if _trains(node))
    if action == "kill":
        cluster.remove_node(node, allow_graceful=False)
    else:
        from ray._raylet import GcsClient
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason

        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline_ms = int(1000 * time.time()) + 8000
        assert GcsClient(address=cluster.address).drain_node(node.node_id, reason, "", deadline_ms)[0]
    print(json.dumps({"disturbed": time.time()}), flush=True)


def _trains(node: Any) -> bool:
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return any("RayTrainWorker" in " ".join(child.cmdline()) for child in raylet.children())


if __name__ == "__main__":
    main(*sys.argv[1:])
