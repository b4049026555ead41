"""train(): a run from the folder of data to the folder of results, on Ray Train's workers.

Ray Train starts the workers and starts them again when one dies; what they do is in `loop.py`, and where
they stand is in RUN/last, which every start goes on from. Nothing else of Ray's state is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any, Literal

from raysegment import console, errors
from raysegment.errors import RaysegmentError, UsageError, WorkError
from raysegment.hardware import available_cores
from raysegment.training.loop import Job, work
from raysegment.training.parallel import Stopped, Workers
from raysegment.training.prepare import coding_text, job_of, prepare, request
from raysegment.training.progress import follow
from raysegment.training.report import write_report
from raysegment.training.resolution import Resampled
from raysegment.training.result import TrainResult
from raysegment.training.run import RunFolder, earlier_run, to_toml, write_json
from raysegment.training.settings import Settings
from raysegment.training.tracking import tracked, tracking_uri

#: Deaths of a worker that one run survives.
_MAX_FAILURES = 3


def train(
    data: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    val: str | float | os.PathLike[str] = 0.2,
    classes: str | os.PathLike[str] | None = None,
    epochs: int = 8,
    steps_per_epoch: int | None = None,
    batch_size: int | str = "auto",
    tile: int | None = None,
    pixel_size: float | None = None,
    sampling: Literal["uniform", "balanced"] = "uniform",
    lr: float = 3e-3,
    schedule: Literal["constant", "cosine", "poly"] = "cosine",
    warmup: int | None = None,
    loss: str = "ce+dice",
    class_weights: str = "none",
    augment: Literal["none", "light", "strong"] = "light",
    normalisation: Literal["auto", "zscore", "unit", "imagenet"] = "auto",
    architecture: str = "unet",
    pretrained: bool = False,
    allow_non_commercial: bool = False,
    deep_supervision: bool = False,
    base_width: int | None = None,
    depth: int | str = "auto",
    norm: Literal["batch", "group", "none"] = "batch",
    padding: Literal["same", "valid"] = "same",
    dropout: float | None = None,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    ema: bool = True,
    metric: str = "mean_iou",
    seed: int = 0,
    workers: int | str = "auto",
    mlflow: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> TrainResult:
    """Train a U-Net on `data`, a training set in any form of :mod:`raysegment.training.forms`, and write the run to the
    folder `out`.

    `val`: the share of the images (the last by name), or another training set, to validate on; a manifest's own column
    ``split`` comes before a share. `batch_size` is that of all `workers` together; the result does not depend on how
    many share it. `pixel_size`: in the images' own unit, to which they are resampled and which the model remembers.
    `sampling`: balanced draws a third of each batch's windows around pixels of the classes that hold less than an
    equal share. `architecture`: unet, unet-keras, or an encoder of another library, such as smp:unet:resnet34,
    timm:resnet34 or monai:resnet18 (:mod:`raysegment.model.encoder`). `metric`: mean_iou, mean_dice, accuracy,
    mean_iou_per_image, mean_dice_per_image, boundary_f1, v_rand (of membranes: the rarer of two classes, or
    v_rand:CLASS), iou:CLASS or dice:CLASS; the best model by it is kept, with the operating thresholds that are best
    for it. Options that are None or "auto" are found from the data. Called again with the same data and options, an
    unfinished run goes on from its last checkpoint, exactly, and a finished one is returned. `mlflow`: the address of
    an MLflow server that is told, too; by default MLFLOW_TRACKING_URI. It never ends a training.

    Raises UsageError, InputError, OutputExistsError before any work; WorkError when the work fails, also when
    the network ends up answering one class everywhere; LockedError when another process writes to `out`.
    """
    settings = Settings.of(
        {
            "epochs": epochs, "steps_per_epoch": steps_per_epoch, "batch_size": batch_size, "tile": tile,
            "pixel_size": pixel_size, "sampling": sampling,
            "lr": lr, "schedule": schedule, "warmup": warmup, "loss": loss, "class_weights": class_weights,
            "augment": augment, "normalisation": normalisation, "architecture": architecture,
            "pretrained": pretrained, "allow_non_commercial": allow_non_commercial,
            "deep_supervision": deep_supervision,
            "base_width": base_width, "depth": depth, "norm": norm, "padding": padding,
            "dropout": dropout, "precision": precision, "ema": ema, "metric": metric, "seed": seed,
        }
    )  # fmt: skip
    count, gpus = _workers(workers, settings.batch_size)
    uri = tracking_uri(mlflow)
    asked = request(settings, Path(data), val if isinstance(val, float) else os.fspath(val), _path(classes))
    run = RunFolder(Path(out).absolute())
    earlier_run(run, asked.fingerprint, resume=resume, overwrite=overwrite)
    with run.locked():
        # asked again: another process may have come first
        record = earlier_run(run, asked.fingerprint, resume=resume, overwrite=overwrite)
        if record is not None and "result" in record:
            return TrainResult.of_record(run.model, record, already_done=True)
        is_new = record is None
        record = prepare(asked) if record is None else record
        count, gpus = _workers(workers, record["settings"]["batch_size"])
        if is_new:
            run.clear()
        record["workers"] = count
        run.write_record(record)
        run.config.write_text(to_toml({"val": str(val), **record["settings"]}), encoding="utf-8")
        console.say(f"masks: {coding_text(record)}")
        console.say(record["auto"])
        job = job_of(record, asked, run)
        console.say(_outline(job, count, resumed=run.state.exists()))
        write_report(run)
        with tracked(run, uri):
            try:
                _fit(job, count, gpus)
            except RaysegmentError as e:
                with contextlib.suppress(RaysegmentError):  # a full disk is said once, by what it ended
                    write_report(run, failure=str(e))
                raise
        record = run.read_record() or {}
        if "result" not in record:
            raise WorkError(f"the workers ended without a result in {run.record}: run the same command again")
        result = TrainResult.of_record(run.model, record, already_done=False)
        if result.metrics.accuracy <= result.metrics.constant_accuracy:
            console.warn(
                "the model is no better than a constant answer: train longer, or look at the validation images"
            )
        return result


def _fit(job: Job, workers: int, gpus: bool) -> None:
    """Run the job on Ray Train's workers and show how far it is. Raises what stopped it."""
    from raysegment.runtime import cluster

    run = job.run
    borrowed = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    run.failure.unlink(missing_ok=True)
    shutil.rmtree(run.ray, ignore_errors=True)  # Ray Train would resume from its own files there
    threads = 1 if gpus else max(1, available_cores() // workers)
    with cluster(workers * threads, dashboard=console.is_verbose()):
        _check_room(workers, threads, gpus)
        training = _Training(job, workers, threads, gpus)
        training.start()
        try:
            follow(training, job)
        except BaseException:
            if borrowed:  # the workers would go on in a Ray that outlives this call
                write_json(run.failure, {"type": "WorkError", "text": "stopped"})
                training.join()
            raise
    shutil.rmtree(run.ray, ignore_errors=True)
    _raise_failure(run, training.error)


class _Training(threading.Thread):
    """Ray Train's fit(), aside: so the main thread can show progress, and keeps Ctrl-C to itself."""

    def __init__(self, job: Job, workers: int, threads: int, gpus: bool) -> None:
        super().__init__(name="ray-train", daemon=True)
        self.job, self.workers, self.threads, self.gpus = job, workers, threads, gpus
        self.error: Exception | None = None

    def run(self) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        resources = {"CPU": 1.0, "GPU": 1.0} if self.gpus else {"CPU": float(self.threads)}
        trainer = TorchTrainer(
            ray_worker,
            train_loop_config={"job": self.job, "threads": self.threads},
            torch_config=TorchConfig(backend="nccl" if self.gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=self.workers, use_gpu=self.gpus, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name="run",
                storage_path=str(self.job.run.ray),
                failure_config=FailureConfig(max_failures=_MAX_FAILURES),
            ),
        )
        try:
            trainer.fit()
        except Exception as e:  # handed to the main thread, which says it
            self.error = e


def ray_worker(config: dict[str, Any]) -> None:
    """What Ray Train calls on every worker.

    A failure with a name is written down and ends all workers in good order: it must not look like a death,
    which Ray Train would answer with another attempt.
    """
    import torch

    job: Job = config["job"]
    if job.run.failure.exists():
        return
    device = torch.device("cpu")
    if torch.cuda.is_available():
        from ray.train.torch import get_device

        device = get_device()
        torch.cuda.set_device(device)
    try:
        work(job, Workers(), device, config["threads"])
    except Stopped as stopped:
        if stopped.error is not None:
            error = {"type": type(stopped.error).__name__, "text": str(stopped.error)}
            write_json(job.run.failure, error)


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


def _workers(wish: int | str, batch_size: int | None) -> tuple[int, bool]:
    """(how many, whether each has a GPU). `batch_size` is None while it is open.

    On a CPU one worker per core, each with one thread: on two free cores as fast as one worker with two
    threads (1.2 s a step), and on busy ones, where OpenMP's barriers wait for a thread that has no core, 2.7
    times as fast (3.0 against 8.0 s).
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wish == "auto":
        return min(gpus or available_cores(), batch_size or sys.maxsize), gpus > 0
    if not isinstance(wish, int) or wish < 1:
        raise UsageError(f"--workers {wish}: give auto or a number of 1 or more")
    if batch_size is not None and wish > batch_size:
        raise UsageError(
            f"--workers {wish} is more than --batch-size {batch_size}: every worker needs a sample"
        )
    return wish, gpus >= wish


def _check_room(workers: int, threads: int, gpus: bool) -> None:
    """Raise UsageError where Ray Train would wait for ever for more CPUs or GPUs than the cluster has."""
    import ray

    have = ray.cluster_resources()
    for name, needed in (("CPU", workers * threads), ("GPU", workers if gpus else 0)):
        if have.get(name, 0) < needed:
            raise UsageError(
                f"--workers {workers} needs {needed} {name}s, this Ray has {have.get(name, 0):g}: give fewer workers"
            )


def _outline(job: Job, workers: int, *, resumed: bool) -> str:
    """What is about to happen, in one line."""
    s = job.settings
    changed = sum(isinstance(scene.image, Resampled) for scene in (*job.train, *job.val))
    resampled = f", {changed} of them resampled to {s.pixel_size:g}" if changed else ""
    held = " … ".join(dict.fromkeys((job.val[0].name, job.val[-1].name)))
    return (
        f"{'go on to train' if resumed else 'train'} on {len(job.train)} images, validate on {len(job.val)} ({held})"
        f"{resampled}: "
        f"{s.epochs} × {s.steps_per_epoch} steps of {s.batch_size} windows of {s.tile} px, {s.precision}, "
        f"workers: {workers}"
    )


def _path(value: str | os.PathLike[str] | None) -> Path | None:
    return None if value is None else Path(value)
