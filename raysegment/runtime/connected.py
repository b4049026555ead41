"""A running cluster, whose driver this process becomes: its checks, its room, and what its nodes see."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from raysegment import console
from raysegment.console import counted
from raysegment.errors import UsageError
from raysegment.runtime.address import Address, reach, undisturbed
from raysegment.runtime.embedded import OURS, PRIVATE, hushed, is_connected
from raysegment.runtime.security import find_token, present_token, use_token
from raysegment.runtime.signals import same_sigterm

#: Seconds (tries, one each) for Ray to say yes; by itself it takes 20 to refuse a wrong token.
_CONNECT_TRIES = "5"
#: How long a node may take to look at a folder: the first task there starts a process and unpacks the package.
_LOOK_S = 60.0
#: How long Ray may go on to count as taken what our own task before has given back.
_FREED_S = 2.0


@contextlib.contextmanager
def connected(address: Address, *, allow_insecure: bool = False) -> Iterator[None]:
    """Be a driver of the cluster for the time of the block.

    Raises UsageError, in seconds, when that cannot be, and for one on the network that asks for no token, unless
    `allow_insecure`; a submitted job is in a cluster that was looked at when it was submitted.
    """
    if is_connected():
        yield
        return
    reach(address)
    if _is_within_job():
        use_token()
    else:
        present_token(address, allow_insecure=allow_insecure)
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", _CONNECT_TRIES)
    with undisturbed(), hushed() as quiet, _mapped(address), same_sigterm():
        import ray

        ray.init(
            address=address.text,
            runtime_env=_own_package(),
            log_to_driver=not quiet,
            logging_level=logging.ERROR if quiet else logging.INFO,
        )
    try:
        if PRIVATE in ray.cluster_resources():
            raise UsageError(
                f"{address}: that Ray belongs to another raysegment and ends with it: start a cluster, or leave it out"
            )
        yield
    finally:
        with same_sigterm():
            ray.shutdown()


def _own_package() -> dict[str, list[str]] | None:
    """This very package for all nodes; None within a submitted job, which brought it along."""
    return None if _is_within_job() else {"py_modules": [str(Path(__file__).parents[1])]}


def _is_within_job() -> bool:
    """Whether this process is a submitted job's."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


@contextlib.contextmanager
def _mapped(address: Address) -> Iterator[None]:
    try:
        yield
    except ConnectionError as e:
        if address.host is None and "find any running" in str(e):
            raise UsageError(
                f"{address}: no Ray cluster runs on this machine: start one, or name its host"
            ) from e
        token = "Ray's token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token)"
        reason = (
            f"{token} is not the cluster's" if find_token() else f"it may ask for {token}, and there is none"
        )
        raise UsageError(
            f"{address}: the cluster does not let us in: {reason}, or this is not Ray's own port"
        ) from e
    except (RuntimeError, ValueError) as e:
        text = str(e)
        versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", text)
        if "ersion mismatch" in text and len(versions) == 2:
            (ray, python), (our_ray, our_python) = versions
            raise UsageError(
                f"{address} runs Ray {ray} on Python {python}, here are Ray {our_ray} and Python {our_python}: "
                "both must be the same; or submit to http://HOST:8265"
            ) from e
        if "is not" in text or "none of these match" in text or "raylet" in text:
            raise UsageError(
                f"{address}: this machine is no node of that cluster: submit to http://{address.host}:8265 instead"
            ) from e
        raise UsageError(f"{address}: {text.strip().splitlines()[0]}") from e


def is_foreign() -> bool:
    """Whether the Ray that is connected is another than one of our own."""
    return not OURS.is_set() and is_connected()


def fitted(asked: int | None, *, cpus: int, gpus: int, memory: int) -> int | None:
    """How many workers of `cpus`, `gpus` and `memory` bytes to have: `asked`, or as many as find room in the cluster.

    None in a Ray of our own, which makes room. Raises UsageError when not even one finds room and none was `asked`
    for by number: a cluster that begins with no workers makes room when it is asked.
    """
    if not is_foreign():
        return asked
    import ray

    wanted = {name: n for name, n in (("CPU", cpus), ("GPU", gpus), ("memory", memory)) if n}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(min(int(node.get(name, 0) // n) for name, n in wanted.items()) for node in nodes)
    needs = ", ".join(
        f"{n / (1 << 30):.1f} GiB memory" if k == "memory" else f"{n} {k}" for k, n in wanted.items()
    )
    if room == 0 and asked is None:
        raise UsageError(
            f"no node of this cluster has room for a worker of {needs}: add one, ask for less, or, where it grows by "
            "itself, give --workers a number"
        )
    if asked is not None and asked > room:
        console.say(
            f"{room} of {counted(asked, 'worker')} of {needs} find room in this cluster: the others wait for more nodes"
        )
    say_if_taken(wanted)
    return asked or room


def say_if_taken(wanted: Mapping[str, int]) -> None:
    """Ray waits without a word for what others hold."""
    import ray

    until = time.monotonic() + _FREED_S
    while True:
        free = ray.available_resources()
        taken = [name for name in ("CPU", "GPU") if free.get(name, 0) < wanted.get(name, 0)]
        if not taken or time.monotonic() >= until:
            break
        time.sleep(0.1)
    for name in taken:
        console.say(f"all {name}s of this cluster are taken: waiting for {wanted[name]}")


def check_shared(reads: Sequence[str], writes: Sequence[str]) -> None:
    """Raise UsageError when a node that works does not see a folder written to, or a path read from, as this one does.

    One task per further node looks for the paths, and for a small file that is put into the folders.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    working = [node for node in nodes if node["Resources"].get("CPU") or node["Resources"].get("GPU")]
    if not working:
        return
    looked = [path for path in reads if os.path.exists(path)]
    with _marks(writes) as marks:
        look = ray.remote(num_cpus=0, max_retries=1)(missing)
        asked = {
            look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote([*looked, *marks]): node["NodeManagerHostname"]
            for node in working
        }
        answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_LOOK_S)
        for reference in answered:
            with _may_be_gone(asked[reference]):
                for path in ray.get(reference):
                    raise UsageError(
                        f"node {asked[reference]} does not see {marks.get(path, path)}: put it on storage that all "
                        "nodes share"
                    )
    if silent:
        console.warn(f"node {asked[silent[0]]} did not say within {_LOOK_S:.0f} s whether it sees all paths")


def missing(paths: Sequence[str]) -> list[str]:
    """Those of the paths that this node does not see."""
    return [path for path in paths if not os.path.exists(path)]


@contextlib.contextmanager
def _marks(folders: Sequence[str]) -> Iterator[dict[str, str]]:
    """A new file near each of the folders for the time of the block, with the folder it stands for."""
    marks: dict[str, str] = {}
    try:
        for folder in folders:
            place = next(p for p in (Path(folder), *Path(folder).parents) if p.is_dir())
            if place.suffix == ".zarr":  # finished stores hold what belongs to them, nothing else
                place = place.parent
            mark = place / f".raysegment-{secrets.token_hex(8)}"
            try:
                mark.touch()
            except OSError as e:
                raise UsageError(f"cannot write to {place}: {e.strerror}") from e
            marks[str(mark)] = folder
        yield marks
    finally:
        for name in marks:
            Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def _may_be_gone(node: str) -> Iterator[None]:
    """A node that leaves in this moment is the scheduler's business."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as e:
        console.warn(f"node {node} did not look at the paths: {type(e).__name__}")
