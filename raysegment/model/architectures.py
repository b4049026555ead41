"""Networks by name: what `spec.architecture` says is what :func:`build` makes.

An architecture is {"name": …} plus the keyword arguments of the network, all of them plain values, so
that it travels in the model file. To add one: a settings class here, and its module beside `unet.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raysegment.errors import InputError

if TYPE_CHECKING:
    from raysegment.model.unet import UNet


class UNetSettings(BaseModel):
    """What `unet` takes; see :class:`raysegment.model.unet.UNet`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["unet"] = "unet"
    in_channels: int = Field(ge=1)
    out_channels: int = Field(ge=1)
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
    def receptive_radius(self) -> int:
        from raysegment.model.unet import receptive_radius

        return receptive_radius(self.depth)


_KNOWN: dict[str, type[UNetSettings]] = {"unet": UNetSettings}


def settings(architecture: Mapping[str, Any]) -> UNetSettings:
    """The checked settings of an architecture: its `multiple`, `margin`, `receptive_radius`, `build()`.

    Raises InputError for an unknown name or key (naming the nearest known one) and for a bad value.
    """
    name = architecture.get("name")
    if name not in _KNOWN:
        near = difflib.get_close_matches(str(name), _KNOWN, n=1, cutoff=0)[0]
        raise InputError(f"unknown architecture {name!r}; the nearest is {near!r}")
    kind = _KNOWN[name]
    for key in architecture:
        if key not in kind.model_fields:
            near = difflib.get_close_matches(key, kind.model_fields, n=1, cutoff=0)[0]
            raise InputError(f"architecture {name!r}: unknown key {key!r}; the nearest is {near!r}")
    try:
        return kind.model_validate(dict(architecture))
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        found = f", not {first['input']!r}" if first["type"] != "missing" else ""
        raise InputError(f"architecture {name!r}: {where}: {first['msg']}{found}") from e


def build(architecture: Mapping[str, Any]) -> UNet:
    """A fresh network, with random weights from torch's generator. Raises InputError as :func:`settings`."""
    return settings(architecture).build()


def multiple(architecture: Mapping[str, Any]) -> int:
    """Both edges of the network's input must be multiples of this."""
    return settings(architecture).multiple


def margin(architecture: Mapping[str, Any]) -> int:
    """Pixels that the output is smaller than the input, on each side."""
    return settings(architecture).margin


def receptive_radius(architecture: Mapping[str, Any]) -> int:
    """How far from an output pixel the input can still change it, in pixels (norm "group" sees all)."""
    return settings(architecture).receptive_radius
