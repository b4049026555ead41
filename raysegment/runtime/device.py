"""Which device the workers of a run have, and how what must be known of it is found out where it is.

In a Ray of our own it is this machine's. In a cluster it is its nodes': the driver's machine, often a head without a
GPU, says nothing of them.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from raysegment import console
from raysegment.errors import RaysegmentError, UsageError, WorkError
from raysegment.hardware import available_memory, has_fast_bf16, pick_device
from raysegment.runtime.connected import is_foreign, say_if_taken

Device = Literal["cpu", "cuda"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Traits:
    """What must be known of a device before training on it."""

    name: str
    fast_bf16: bool
    memory: int
    """Bytes: of one GPU, or of this machine."""


def worker_device(wish: str = "auto", *, may_come: bool = False) -> Device:
    """The device of this run's workers; `auto`: a GPU where there is one.

    `may_come`: workers are asked for by number, for which a cluster may get its first nodes with a GPU.
    Raises UsageError for "cuda" where there is no GPU, and none may come.
    """
    if not is_foreign():
        return "cuda" if pick_device(wish).type == "cuda" else "cpu"
    if wish == "cpu":
        return "cpu"
    if _cluster_has_gpu():
        return "cuda"
    if wish == "auto":
        if may_come:
            console.say(
                "no node of this cluster has a GPU now: planning for cpu; --device cuda waits for one"
            )
        return "cpu"
    if not may_come:
        raise UsageError(
            "device cuda was asked for, but no node of this cluster has a GPU: give cpu or auto, or, where the cluster "
            "grows by itself, give --workers a number"
        )
    return "cuda"


def is_here(device: Device) -> bool:
    """Whether this process can use such a device itself."""
    import torch

    return device == "cpu" or torch.cuda.is_available()


@contextlib.contextmanager
def borrowed(device: Device) -> Iterator[None]:
    """Within, a network may be tried in this process. After, torch has the threads it had, and what its allocator holds
    of a GPU is free for the workers."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if device == "cuda":
            torch.cuda.empty_cache()


def on_gpu(work: Callable[..., T], *args: Any) -> T:
    """Do `work` in one task of this cluster that has a GPU to itself; says so when it has to wait for one.

    Raises what of our errors `work` raises; UsageError where torch finds no GPU there; WorkError for all else.
    """
    import ray

    if _cluster_has_gpu():
        say_if_taken({"GPU": 1})
    else:
        console.say("no node of this cluster has a GPU yet: waiting for one")
    # Ray ends the process of such a task with it: it would keep memory of the GPU.
    task: Any = ray.remote(num_gpus=1, num_cpus=0)(_answered)
    try:
        answer = ray.get(task.remote(work, args))
    except ray.exceptions.RayError as e:
        raise WorkError(
            f"what was to be measured on a GPU of the cluster was lost ({type(e).__name__}): repeat the call"
        ) from e
    if isinstance(answer, RaysegmentError):
        raise answer
    return answer


def traits(device: Device) -> Traits:
    """Of this machine's CPUs, or of one GPU of this run's workers."""
    return _traits(device) if is_here(device) else on_gpu(_traits, device)


def _traits(device: Device) -> Traits:
    if device == "cpu":
        return Traits(platform.machine(), has_fast_bf16(device), available_memory())
    import torch

    found = torch.cuda.get_device_properties(0)
    return Traits(found.name, has_fast_bf16(device), found.total_memory)


def _answered(work: Callable[..., T], args: tuple[Any, ...]) -> T | RaysegmentError:
    """What `work` answers, or how it failed: raised in here, Ray would wrap it into a traceback."""
    try:
        if not is_here("cuda"):
            return UsageError(
                f"Ray counts a GPU on node {platform.node()}, but torch finds none there: install a CUDA build of "
                "torch, or give --device cpu (for train --gpus-per-worker 0)"
            )
        return work(*args)
    except RaysegmentError as e:
        return e
    except Exception as e:
        said = str(e).strip().splitlines()
        return WorkError(": ".join([f"on node {platform.node()}", type(e).__name__, *said[:1]]))


def _cluster_has_gpu() -> bool:
    import ray

    return bool(ray.cluster_resources().get("GPU", 0) >= 1)
