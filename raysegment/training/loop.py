"""What one worker does from the first step to the last: the same with Ray around it or without.

Read this file first: it is the whole of training; the other modules are its parts.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from raysegment.classes import ClassMap
from raysegment.errors import WorkError
from raysegment.metrics import Scores
from raysegment.model.file import load_model, save_model
from raysegment.model.model import normalise
from raysegment.model.spec import ModelSpec
from raysegment.training.augment import augment, context
from raysegment.training.batches import Batch, load_batch, read_ahead
from raysegment.training.dataset import Scene
from raysegment.training.learner import Learner, place
from raysegment.training.parallel import Workers
from raysegment.training.run import RunFolder, write_json
from raysegment.training.settings import Resolved
from raysegment.training.thresholds import choose
from raysegment.training.validate import Validator, spread, views
from raysegment.training.windows import WindowReader, WindowSampler

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

#: Views that are answered after each epoch; the end of the run answers all.
_VIEWS_PER_EPOCH = 256
_CHECKPOINT_EVERY_S = 60.0
_PROGRESS_EVERY_S = 0.5


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to know; plain values, so that it travels."""

    settings: Resolved
    spec: ModelSpec
    """Of the model to come, without thresholds."""
    classes: ClassMap
    channels: tuple[int, ...]
    train: tuple[Scene, ...]
    val: tuple[Scene, ...]
    prior: tuple[float, ...]
    """Class frequency per output of the network."""
    weights: tuple[float, ...] | None
    """Per class, for the loss."""
    run: RunFolder


@dataclass
class _Standing:
    """How far the run is; with the learner's state, all that a resume needs."""

    step: int = 0
    """Steps done, which is also the place of the next sample: step · batch_size."""
    loss_sum: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    """Of the steps of this epoch."""
    best: float = -math.inf
    best_epoch: int = 0
    train_s: float = 0.0
    wall_s: float = 0.0
    history: list[str] = field(default_factory=list)
    """The lines of metrics.jsonl."""


def work(job: Job, workers: Workers, device: torch.device, threads: int) -> None:
    """Train from where RUN/last stands to the end, and write the outcome to RUN.

    Raises WorkError when the loss is no number, when the workers stand at different steps, or when the
    network ends up answering one class everywhere; ReadError and InputError for what cannot be read.
    """
    torch.set_num_threads(threads)
    _Worker(job, workers, device).run()


class _Worker:
    """One worker's state and its collaborators."""

    def __init__(self, job: Job, workers: Workers, device: torch.device) -> None:
        s = job.settings
        self.job, self.workers, self.device, self.settings = job, workers, device, s
        self.leads = workers.rank == 0
        assert job.spec.architecture is not None
        self.learner = Learner(s, job.spec.architecture, job.prior, job.weights, workers, device)
        self.sampler = WindowSampler([scene.size for scene in job.train], s.tile, s.seed)
        self.reader = WindowReader(job.train, job.channels, job.classes)
        self.views = views([scene.size for scene in job.val], s.tile)
        self.validator = Validator(
            WindowReader(job.val, job.channels, job.classes),
            job.spec,
            workers,
            device,
            max(1, s.batch_size // workers.size),
            self.learner.autocast,
        )
        self.standing = _Standing()
        self._clock = self._last_save = time.monotonic()
        self._last_progress = 0.0

    def run(self) -> None:
        s = self.settings
        self._resume()
        with _event_writer(self.job.run, self.leads, self.standing.step) as events:
            while self.standing.step < s.total_steps:
                self._epoch(events)
            self._finish()

    def _epoch(self, events: SummaryWriter | None) -> None:
        """From wherever in an epoch the run stands to the end of that epoch."""
        s, at = self.settings, self.standing
        epoch = at.step // s.steps_per_epoch
        steps = range(at.step, (epoch + 1) * s.steps_per_epoch)
        shares = [[i * s.batch_size + j for j in self.workers.share(s.batch_size)] for i in steps]
        around = s.margin + context(s.augment, s.input_edge)
        started = time.monotonic()
        for batch in read_ahead(lambda share: load_batch(self.reader, self.sampler, around, share), shares):
            loss = self._step(batch)
            at.step += 1
            at.loss_sum += loss.double().cpu()
            at.train_s += time.monotonic() - started
            self._tick(epoch)
            started = time.monotonic()
        self._end_epoch(epoch, events)

    def _step(self, batch: Batch) -> torch.Tensor:
        s, device = self.settings, self.device
        images = normalise(batch.pixels.to(device), self.job.spec, batch.valid.to(device))
        images, targets = augment(
            images,
            batch.target.to(device),
            batch.valid.to(device),
            batch.indices,
            edge=s.input_edge,
            policy=s.augment,
            seed=s.seed,
        )
        if s.margin:
            targets = targets[:, s.margin : -s.margin, s.margin : -s.margin]
        loss = self.learner.learn(images, targets, self.standing.step, batch.indices)
        if not torch.isfinite(loss):
            raise WorkError(
                f"the loss is {float(loss)} at step {self.standing.step}: "
                f"lower --lr (now {s.lr:g}) or use --precision fp32"
            )
        return loss

    def _end_epoch(self, epoch: int, events: SummaryWriter | None) -> None:
        s, at = self.settings, self.standing
        shown = spread(self.views, _VIEWS_PER_EPOCH)
        scores = Scores.of(self.validator.count(self.learner.best, shown), self.job.spec.class_names)
        value = float(getattr(scores, s.metric))
        loss = float(at.loss_sum) / s.steps_per_epoch
        at.loss_sum.zero_()
        record = {
            "epoch": epoch + 1,
            "step": at.step,
            "loss": loss,
            "lr": s.learning_rate(at.step - 1),
            "images_per_s": at.step * s.batch_size / at.train_s,
            **scores.to_json(),
        }
        at.history.append(json.dumps(record, ensure_ascii=False))
        if value > at.best:
            at.best, at.best_epoch = value, epoch + 1
            self._save_model({})
        if self.leads:
            self.job.run.metrics.write_text("\n".join([*at.history, ""]), encoding="utf-8")
        if events is not None:
            for name in ("loss", "lr", "images_per_s", "mean_iou", "mean_dice", "accuracy"):
                events.add_scalar(name, record[name], at.step)
        self._save()

    def _finish(self) -> None:
        """Thresholds and final scores of the best model, over all views."""
        job, at = self.job, self.standing
        module = place(load_model(job.run.model).module, self.device)
        thresholds = choose(*self.validator.sample(module, self.views), self.settings.metric)
        scores = Scores.of(self.validator.count(module, self.views, thresholds), job.spec.class_names)
        if not self.leads:
            return
        extra: dict[str, Any] = {"thresholds": thresholds} if thresholds is not None else {}
        self._save_model(extra, module)
        self._pass_time()
        record = job.run.read_record() or {}
        record["result"] = {
            "steps": at.step,
            "best": {"epoch": at.best_epoch, self.settings.metric: at.best},
            "thresholds": thresholds,
            "metrics": scores.to_json(),
            "images_per_s": at.step * self.settings.batch_size / max(at.train_s, 1e-9),
            "wall_s": at.wall_s,
        }
        refuse_constant(scores, job)
        job.run.write_record(record)

    def _save_model(self, extra: dict[str, Any], module: torch.nn.Module | None = None) -> None:
        """Write `module`, or what the learner thinks best, with the run's spec and `extra`."""
        if not self.leads:
            return
        at = self.standing
        provenance = {**self.job.spec.provenance, "epoch": at.best_epoch, self.settings.metric: at.best}
        spec = self.job.spec.model_copy(update={"provenance": provenance, **extra})
        save_model(module or self.learner.best, spec, self.job.run.model)

    def _tick(self, epoch: int) -> None:
        """Now and then: say how far it is, and make a checkpoint."""
        if not self.leads:
            return
        now, at = time.monotonic(), self.standing
        if now - self._last_progress >= _PROGRESS_EVERY_S:
            self._last_progress = now
            done = (at.step - 1) % self.settings.steps_per_epoch + 1
            best = at.best if at.best_epoch else None
            said = {"step": at.step, "epoch": epoch + 1, "loss": float(at.loss_sum) / done, "best": best}
            write_json(self.job.run.progress, said)
            if self.job.run.failure.exists():
                raise WorkError("stopped from outside")
        if now - self._last_save >= _CHECKPOINT_EVERY_S:
            self._save()

    def _save(self) -> None:
        if not self.leads:
            return
        self._pass_time()
        self._last_save = time.monotonic()
        path = self.job.run.state
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        torch.save({"standing": vars(self.standing), "learner": self.learner.state()}, temp)
        os.replace(temp, path)

    def _resume(self) -> None:
        """Go back to RUN/last. Every random draw is a function of the seed and the sample's index, so the
        generators' state is the step itself."""
        path = self.job.run.state
        if path.is_file():
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.standing = _Standing(
                **{**state["standing"], "loss_sum": state["standing"]["loss_sum"].cpu()}
            )
            self.learner.restore(state["learner"])
        together = self.workers.sum(torch.tensor(self.standing.step, device=self.device))
        if int(together) != self.standing.step * self.workers.size:
            raise WorkError(
                f"the workers see different checkpoints in {path.parent}: --out must be on storage that all nodes share"
            )

    def _pass_time(self) -> None:
        now = time.monotonic()
        self.standing.wall_s += now - self._clock
        self._clock = now


def refuse_constant(scores: Scores, job: Job) -> None:
    """Raise WorkError, naming a cause, when one class is all that is ever answered."""
    answered = [
        name
        for name, column in zip(job.spec.class_names, zip(*scores.confusion, strict=True), strict=True)
        if any(column)
    ]
    present = [name for name, score in scores.classes.items() if score.support]
    if len(answered) > 1 or len(present) < 2:
        return
    s = job.settings
    rarest = min((n for n in present if n not in answered), key=lambda n: scores.classes[n].support)
    share = scores.classes[rarest].support / sum(score.support for score in scores.classes.values())
    if s.total_steps < 100:
        cause = f"it was trained for {s.total_steps} steps only: raise --epochs or --steps-per-epoch"
    elif share < 0.02:
        cause = f"{rarest!r} holds {share:.2%} of the pixels: use --loss ce+dice, --class-weights balanced"
    else:
        cause = f"it learned nothing from the pixels: check that masks belong to images, lower --lr (now {s.lr:g})"
    raise WorkError(
        f"the network answers {answered[0]!r} everywhere (accuracy {scores.accuracy:.4f}, what that constant "
        f"scores): {cause}"
    )


def _event_writer(run: RunFolder, leads: bool, step: int) -> Any:
    """TensorBoard's files, of the first worker; later events of an earlier attempt are dropped."""
    if not leads:
        return contextlib.nullcontext()
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(run.events), purge_step=step + 1 if step else None)
