"""What a run is told, and what "auto" comes to: resolved once, before the first step, and written down."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from raysegment.errors import InputError, UsageError
from raysegment.model import architectures
from raysegment.training.fingerprint import auto_batch, auto_depth, auto_tile

if TYPE_CHECKING:
    from raysegment.training.fingerprint import Fingerprint

#: Passes over the training pixels that one epoch makes, and the bounds of its steps.
_PASSES_PER_EPOCH = 1
_STEPS = (30, 1000)
_WARMUP_SHARE = 0.05
#: Options that some networks take and others do not.
_NETWORK = ("base_width", "depth", "norm", "padding", "dropout")


class Settings(BaseModel):
    """The options of a run, as given. None: found when the data and the machine are known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=8, ge=1)
    steps_per_epoch: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    """Of all workers together."""
    tile: int | None = Field(default=None, ge=1)
    """Edge of the pixels that are learned from, of one window."""
    pixel_size: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Edge of a pixel in the images' own unit. None: as stored."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    lr: float = Field(default=3e-3, gt=0)
    schedule: Literal["constant", "cosine", "poly"] = "cosine"
    warmup: int | None = Field(default=None, ge=0)
    """Steps over which the learning rate rises from 0."""
    clip_grad: float = Field(default=1.0, ge=0, lt=math.inf)
    """Longest gradient (2-norm over all parameters); 0: as long as it is."""
    accumulate: int = Field(default=1, ge=1)
    """Parts of a batch that go through the network one after the other."""
    loss: str = "auto"
    """auto: see :func:`auto_loss`."""
    class_weights: str = "none"
    """none, balanced, or one number per class: "1,2,0.5"."""
    ignore_index: int | None = None
    """Value of mask pixels that are neither learned nor scored."""
    augment: Literal["none", "light", "strong"] = "light"
    normalisation: Literal["auto", "zscore", "unit", "imagenet"] = "auto"
    """zscore: by mean and deviation of the training pixels; unit: [0, 1]; imagenet: what pretrained encoders saw."""
    architecture: str = "unet"
    pretrained: bool = False
    """Start from the weights that the encoder's library has for it."""
    allow_non_commercial: bool = False
    deep_supervision: bool = False
    base_width: int | None = Field(default=None, ge=1)
    depth: int | None = Field(default=None, ge=1, le=8)
    norm: Literal["batch", "group", "none"] = "batch"
    padding: Literal["same", "valid"] = "same"
    dropout: float | None = Field(default=None, ge=0, lt=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    ema: bool = True
    metric: str = "mean_iou"
    """See metric.py."""
    early_stop: int | None = Field(default=None, ge=1)
    """Epochs without a better metric after which the run ends."""
    keep: int = Field(default=1, ge=1)
    """Checkpoints that are kept, each of the end of an epoch; RUN/last is there in any case."""
    seed: int = Field(default=0, ge=0)

    @field_validator("batch_size", "depth", mode="before")
    @classmethod
    def _auto_is_open(cls, value: Any) -> Any:
        return None if value == "auto" else value

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
    """Settings in which nothing is left open; every worker and every resume obeys these.

    `base_width`, `depth` and `dropout` are None where the network takes no such option.
    """

    steps_per_epoch: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    tile: int = Field(ge=1)
    warmup: int = Field(ge=0)
    precision: Literal["fp32", "bf16"]
    normalisation: Literal["zscore", "unit", "imagenet"] = "zscore"

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def margin(self) -> int:
        return architectures.margin(network(self))

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


def auto_loss(membrane: int | None) -> str:
    """The loss where none is asked for. `membrane`: the class of two whose cells are to be kept apart (--metric
    v_rand), None for any other score.

    Cross-entropy and Dice settle for most pixels of a membrane, and one gap makes two cells one. The focal loss goes on
    with what is hard, and here a membrane weighs three times a cell: V_Rand of the hardest six slices of ISBI 2012 went
    from 0.88 to 0.93.
    """
    if membrane is None:
        return "ce+dice"
    return f"focal(alpha={0.75 if membrane == 1 else 0.25:g},gamma=2)"


def network(settings: Settings, in_channels: int = 1, out_channels: int = 1) -> dict[str, Any]:
    """The architecture that --architecture and its options say, for :func:`raysegment.model.architectures.build`.

    Raises UsageError for an unknown one, and for an option that it does not take.
    """
    try:
        fields = architectures.kind(settings.architecture).model_fields
    except InputError as e:
        raise UsageError(f"--architecture {settings.architecture}: {e}") from e
    options = {}
    for key in _NETWORK:
        value = getattr(settings, key)
        if key in fields:
            options[key] = fields[key].default if value is None else value
        elif value != Settings.model_fields[key].default:
            option = "--" + key.replace("_", "-")
            raise UsageError(
                f"{option} {value} does not go with --architecture {settings.architecture}: leave it out"
            )
    return {
        "name": settings.architecture,
        "in_channels": in_channels,
        "out_channels": out_channels,
        **options,
    }


def resolve(
    settings: Settings, seen: Fingerprint, *, fast_bf16: bool, membrane: int | None = None
) -> Resolved:
    """Fill in what was left open, from what the data and the machine are like. `membrane`: see :func:`auto_loss`.

    Raises UsageError when the tile does not fit the network, naming the two nearest that do, when not even one
    window fits into memory, and for what :func:`network` refuses.
    """
    from raysegment.training.probe import probe  # which needs torch

    check_network(settings)
    settings = _with_depth(settings, settings.tile or auto_tile(seen))
    tile = settings.tile or _rounded_up(settings, auto_tile(seen))
    architecture = network(settings, seen.channels)
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if fast_bf16 else "fp32"
    taken = probe(architecture)
    batch = settings.batch_size or auto_batch(
        taken, tile + 2 * architectures.margin(architecture), seen.memory, precision
    )
    low, high = _STEPS
    steps = settings.steps_per_epoch or min(
        max(math.ceil(_PASSES_PER_EPOCH * seen.pixels / (batch * tile**2)), low), high
    )
    warmup = settings.warmup
    if warmup is None:
        warmup = round(_WARMUP_SHARE * settings.epochs * steps)
    normalisation = settings.normalisation
    if normalisation == "auto":
        normalisation = (
            "unit" if settings.architecture == "unet-keras" and seen.dtype == "uint8" else "zscore"
        )
        if settings.pretrained and seen.channels == 3 and seen.dtype == "uint8":
            normalisation = "imagenet"
    found = {
        "tile": tile,
        "batch_size": batch,
        "steps_per_epoch": steps,
        "warmup": warmup,
        "precision": precision,
        "loss": auto_loss(membrane) if settings.loss == "auto" else settings.loss,
        "normalisation": normalisation,
        **{key: architecture[key] for key in _NETWORK if key in architecture},
    }
    return Resolved.model_validate({**settings.model_dump(), **found})


def check_network(settings: Settings) -> None:
    """Raises UsageError for what cannot be right whatever the data: see :func:`resolve`; the two nearest tiles that
    do fit are named."""
    tile, name = settings.tile, settings.architecture
    if settings.deep_supervision and ":" in name:
        raise UsageError(
            f"--deep-supervision does not go with --architecture {name}: it needs unet or unet-keras"
        )
    if settings.pretrained and ":" not in name:
        raise UsageError(
            f"--pretrained does not go with --architecture {name}: name an encoder, say timm:resnet34"
        )
    if tile is None:
        network(settings)
        return
    settings = _with_depth(settings, tile)
    if not _fits(settings, tile):
        architecture = network(settings)
        step, cut = architectures.multiple(architecture), 2 * architectures.margin(architecture)
        below = (tile + cut) // step * step - cut
        near = f"{below} or {below + step}" if below > 0 else str(_rounded_up(settings, 1))
        levels = f"a {settings.depth}-level network" if settings.depth else name
        raise UsageError(f"--tile {tile} does not fit {levels} with padding {settings.padding}: give {near}")


def _with_depth(settings: Settings, tile: int) -> Settings:
    """With the depth that windows of `tile` px allow, where it is open and the network takes one."""
    if settings.depth is not None or "depth" not in network(settings):
        return settings
    return settings.model_copy(update={"depth": auto_depth(tile)})


def _fits(settings: Settings, tile: int) -> bool:
    architecture = network(settings)
    cut = 2 * architectures.margin(architecture)
    return tile > 0 and (tile + cut) % architectures.multiple(architecture) == 0


def _rounded_up(settings: Settings, tile: int) -> int:
    """The smallest tile from `tile` on that the network takes."""
    return next(t for t in itertools.count(tile) if _fits(settings, t))
