"""`infer` in a test cluster whose head, where the driver runs, has no GPU, and whose one node says it has: a process of
its own.

python tests/gpu_nodes.py SOURCE MODEL OUT
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from raysegment import console
from raysegment.errors import UsageError
from raysegment.inference.run import infer
from raysegment.runtime.device import traits


def main(source: str, model: str, out: str) -> None:
    os.environ["PLACES"] = str(Path(tempfile.mkdtemp(prefix="rs", dir=Path(out).parent)) / "places.jsonl")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 10**8})
    node = cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=10**8)
    how: dict[str, Any] = {"tile": 64, "overlap": 16, "block": 180, "precision": "fp32", "batch_size": 1}
    try:
        os.environ["RAY_ADDRESS"] = cluster.address
        refused = ""
        try:
            infer(source, model=model, out=out, **how)
        except UsageError as e:
            refused = str(e)
        assert not ray.is_initialized()

        environment = {"worker_process_setup_hook": pretend, "env_vars": {"PLACES": os.environ["PLACES"]}}
        ray.init(cluster.address, logging_level="ERROR", log_to_driver=False, runtime_env=environment)
        found = traits("cuda")
        holder = ray.remote(num_gpus=1, num_cpus=0)(_Holder).remote()
        ray.get(holder.hold.remote())
        threading.Timer(8, ray.kill, [holder]).start()
        console.configure("human")
        with contextlib.redirect_stderr(io.StringIO()) as talk:
            result = infer(source, model=model, out=out, self_check=True, **how)
        places = [json.loads(line) for line in Path(os.environ["PLACES"]).read_text().splitlines()]
        said = {
            "refused": refused,
            "traits": [found.name, found.fast_bf16, found.memory],
            "node": node.node_id,
        }
        said |= {"talk": talk.getvalue(), "places": places, "calibration": result.calibration_pixels}
        print(json.dumps(said))
    finally:
        ray.shutdown()
        cluster.shutdown()


class _Holder:
    def hold(self) -> None:
        """It is there, and keeps its GPU."""


def pretend() -> None:
    """In every process of a worker: torch has a GPU whose tensors are the CPU's; says where a network is set up."""
    from types import SimpleNamespace

    import torch

    from raysegment.inference.network import Network

    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_properties = lambda _: SimpleNamespace(name="pretended", total_memory=40 << 30)
    torch.cuda.get_device_capability = lambda _: (9, 0)
    set_up = Network.__init__

    def on_cpu(self: Any, model: Any, plan: Any) -> None:
        here = ray.get_runtime_context()
        place = [plan.device, here.get_node_id(), here.get_actor_id() is not None, len(ray.get_gpu_ids())]
        with Path(os.environ["PLACES"]).open("a") as places:
            places.write(json.dumps(place) + "\n")
        set_up(self, model, plan.model_copy(update={"device": "cpu"}))

    Network.__init__ = on_cpu


if __name__ == "__main__":
    main(*sys.argv[1:])
