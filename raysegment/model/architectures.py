"""Networks by name: what `spec.architecture` says is what :func:`build` makes.

An architecture is {"name": …} plus the keyword arguments of the network, all of them plain values, so
that it travels in the model file. To add one: a settings class here, and its module beside `unet.py`.

``unet``                        ours, padded or, by ``padding="valid"``, that of the paper
``unet-keras``                  the variant of zhixuhao/unet
``LIBRARY[:DECODER]:ENCODER``   an encoder of smp, timm or MONAI by the name it has there, see `encoder.py`
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raysegment.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from raysegment.model.encoder import EncoderNetwork
    from raysegment.model.unet import UNet
    from raysegment.model.unet_keras import UNetKeras


class _Network(BaseModel):
    """What every network takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_channels: int = Field(ge=1)
    out_channels: int = Field(ge=1)


class UNetSettings(_Network):
    """What `unet` takes; see :class:`raysegment.model.unet.UNet`."""

    name: Literal["unet"] = "unet"
    base_width: int = Field(default=16, ge=1)
    depth: int = Field(default=4, ge=1, le=8)
    norm: Literal["batch", "group", "none"] = "batch"
    padding: Literal["same", "valid"] = "same"
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def build(self) -> UNet:
        from raysegment.model.unet import UNet

        return UNet(**self.model_dump(exclude={"name"}))

    @property
    def multiple(self) -> int:
        from raysegment.model.unet import multiple

        return multiple(self.depth)

    @property
    def margin(self) -> int:
        from raysegment.model.unet import margin

        return margin(self.depth, self.padding)

    @property
    def receptive_radius(self) -> int | None:
        """GroupNorm sees all."""
        from raysegment.model.unet import receptive_radius

        return None if self.norm == "group" else receptive_radius(self.depth)


class UNetKerasSettings(_Network):
    """What `unet-keras` takes; see :class:`raysegment.model.unet_keras.UNetKeras`."""

    name: Literal["unet-keras"] = "unet-keras"
    base_width: int = Field(default=64, ge=1)
    depth: int = Field(default=4, ge=1, le=8)
    dropout: float = Field(default=0.5, ge=0, lt=1)

    def build(self) -> UNetKeras:
        from raysegment.model.unet_keras import UNetKeras

        return UNetKeras(**self.model_dump(exclude={"name"}))

    @property
    def multiple(self) -> int:
        from raysegment.model.unet import multiple

        return multiple(self.depth)

    @property
    def margin(self) -> int:
        return 0

    @property
    def receptive_radius(self) -> int:
        from raysegment.model.unet import receptive_radius

        return receptive_radius(self.depth, head=1, widen=1)


class EncoderSettings(_Network):
    """What an encoder of another library takes; see :class:`raysegment.model.encoder.EncoderNetwork`."""

    name: str

    def build(self, *, pretrained: bool = False) -> EncoderNetwork:
        from raysegment.model.encoder import EncoderNetwork

        return EncoderNetwork(**self.model_dump(), pretrained=pretrained)

    @property
    def multiple(self) -> int:
        """Five halvings, of every encoder that is offered."""
        return 32

    @property
    def margin(self) -> int:
        return 0

    @property
    def receptive_radius(self) -> int | None:
        """Not known: it differs from encoder to encoder, and attention sees all."""
        return None


Settings = UNetSettings | UNetKerasSettings | EncoderSettings

_KNOWN: dict[str, type[UNetSettings] | type[UNetKerasSettings]] = {
    "unet": UNetSettings,
    "unet-keras": UNetKerasSettings,
}


@runtime_checkable
class StartsAtPrior(Protocol):
    """A network whose first answer can be set to the class frequencies."""

    def set_prior(self, frequencies: Sequence[float], activation: Literal["softmax", "sigmoid"]) -> None: ...


def kind(name: object) -> type[Settings]:
    """The settings class of an architecture. Raises InputError for an unknown name, with the nearest known one."""
    if isinstance(name, str) and ":" in name:
        from raysegment.model.encoder import EncoderName

        EncoderName.parse(name)
        return EncoderSettings
    if not isinstance(name, str) or name not in _KNOWN:
        near = difflib.get_close_matches(str(name), _KNOWN, n=1, cutoff=0)[0]
        raise InputError(
            f"unknown architecture {name!r}; the nearest is {near!r} "
            "(encoders: smp:DECODER:ENCODER, timm:ENCODER, monai:ENCODER)"
        )
    return _KNOWN[name]


def settings(architecture: Mapping[str, Any]) -> Settings:
    """The checked settings of an architecture: its `multiple`, `margin`, `receptive_radius`, `build()`.

    Raises InputError for an unknown name or key (naming the nearest known one) and for a bad value.
    """
    name = architecture.get("name")
    known = kind(name)
    for key in architecture:
        if key not in known.model_fields:
            near = difflib.get_close_matches(key, known.model_fields, n=1, cutoff=0)[0]
            raise InputError(f"architecture {name!r}: unknown key {key!r}; the nearest is {near!r}")
    try:
        return known.model_validate(dict(architecture))
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        found = f", not {first['input']!r}" if first["type"] != "missing" else ""
        raise InputError(f"architecture {name!r}: {where}: {first['msg']}{found}") from e


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """A fresh network, with random weights from torch's generator.

    Raises InputError as :func:`settings`, and UsageError where an encoder's library is not installed.
    """
    return settings(architecture).build()


def build_pretrained(architecture: Mapping[str, Any]) -> nn.Module:
    """The same with its encoder's weights as its library has learned them, which may download them.

    Raises InputError where there are none.
    """
    known = settings(architecture)
    if not isinstance(known, EncoderSettings):
        raise InputError(f"architecture {known.name!r} has no pretrained weights: name an encoder")
    return known.build(pretrained=True)


def multiple(architecture: Mapping[str, Any]) -> int:
    """Both edges of the network's input must be multiples of this."""
    return settings(architecture).multiple


def margin(architecture: Mapping[str, Any]) -> int:
    """Pixels that the output is smaller than the input, on each side."""
    return settings(architecture).margin


def receptive_radius(architecture: Mapping[str, Any]) -> int | None:
    """How far from an output pixel the input can still change it, in pixels; None where that is not known, or all of
    it can."""
    return settings(architecture).receptive_radius
