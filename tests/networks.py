"""Small networks whose answer is known, for tests of everything around the network."""

from __future__ import annotations

import torch
from torch import nn

from raysegment.model.model import Model
from raysegment.model.spec import ModelSpec, default_classes


class Constant(nn.Module):
    """The same class probabilities everywhere."""

    def __init__(self, probabilities: tuple[float, ...], margin: int = 0) -> None:
        super().__init__()
        self.register_buffer("p", torch.tensor(probabilities).view(1, -1, 1, 1))
        self.margin = margin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, _, h, w = x.shape
        m = 2 * self.margin
        return self.p.expand(n, -1, h - m, w - m)


class Identity(nn.Module):
    """The first channel, already in [0, 1], as the probability of class 1."""

    def __init__(self, margin: int = 0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        m = self.margin
        return x[:, :1, m : x.shape[2] - m, m : x.shape[3] - m]


def constant(probabilities: tuple[float, ...] = (0.3, 0.7), *, channels: int = 1, **spec: object) -> Model:
    module = Constant(probabilities, margin=int(spec.get("margin", 0)))  # type: ignore[call-overload]
    return Model(
        module,
        ModelSpec(classes=default_classes(len(probabilities)), channels=channels, activation="none", **spec),  # type: ignore[arg-type]
    )


def identity(*, channels: int = 1, **spec: object) -> Model:
    """Probability of class 1 = first channel / 255."""
    module = Identity(margin=int(spec.get("margin", 0)))  # type: ignore[call-overload]
    return Model(
        module,
        ModelSpec(classes=default_classes(2), channels=channels, scale=1 / 255, activation="none", **spec),  # type: ignore[arg-type]
    )


def convolutional(*, channels: int = 1, classes: int = 3, seed: int = 0, **spec: object) -> Model:
    """Three random 3 × 3 convolutions: an answer that depends on its surroundings and on nothing else."""
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, classes, 3, padding=1),
    )
    return Model(
        module,
        ModelSpec(classes=default_classes(classes), channels=channels, scale=1 / 64, mean=(2.0,), **spec),  # type: ignore[arg-type]
    )


def contrasting(classes: int, seed: int = 0) -> Model:
    """Sees the whole tile, as networks with InstanceNorm do: so tiles disagree wherever they overlap."""
    plain = convolutional(classes=classes, seed=seed)
    return Model(nn.Sequential(plain.module, nn.InstanceNorm2d(classes)), plain.spec)
