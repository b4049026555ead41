"""Encoders of other libraries (extra `encoders`) under a U-Net's decoder, by the names they have there.

``smp:DECODER:ENCODER``  segmentation-models-pytorch: ``smp:unet:resnet34``, ``smp:fpn:efficientnet-b3``
``timm:ENCODER``         any encoder of timm, under smp's U-Net: ``timm:convnext_tiny``; ``timm:DECODER:ENCODER``
``monai:ENCODER``        MONAI's FlexibleUNet: ``monai:resnet18``, ``monai:efficientnet-b0``

Weights are random unless pretrained ones are asked for in training; a model file rebuilds without any download.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any, Literal

from torch import Tensor, nn

from raysegment.errors import InputError, UsageError
from raysegment.model.brought import first_line
from raysegment.model.unet import start_at_prior

_PACKAGES = {
    "smp": ("segmentation_models_pytorch",),
    "timm": ("timm", "segmentation_models_pytorch"),
    "monai": ("monai",),
}
#: No colon and no slash: timm and smp would take such a name for a place to load code or weights from.
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NON_COMMERCIAL = re.compile(r"\bnc\b|non-?commercial", re.IGNORECASE)
#: smp keeps the code of these under NVIDIA's licence; its own metadata says MIT for all.
_NVIDIA = "NVIDIA Source Code License (non-commercial)"
#: Rates of the efficientnets of MONAI and smp, which draw inside forward, by the order of the samples: off, so that
#: what a sample meets does not depend on which worker has it.
_DRAWN_INSIDE = ("drop_connect_rate", "_drop_connect_rate")


@dataclass(frozen=True, slots=True)
class EncoderName:
    """``LIBRARY[:DECODER]:ENCODER``, taken apart."""

    library: Literal["smp", "timm", "monai"]
    decoder: str
    encoder: str

    @classmethod
    def parse(cls, name: str) -> EncoderName:
        """Raises InputError for what is no such name."""
        library, *decoder, encoder = name.split(":")
        if library not in _PACKAGES:
            near = difflib.get_close_matches(library, _PACKAGES, n=1, cutoff=0)[0]
            raise InputError(f"architecture {name!r}: unknown library {library!r}; the nearest is {near!r}")
        if len(decoder) > 1 or not all(_PLAIN.fullmatch(part) for part in (*decoder, encoder)):
            raise InputError(f"architecture {name!r}: write {library}:ENCODER or {library}:DECODER:ENCODER")
        return cls(library, decoder[0] if decoder else "unet", encoder)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Licence:
    """Of an encoder, as its library states it."""

    code: str
    weights: str | None
    """Of the pretrained weights; None where none are loaded."""

    @property
    def non_commercial(self) -> bool:
        return any(_NON_COMMERCIAL.search(text) for text in (self.code, self.weights or ""))

    def __str__(self) -> str:
        return f"code {self.code}, " + (f"weights {self.weights}" if self.weights else "no weights loaded")


class EncoderNetwork(nn.Module):
    """(n, in_channels, h, w) float → logits (n, out_channels, h, w); h and w are multiples of 32.

    Raises UsageError where the library is not installed, InputError for a name that it does not know and for
    pretrained weights that cannot be had.
    """

    def __init__(self, name: str, in_channels: int, out_channels: int, *, pretrained: bool = False) -> None:
        super().__init__()
        parsed = EncoderName.parse(name)
        make = _flexible_unet if parsed.library == "monai" else _smp_network
        self.network = make(parsed, in_channels, out_channels, pretrained)
        for part in self.network.modules():
            for rate in _DRAWN_INSIDE:
                if hasattr(part, rate):
                    setattr(part, rate, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def set_prior(self, frequencies: Sequence[float], activation: Literal["softmax", "sigmoid"]) -> None:
        """Start the head, small, at the class frequencies (one per output)."""
        head = [m for m in self.network.modules() if isinstance(m, nn.Conv2d)][-1]
        nn.init.normal_(head.weight, std=0.01)
        start_at_prior(head, frequencies, activation)


def licence(name: str, *, pretrained: bool) -> Licence:
    """Under which licence the encoder's code and, if they are asked for, its weights are. Raises as the network."""
    parsed = EncoderName.parse(name)
    package = _PACKAGES[parsed.library][0]
    _require(parsed)
    code = _NVIDIA if parsed.library == "smp" and parsed.encoder.startswith("mit_b") else _licence_of(package)
    if not pretrained:
        return Licence(code, None)
    timm_name = parsed.encoder.removeprefix("tu-")
    if parsed.library == "timm" or (parsed.library == "smp" and timm_name != parsed.encoder):
        config = importlib.import_module("timm.models").get_pretrained_cfg(timm_name)
        return Licence(code, (config and config.license) or "not stated by timm")
    return Licence(code, f"not stated by {package}")


def _smp_network(name: EncoderName, channels: int, outputs: int, pretrained: bool) -> nn.Module:
    smp = _require(name)
    decoders = smp.MODEL_ARCHITECTURES_MAPPING
    _known(name, "decoder", name.decoder, decoders)
    timm_name = name.encoder if name.library == "timm" else name.encoder.removeprefix("tu-")
    if name.library == "timm" or timm_name != name.encoder:
        timm = importlib.import_module("timm")
        _known(name, "encoder", timm_name.partition(".")[0], timm.list_models())
        encoder = f"tu-{timm_name}"
    else:
        encoder = name.encoder
        _known(name, "encoder", encoder, smp.encoders.encoders)
    weights = "imagenet" if pretrained else None
    try:
        network = decoders[name.decoder](
            encoder_name=encoder, encoder_weights=weights, in_channels=channels, classes=outputs
        )
    except Exception as e:  # an encoder without the features that this decoder asks for; a failed download
        raise _failure(name, pretrained, e) from e
    network.requires_divisible_input_shape = False  # `multiple` says it, and the check stops fx and export
    return network


def _flexible_unet(name: EncoderName, channels: int, outputs: int, pretrained: bool) -> nn.Module:
    _require(name)
    _known(name, "decoder", name.decoder, ("unet",))
    module = importlib.import_module("monai.networks.nets.flexible_unet")
    _known(name, "encoder", name.encoder, module.FLEXUNET_BACKBONE.register_dict)
    try:
        network = module.FlexibleUNet(
            channels, outputs, backbone=name.encoder, pretrained=pretrained, is_pad=False
        )
    except Exception as e:  # no 2D weights for this encoder; a failed download
        raise _failure(name, pretrained, e) from e
    return network


def _require(name: EncoderName) -> Any:
    """The last of the library's packages. Raises UsageError."""
    module = None
    for package in _PACKAGES[name.library]:
        try:
            module = importlib.import_module(package)
        except ImportError as e:
            raise UsageError(
                f"architecture {name.library}:… needs {package}, which is not installed: "
                "pip install 'raysegment[encoders]'"
            ) from e
        except RuntimeError as e:  # a torchvision built for another torch
            raise UsageError(
                f"architecture {name.library}:… needs {package}, which fails to load ({first_line(e)}): "
                "install torch and torchvision from one index"
            ) from e
    return module


def _known(name: EncoderName, what: str, value: str, known: Iterable[str]) -> None:
    known = list(known)
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1, cutoff=0)[0]
        raise InputError(f"{name.library} has no {what} {value!r}; the nearest is {near!r}")


def _failure(name: EncoderName, pretrained: bool, error: Exception) -> InputError:
    what = "its pretrained weights cannot be loaded" if pretrained else "it cannot be built"
    return InputError(f"{name.library} {name.decoder} with {name.encoder}: {what}: {first_line(error)}")


def _licence_of(package: str) -> str:
    """What an installed package's metadata says."""
    try:
        about = metadata(package)
    except PackageNotFoundError:  # importable without having been installed
        return "not stated"
    stated = (about[key] for key in ("License-Expression", "License") if key in about)
    return next(stated, "not stated")
