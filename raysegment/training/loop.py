"""What one worker does from the first step to the last: the same with Ray around it or without.

Read this file first: it is the whole of training; the other modules are its parts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from raysegment.classes import ClassMap
from raysegment.errors import RaysegmentError, WorkError
from raysegment.metrics.scores import known
from raysegment.model.file import load_model
from raysegment.model.model import normalise
from raysegment.model.spec import ModelSpec
from raysegment.training.augment import augment, context
from raysegment.training.balance import BalancedSampler, ClassIndex
from raysegment.training.batches import Batch, load_batch, read_ahead
from raysegment.training.dataset import Scene
from raysegment.training.exhibits import find
from raysegment.training.keeper import Keeper, json_line, last_state, stopped
from raysegment.training.learner import Learner, place
from raysegment.training.metric import Metric
from raysegment.training.parallel import Workers
from raysegment.training.run import RunFolder
from raysegment.training.settings import Resolved
from raysegment.training.validate import Validator
from raysegment.training.verdict import constant_answer
from raysegment.training.windows import Sampler, WindowReader, WindowSampler

#: Views that are pictured after each epoch, and looked through for pictures at the end of the run.
_VIEWS_SHOWN, _VIEWS_SEEN = 4, 256


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
    index: ClassIndex | None = None
    """Where the rarer classes are, if windows are drawn around them."""


@dataclass
class _Standing:
    """How far the run is; with the learner's state, all that a resume needs."""

    step: int = 0
    """Steps done, which is also the place of the next sample: step · batch_size."""
    loss_sum: float = 0.0
    """Of the steps of this epoch."""
    best: float | None = None
    """None before the first epoch is over, and while the score is undefined."""
    best_epoch: int = 0
    train_s: float = 0.0
    wall_s: float = 0.0
    history: list[str] = field(default_factory=list)
    """The lines of metrics.jsonl, one per epoch that is over."""

    @property
    def epochs(self) -> int:
        return len(self.history)


def work(
    job: Job,
    workers: Workers,
    device: torch.device,
    threads: int,
    is_leaving: Callable[[], bool] = lambda: False,
) -> None:
    """Train from where RUN/last stands to the end, and write the outcome to RUN.

    `is_leaving`: asked by all workers together now and then; whether a node is about to be taken away.
    Raises Stopped, on every worker, when one meets a loss that is no number, another checkpoint, pixels that
    cannot be read, a full disk, or a network that ends up answering one class everywhere.
    """
    torch.set_num_threads(threads)
    _Worker(job, workers, device, is_leaving).run()


class _Worker:
    """One worker's state and its collaborators."""

    def __init__(
        self, job: Job, workers: Workers, device: torch.device, is_leaving: Callable[[], bool]
    ) -> None:
        s = job.settings
        self.is_leaving = is_leaving
        self.job, self.workers, self.device, self.settings = job, workers, device, s
        assert job.spec.architecture is not None
        self.learner = Learner(s, job.spec.architecture, job.prior, job.weights, workers, device)
        self.sampler: Sampler = WindowSampler([scene.size for scene in job.train], s.tile, s.seed)
        if job.index is not None:
            self.sampler = BalancedSampler(self.sampler, job.index, s.batch_size)
        self.reader = WindowReader(job.train, job.channels, job.classes)
        shares = job.prior if len(job.prior) > 1 else (1 - job.prior[0], job.prior[0])
        self.metric = Metric.of(s.metric, job.spec.class_names, shares)
        self.keeper = Keeper(job.run, leads=workers.rank == 0)
        self.validator = Validator(
            WindowReader(job.val, job.channels, job.classes),
            job.spec,
            self.metric,
            workers,
            device,
            max(1, s.batch_size // workers.size),
            self.learner.autocast,
            s.precision,
            self.keeper.check,
        )
        self.standing = _Standing()
        self._clock = time.monotonic()

    def run(self) -> None:
        self._resume()
        with self.keeper.opened(self.standing.step):
            while not self._is_over():
                self._epoch()
            self._finish()

    def _is_over(self) -> bool:
        s, at = self.settings, self.standing
        waited = s.early_stop is not None and at.epochs - at.best_epoch >= s.early_stop
        return waited or at.epochs >= s.epochs

    def _epoch(self) -> None:
        """From wherever in an epoch the run stands to the end of that epoch."""
        s, at = self.settings, self.standing
        epoch = at.epochs  # at its last step it is not over: it may have been stopped before it was scored
        steps = range(at.step, (epoch + 1) * s.steps_per_epoch)
        shares = [[i * s.batch_size + j for j in self.workers.share(s.batch_size)] for i in steps]
        around = s.margin + context(s.augment, s.input_edge)
        started = time.monotonic()
        ahead = read_ahead(lambda share: load_batch(self.reader, self.sampler, around, share), shares)
        while (batch := self._next(ahead)) is not None:
            at.loss_sum += self._step(batch)
            at.step += 1
            at.train_s += time.monotonic() - started
            self._tell(epoch)
            started = time.monotonic()
        self._end_epoch(epoch)

    def _next(self, ahead: Iterator[Batch]) -> Batch | None:
        """The next batch, None at the end of the epoch. All workers meet here before each step."""
        batch = None
        with self.keeper.noting():
            batch = next(ahead, None)
        if self.workers.agree(self.keeper.trouble, wish=self.keeper.look_is_due()) and self.is_leaving():
            self._checkpoint()
        return batch

    def _step(self, batch: Batch) -> float:
        """Learn from one batch; the loss of all workers' shares together."""
        s, valid = self.settings, batch.valid.to(self.device)
        images, targets = augment(
            normalise(batch.pixels.to(self.device), self.job.spec, valid),
            batch.target.to(self.device),
            valid,
            batch.indices,
            edge=s.input_edge,
            policy=s.augment,
            seed=s.seed,
        )
        if s.margin:
            targets = targets[:, s.margin : -s.margin, s.margin : -s.margin]
        loss = float(self.learner.learn(images, targets, self.standing.step, batch.indices))
        if not math.isfinite(loss):
            self.keeper.trouble = WorkError(
                f"the loss is {loss} at step {self.standing.step}: "
                f"lower --lr (now {s.lr:g}) or use --precision fp32"
            )
        return loss

    def _end_epoch(self, epoch: int) -> None:
        s, at = self.settings, self.standing
        scores = self.validator.after_epoch(self.learner.best)
        record = {
            "epoch": epoch + 1,
            "step": at.step,
            "loss": at.loss_sum / s.steps_per_epoch,
            "lr": s.learning_rate(at.step - 1),
            "images_per_s": at.step * s.batch_size / at.train_s,
            **scores.to_json(),
            s.metric: (value := known(self.metric.value(scores))),
        }
        at.loss_sum = 0.0
        at.history.append(json_line(record))
        is_better = value is not None and (at.best is None or value > at.best)
        if is_better or at.best_epoch == 0:  # where the score says nothing, one epoch is as good as another
            at.best, at.best_epoch = value, epoch + 1
            self.keeper.model(self.learner.best, self._spec())
        self._show(self.learner.best, _VIEWS_SHOWN)
        self.keeper.epoch(record, at.history)
        self._checkpoint(keep_as=f"step-{at.step:08}.pt")

    def _finish(self) -> None:
        """Thresholds and final scores of the best model, over whole scenes."""
        self.workers.agree(self.keeper.trouble)
        at = self.standing
        module = place(load_model(self.job.run.model).module, self.device)
        thresholds = self.validator.thresholds(module)
        scores = self.validator.in_scenes(module, thresholds)
        self._show(module, _VIEWS_SEEN, thresholds)
        self.workers.agree(constant_answer(scores, self.settings))
        self.keeper.model(module, self._spec(thresholds))
        self._pass_time()
        self.keeper.result(
            {
                "epochs": at.epochs,
                "steps": at.step,
                "workers": self.workers.size,
                "best": {"epoch": at.best_epoch, self.settings.metric: at.best},
                "thresholds": thresholds,
                "validation": self.validator.rules(thresholds),
                "metrics": {**scores.to_json(), self.settings.metric: known(self.metric.value(scores))},
                "images_per_s": at.step * self.settings.batch_size / at.train_s,
                "wall_s": at.wall_s,
            }
        )
        self.workers.agree(self.keeper.trouble)

    def _show(
        self, module: torch.nn.Module, at_most: int, thresholds: tuple[float, ...] | None = None
    ) -> None:
        """Keep pictures of the best and the worst of some views."""
        some = self.validator.spread_views(at_most)
        found = find(self.validator, module, some, thresholds)
        self.keeper.show(found, self.validator, step=self.standing.step, examined=len(some))

    def _spec(self, thresholds: tuple[float, ...] | None = None) -> ModelSpec:
        """Of the best model so far."""
        at, spec = self.standing, self.job.spec
        provenance = {**spec.provenance, "epoch": at.best_epoch, self.settings.metric: at.best}
        return spec.model_copy(update={"provenance": provenance, "thresholds": thresholds})

    def _tell(self, epoch: int) -> None:
        at = self.standing
        done = (at.step - 1) % self.settings.steps_per_epoch + 1
        said = {"step": at.step, "epoch": epoch + 1, "loss": at.loss_sum / done, "best": at.best}
        self.keeper.progress(said)
        if self.keeper.checkpoint_is_due():
            self._checkpoint()
        if self.keeper.is_stopped:
            self.keeper.trouble = self.keeper.trouble or stopped()

    def _checkpoint(self, keep_as: str | None = None) -> None:
        self._pass_time()
        state = {"standing": vars(self.standing), "learner": self.learner.state()}
        self.keeper.checkpoint(state, keep_as=keep_as, keep=self.settings.keep)

    def _resume(self) -> None:
        """Go back to RUN/last. Every random draw is a function of the seed and the sample's index, so the
        generators' state is the step itself."""
        state, error = None, None
        try:
            state = last_state(self.job.run)
        except RaysegmentError as e:
            error = e
        self.workers.agree(error)
        if state is not None:
            self.standing = _Standing(**state["standing"])
            self.learner.restore(state["learner"])
        together = self.workers.sum(torch.tensor(self.standing.step, device=self.device))
        if int(together) != self.standing.step * self.workers.size:
            self.keeper.trouble = WorkError(
                f"the workers see different checkpoints in {self.job.run.state.parent}: "
                "--out must be on storage that all nodes share"
            )

    def _pass_time(self) -> None:
        now = time.monotonic()
        self.standing.wall_s += now - self._clock
        self._clock = now
