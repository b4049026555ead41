"""What a run is told, and what "auto" comes to: resolved once, before the first step, and written down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from raysegment.errors import UsageError
from raysegment.model.unet import margin, multiple

#: Passes over the training pixels that one epoch makes, and the bounds of its steps.
_PASSES_PER_EPOCH = 2
_STEPS = (20, 1000)
_TILE = 256
_WARMUP_SHARE = 0.05


class Settings(BaseModel):
    """The options of a run, as given. None: found when the data and the machine are known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=8, ge=1)
    steps_per_epoch: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=8, ge=1)
    """Of all workers together."""
    tile: int | None = Field(default=None, ge=1)
    """Edge of the pixels that are learned from, of one window."""
    lr: float = Field(default=3e-3, gt=0)
    schedule: Literal["constant", "cosine", "poly"] = "cosine"
    warmup: int | None = Field(default=None, ge=0)
    """Steps over which the learning rate rises from 0."""
    clip_grad: float = Field(default=1.0, ge=0, lt=math.inf)
    """Longest gradient (2-norm over all parameters); 0: as long as it is."""
    accumulate: int = Field(default=1, ge=1)
    """Parts of a batch that go through the network one after the other."""
    loss: str = "ce+dice"
    class_weights: str = "none"
    """none, balanced, or one number per class: "1,2,0.5"."""
    augment: Literal["none", "light", "strong"] = "light"
    base_width: int = Field(default=16, ge=1)
    depth: int = Field(default=4, ge=1, le=8)
    norm: Literal["batch", "group", "none"] = "batch"
    padding: Literal["same", "valid"] = "same"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    ema: bool = True
    metric: Literal["mean_iou", "mean_dice", "accuracy"] = "mean_iou"
    early_stop: int | None = Field(default=None, ge=1)
    """Epochs without a better metric after which the run ends."""
    keep: int = Field(default=1, ge=1)
    """Checkpoints that are kept, each of the end of an epoch; RUN/last is there in any case."""
    seed: int = Field(default=0, ge=0)

    @field_validator("class_weights")
    @classmethod
    def _weights_are_numbers(cls, text: str) -> str:
        if text not in ("none", "balanced"):
            try:
                weights = [float(part) for part in text.split(",")]
            except ValueError:
                weights = [math.nan]
            if not all(0 <= w < math.inf for w in weights) or not any(weights):
                raise ValueError("give none, balanced, or one number of 0 or more per class such as 1,2,0.5")
        return text

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Raises UsageError naming the option and its value."""
        try:
            return cls.model_validate(dict(options))
        except ValidationError as e:
            first = e.errors()[0]
            option = "--" + str(first["loc"][0]).replace("_", "-")
            message = first["msg"].removeprefix("Value error, ")
            raise UsageError(f"{option} {first['input']!r}: {message[:1].lower()}{message[1:]}") from e


class Resolved(Settings):
    """Settings in which nothing is left open; every worker and every resume obeys these."""

    steps_per_epoch: int = Field(ge=1)
    tile: int = Field(ge=1)
    warmup: int = Field(ge=0)
    precision: Literal["fp32", "bf16"]

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def margin(self) -> int:
        return margin(self.depth, self.padding)

    @property
    def input_edge(self) -> int:
        return self.tile + 2 * self.margin

    def learning_rate(self, step: int) -> float:
        """Of the step that is number `step` from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / max(1, self.total_steps - self.warmup)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * done))
        return self.lr * (1 - done) ** 0.9 if self.schedule == "poly" else self.lr


def resolve(settings: Settings, *, pixels: int, longest_edge: int, fast_bf16: bool) -> Resolved:
    """Fill in what was left open. `pixels`: of all training images; `longest_edge`: of the largest image.

    Raises UsageError when the tile does not fit the network, naming the two nearest that do.
    """
    check_tile(settings)
    tile = settings.tile or _default_tile(settings, longest_edge)
    low, high = _STEPS
    seen = settings.batch_size * tile**2
    steps = settings.steps_per_epoch or min(max(math.ceil(_PASSES_PER_EPOCH * pixels / seen), low), high)
    warmup = settings.warmup
    if warmup is None:
        warmup = round(_WARMUP_SHARE * settings.epochs * steps)
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if fast_bf16 else "fp32"
    found = {"tile": tile, "steps_per_epoch": steps, "warmup": warmup, "precision": precision}
    return Resolved.model_validate({**settings.model_dump(), **found})


def check_tile(settings: Settings) -> None:
    """Raises UsageError when --tile does not fit the network, naming the two nearest values that do."""
    tile = settings.tile
    if tile is not None and not _fits(settings, tile):
        step, cut = multiple(settings.depth), 2 * margin(settings.depth, settings.padding)
        below = (tile + cut) // step * step - cut
        near = f"{below} or {below + step}" if below > 0 else str(_smallest(settings))
        raise UsageError(
            f"--tile {tile} does not fit a {settings.depth}-level network with padding {settings.padding}: give {near}"
        )


def _fits(settings: Settings, tile: int) -> bool:
    cut = 2 * margin(settings.depth, settings.padding)
    return tile > 0 and (tile + cut) % multiple(settings.depth) == 0


def _smallest(settings: Settings) -> int:
    return next(t for t in range(1, multiple(settings.depth) + 1) if _fits(settings, t))


def _default_tile(settings: Settings, longest_edge: int) -> int:
    """256, less when every image is smaller, rounded up to what the network takes."""
    tile = min(_TILE, longest_edge)
    return next(t for t in range(tile, tile + multiple(settings.depth)) if _fits(settings, t))
