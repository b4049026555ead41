"""train(): a run from the folder of data to the folder of results, on Ray Train's workers."""

from __future__ import annotations

import contextlib
import os
from typing import Literal

from raysegment import console
from raysegment.console import counted
from raysegment.errors import RaysegmentError, UsageError, WorkError
from raysegment.runtime import joined
from raysegment.storage import Url, location
from raysegment.storage.objects import before_work, check_writable, put
from raysegment.training.findings import coding_text
from raysegment.training.forms import File
from raysegment.training.launch import launch
from raysegment.training.loop import Job
from raysegment.training.prepare import job_of, prepare, request
from raysegment.training.report import write_report
from raysegment.training.resolution import Resampled
from raysegment.training.result import TrainResult
from raysegment.training.run import RunFolder, earlier_run, to_toml
from raysegment.training.settings import Resolved, Settings
from raysegment.training.team import Team, assemble
from raysegment.training.tracking import tracked, tracking_uri


@joined()
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
    clip_grad: float = 1.0,
    accumulate: int = 1,
    loss: str = "auto",
    class_weights: str = "none",
    ignore_index: int | None = None,
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
    early_stop: int | None = None,
    keep: int = 1,
    seed: int = 0,
    workers: int | str = "auto",
    gpus_per_worker: int | None = None,
    mlflow: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> TrainResult:
    """Train a U-Net on `data`, a training set in any form of :mod:`raysegment.training.forms`, and write the run to the
    folder `out`. Both may be at a URL: `data` at s3://, gs:// or https://, where that gives a list of its files or
    needs none; `out` at s3:// or gs://, where TensorBoard's events arrive at the end of each epoch.

    `val`: the share of the images (the last by name), or another training set, to validate on; a manifest's own column
    ``split`` comes before a share. `batch_size` is that of all `workers` together; the result does not depend on how
    many share it. `pixel_size`: in the images' own unit, to which they are resampled and which the model remembers.
    `ignore_index`: the value of mask pixels that are neither learned nor scored, beside what `classes` says of them.
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
            "ignore_index": ignore_index,
            "augment": augment, "normalisation": normalisation, "architecture": architecture,
            "pretrained": pretrained, "allow_non_commercial": allow_non_commercial,
            "deep_supervision": deep_supervision,
            "base_width": base_width, "depth": depth, "norm": norm, "padding": padding,
            "dropout": dropout, "precision": precision, "ema": ema, "metric": metric, "seed": seed,
            "clip_grad": clip_grad, "accumulate": accumulate, "early_stop": early_stop, "keep": keep,
        }
    )  # fmt: skip
    run = RunFolder(location(out))
    team = assemble(workers, gpus_per_worker, settings)
    uri = tracking_uri(mlflow)
    with before_work():
        if isinstance(run.root, Url):
            check_writable(run.root, "--out")
        asked = request(settings, data, _text(val), None if classes is None else os.fspath(classes))
        earlier_run(run, asked.fingerprint, resume=resume, overwrite=overwrite, settings=settings)
    with run.locked() as check:
        # asked again: another process may have come first
        record = earlier_run(run, asked.fingerprint, resume=resume, overwrite=overwrite)
        if record is not None and "result" in record:
            return TrainResult.of_record(run.model, record, already_done=True)
        is_new = record is None
        record = prepare(asked, team.least * team.gpus) if record is None else record
        team = assemble(workers, gpus_per_worker, Resolved.model_validate(record["settings"]))
        if is_new:
            run.clear()
        record["workers"] = team.most
        run.write_record(record)
        said = {"val": str(val), "classes": asked.classes and str(File.at(asked.classes))}
        put(run.config, to_toml({**said, **record["settings"]}).encode())
        console.say(f"masks: {coding_text(record)}")
        console.say(record["auto"])
        job = job_of(record, asked, run)
        if settings.accumulate > 1 and settings.norm == "batch":
            console.warn(
                f"--accumulate {accumulate}: BatchNorm sees a part of the batch at a time; "
                "with --norm group nothing tells the parts from the whole"
            )
        console.say(_outline(job, team, resumed=run.state.exists()))
        write_report(run)
        with tracked(run, uri):
            try:
                launch(job, team, check)
            except RaysegmentError as e:
                with contextlib.suppress(RaysegmentError):  # a full disk is said once, by what it ended
                    write_report(run, failure=str(e))
                raise
        record = run.read_record() or {}
        if "result" not in record:
            raise WorkError(f"the workers ended without a result in {run.record}: run the same command again")
        result = TrainResult.of_record(run.model, record, already_done=False)
        if result.epochs < job.settings.epochs:
            console.say(
                f"ended after epoch {result.epochs}: no better {job.settings.metric} "
                f"in {counted(early_stop or 0, 'epoch')}"
            )
        if not result.metrics.beats_constant:
            console.warn(
                "the model is no better than a constant answer: train longer, or look at the validation images"
            )
        return result


def _outline(job: Job, team: Team, *, resumed: bool) -> str:
    """What is about to happen, in one line."""
    s = job.settings
    changed = sum(isinstance(scene.image, Resampled) for scene in (*job.train, *job.val))
    resampled = f", {changed} of them resampled to {s.pixel_size:g}" if changed else ""
    held = " … ".join(dict.fromkeys((job.val[0].name, job.val[-1].name)))
    return (
        f"{'go on to train' if resumed else 'train'} on {counted(len(job.train), 'image')}, "
        f"validate on {len(job.val)} ({held})"
        f"{resampled}: "
        f"{s.epochs} × {counted(s.steps_per_epoch, 'step')} of {counted(s.batch_size, 'window')} of "
        f"{s.tile} px, {s.precision}, "
        f"workers: {team}"
    )


def _text(val: str | os.PathLike[str] | float) -> str | float:
    """A share, or a path as text. Raises UsageError for what is neither."""
    if isinstance(val, (int, float)):
        return float(val)
    try:
        return os.fspath(val)
    except TypeError as e:
        raise UsageError(
            f"val {val!r}: give a share between 0 and 1, or a training set to validate on"
        ) from e
