"""What a network needs to be used right: it travels inside the model file."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raysegment.console import counted

Activation = Literal["softmax", "sigmoid", "none"]
Byte = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Byte, Byte, Byte]

#: Distinct, readable on satellite and tissue alike; classes beyond it start again from the second entry.
PALETTE: tuple[Colour, ...] = (
    (40, 40, 40),
    (255, 187, 51),
    (0, 158, 115),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (86, 180, 233),
    (240, 228, 66),
    (148, 103, 189),
    (140, 86, 75),
)


class Class(BaseModel):
    """One class: its name, its colour in pictures and how it was coded in the training masks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    colour: Colour
    value: int | tuple[int, int, int] | None = None
    """Pixel value or colour in the masks it was learned from."""


def default_classes(count: int) -> tuple[Class, ...]:
    """`count` classes named "class 0", "class 1", … with the palette's colours."""
    colours = [PALETTE[i] if i < len(PALETTE) else PALETTE[1 + i % (len(PALETTE) - 1)] for i in range(count)]
    return tuple(Class(name=f"class {i}", colour=c, value=i) for i, c in enumerate(colours))


class ModelSpec(BaseModel):
    """Channels, normalisation, classes and tile of a network.

    Per channel x' = (x · scale − mean) / std; the network takes NCHW float32 and answers logits, or,
    with activation "none", probabilities. One sigmoid channel means two classes, index 1 being the channel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    classes: tuple[Class, ...] = Field(min_length=2)
    channels: int = Field(ge=1)
    scale: float = Field(default=1.0, gt=0)
    mean: tuple[float, ...] = (0.0,)
    """One per channel, or one for all."""
    std: tuple[float, ...] = (1.0,)
    activation: Activation = "softmax"
    tile: int = Field(default=512, ge=1)
    """Edge of the tile (the network's output, in pixels) it was trained at."""
    multiple: int = Field(default=1, ge=1)
    """The network's input edge must be a multiple of this."""
    margin: int = Field(default=0, ge=0)
    """How much smaller the output is than the input, on each side (unpadded networks)."""
    pixel_size: tuple[float, float, str | None] | None = None
    thresholds: tuple[float, ...] | None = None
    """Operating threshold θ per class: the label is argmax of p/θ. None: all equal."""
    nodata: float | None = None
    """What means no data in images that have no such value of their own; NaN always does."""
    licence: str | None = None
    architecture: dict[str, Any] | None = None
    """What rebuilds the module: {"name": "unet", …}. None for networks that users bring."""
    provenance: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        for name in ("mean", "std"):
            n = len(getattr(self, name))
            if n not in (1, self.channels):
                raise ValueError(
                    f"{name} has {counted(n, 'value')}, the model {counted(self.channels, 'channel')}: "
                    f"give one or {self.channels}"
                )
        if any(s <= 0 for s in self.std):
            raise ValueError(f"std {self.std} must be positive")
        if self.thresholds is not None:
            if len(self.thresholds) != len(self.classes):
                raise ValueError(
                    f"thresholds has {counted(len(self.thresholds), 'value')} for {counted(len(self.classes), 'class')}"
                )
            if any(not 0 < t <= 1 for t in self.thresholds):
                raise ValueError(f"thresholds {self.thresholds} must lie in (0, 1]")
        names = [c.name for c in self.classes]
        if len(set(names)) != len(names):
            raise ValueError(f"class names {names} must differ")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)
