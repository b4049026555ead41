"""The loop on Ray Train's workers: started, started again when one dies, followed, stopped.

What the workers do is in `loop.py`, and where they stand is in RUN/last, which every start goes on from. Nothing
else of Ray's state is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from raysegment import console, errors
from raysegment.console import counted
from raysegment.errors import RaysegmentError, WorkError
from raysegment.runtime import cluster, is_connected
from raysegment.storage import Url
from raysegment.storage.objects import Entry, entries, put, remove
from raysegment.training.loop import Job, work
from raysegment.training.parallel import Stopped, Workers
from raysegment.training.progress import follow
from raysegment.training.run import RunFolder, write_json
from raysegment.training.team import Team, cluster_nodes, say_if_busy

#: Deaths that a run survives without a new checkpoint in between; with one, any number.
_MAX_FAILURES = 3
#: How long an elastic team waits for as many workers as Ray last counted, before Ray counts again.
_ELASTIC_START_S = 10
#: How long an interrupted run may take to write its checkpoint; and where Ray, and so the workers, outlive the call.
_STOP_S, _STOP_BORROWED_S = 20.0, 120.0


def launch(job: Job, team: Team, check: Callable[[], None]) -> None:
    """Run the job on Ray Train's workers and show how far it is. Raises what stopped it.

    `check`: asked now and then, raises when the run belongs to another process.
    """
    run = replace(job.run, launch=f"-{secrets.token_hex(4)}")
    job = replace(job, run=run)
    borrowed = is_connected()
    remove(run.failure)
    with cluster(team.most * team.threads, dashboard=console.is_verbose()):
        say_if_busy(team)
        training = _Training(job, team)
        training.start()
        try:
            follow(training.ended, job, training.lack, check)
        except BaseException:
            check()  # at their end ours would write a checkpoint over that of who took over
            put(run.stop, b"", survives=False)
            if run.progress.exists():  # otherwise there are no workers yet, and those to come see it at once
                training.ended.wait(_STOP_BORROWED_S if borrowed else _STOP_S)
            raise
        finally:
            if training.ended.is_set() or not borrowed:
                remove(run.stop)
    if isinstance(run.ray, Path):
        shutil.rmtree(run.ray, ignore_errors=True)
    _raise_failure(run, training.error)


class _Training(threading.Thread):
    """Ray Train's fit(), aside: so the main thread can show progress, and keeps Ctrl-C to itself."""

    def __init__(self, job: Job, team: Team) -> None:
        super().__init__(name="ray-train", daemon=True)
        self.job, self.team = job, team
        self.error: Exception | None = None
        self.ended = threading.Event()
        """Not is_alive(): a signal during join() makes Python 3.11 believe that the thread has ended."""

    def run(self) -> None:
        try:
            while True:
                stood = self._checkpointed()
                with _own_folder(self.job.run) as folder:
                    self.error = self._fit(folder)
                if self.error is None or self._checkpointed() == stood:
                    return
        except Exception as e:  # handed to the main thread, which says it
            self.error = e
        finally:
            self.ended.set()

    def lack(self) -> str | None:
        """What Ray Train waits for, None when there is room."""
        room = self.team.room(cluster_nodes())
        if room >= self.team.least:
            return None
        return f"room for {room} of {counted(self.team.least, 'worker')} in this Ray now: waiting for a node"

    def _fit(self, folder: str) -> Exception | None:
        """Train until the end, or until too many workers have died: then, with what. `folder`: of Ray Train's files."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer

        team = self.team
        if team.least < team.most:  # for a minute by default: that long a dead node counts
            os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_ELASTIC_START_S))
        count: Any = team.most if team.least == team.most else (team.least, team.most)  # two numbers: elastic
        trainer = TorchTrainer(
            ray_worker,
            train_loop_config={"job": self.job, "team": team},
            torch_config=TorchConfig(backend="nccl" if team.gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=count,
                use_gpu=team.gpus > 0,
                resources_per_worker=team.resources,
            ),
            run_config=RunConfig(
                name="run",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=_MAX_FAILURES),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as e:
            return e
        return None

    def _checkpointed(self) -> Entry | None:
        """The last checkpoint, as the storage lists it; None before the first."""
        return entries(self.job.run.state).get("")


@contextlib.contextmanager
def _own_folder(run: RunFolder) -> Iterator[str]:
    """A folder for Ray Train's own files, empty: it would resume from what is there.

    Ray is given no checkpoint, so a run at a URL has it on this machine.
    """
    if isinstance(run.ray, Url):
        with tempfile.TemporaryDirectory(prefix="raysegment-", ignore_cleanup_errors=True) as folder:
            yield folder
        return
    shutil.rmtree(run.ray, ignore_errors=True)
    yield str(run.ray)


def ray_worker(config: dict[str, Any]) -> None:
    """What Ray Train calls on every worker.

    A failure with a name is written down and ends all workers in good order: it must not look like a death,
    which Ray Train would answer with another attempt.
    """
    job: Job = config["job"]
    team: Team = config["team"]
    if job.run.failure.exists() or job.run.stop.exists():
        return
    from ray.train import get_preemption_info

    device = torch.device("cpu")
    if team.gpus:
        from ray.train.torch import get_device

        device = get_device()
        torch.cuda.set_device(device)
    try:
        work(job, Workers(), device, team.threads, lambda: get_preemption_info() is not None)
    except Stopped as stopped:
        if stopped.error is not None and not job.run.stop.exists():  # nobody waits for what it would say
            _write_failure(job.run, stopped.error)
    except torch.OutOfMemoryError as e:
        # the others wait for this one in the middle of a step: only a death ends them
        _write_failure(
            job.run,
            WorkError(
                f"a batch does not fit into the GPU's memory ({str(e).splitlines()[0]}): "
                "give a smaller --batch-size or --tile, or --accumulate"
            ),
        )
        raise


def _write_failure(run: RunFolder, error: RaysegmentError) -> None:
    write_json(run.failure, {"type": type(error).__name__, "text": str(error)}, survives=False)


def _raise_failure(run: RunFolder, error: Exception | None) -> None:
    if run.failure.exists():
        failure = json.loads(run.failure.read_text(encoding="utf-8"))
        kind = getattr(errors, failure["type"], WorkError)
        raise kind(failure["text"])
    if error is not None:
        cause = str(error).strip().splitlines()
        raise WorkError(
            f"a worker failed {_MAX_FAILURES + 1} times, last with: {cause[-1] if cause else type(error).__name__}; "
            "run the same command again to go on from the last checkpoint"
        ) from error
