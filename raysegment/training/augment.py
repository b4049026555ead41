"""Augmentation of a batch, on the device it is trained on.

What happens to a sample is a function of (seed, sample index), so it does not depend on who trains it.

``none``    the window as it is
``light``   the eight symmetries of the square, brightness and contrast: pixels move, none is interpolated
``strong``  also any rotation, scale, elastic deformation (displacements on a coarse grid, as in the U-Net
            paper) and noise; the window is read with enough around it that little is unknown

Images are interpolated bilinearly, targets taken from the nearest pixel; where nothing is known the image
is 0 (the mean) and the target IGNORE.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F

from raysegment.training.windows import IGNORE

Policy = Literal["none", "light", "strong"]
POLICIES: tuple[str, ...] = get_args(Policy)

#: Ranges, in normalised units where they are about values.
_SCALE = (0.8, 1.25)
_CONTRAST = (0.75, 1.33)
_BRIGHTNESS = 0.2
_NOISE = 0.1
#: Standard deviation of an elastic displacement and distance of the grid points that are displaced.
_ELASTIC_PX = 6.0
_ELASTIC_SPACING = 96


@dataclass(frozen=True, slots=True)
class _Plan:
    """What happens to one sample."""

    symmetry: int
    brightness: float
    contrast: float
    angle: float
    scale: float
    displacement: np.ndarray
    """(2, rows, cols) pixels: x, then y."""
    noise: float
    noise_seed: int


def context(policy: Policy, edge: int) -> int:
    """Pixels to read around a window of `edge` on each side: what a diagonal view reaches at scale 1."""
    return math.ceil(edge * (math.sqrt(2) - 1) / 2) if policy == "strong" else 0


def augment(
    images: torch.Tensor,
    targets: torch.Tensor,
    valid: torch.Tensor,
    indices: Sequence[int],
    *,
    edge: int,
    policy: Policy,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images (n, c, e, e), targets (n, e, e) uint8 and image validity (n, e, e) bool, where e is
    `edge` and its `context` around → images and targets of `edge`. `indices`: the samples' places in the run."""
    if policy == "none":
        return images, targets
    plans = [_plan(seed, i, edge) for i in indices]
    if policy == "light":
        symmetric = [
            tuple(_symmetry(t[i], plan.symmetry) for t in (images, targets, valid))
            for i, plan in enumerate(plans)
        ]
        images, targets, valid = (torch.stack(parts) for parts in zip(*symmetric, strict=True))
    else:
        images, targets, valid = _warp(images, targets, valid, plans, edge)
    contrast, brightness = (
        torch.tensor([getattr(p, name) for p in plans], dtype=images.dtype, device=images.device).view(
            -1, 1, 1, 1
        )
        for name in ("contrast", "brightness")
    )
    images = images * contrast + brightness
    if policy == "strong":
        images = images + torch.stack([_noise(p, images) for p in plans])
    images = images * valid[:, None].to(images.dtype)
    return images.contiguous(memory_format=torch.channels_last), targets


def _plan(seed: int, index: int, edge: int) -> _Plan:
    rng = np.random.default_rng((seed, 1, index))
    points = max(2, round(edge / _ELASTIC_SPACING)) + 1
    return _Plan(
        symmetry=int(rng.integers(8)),
        brightness=float(rng.normal(0, _BRIGHTNESS)),
        contrast=float(np.exp(rng.uniform(*np.log(_CONTRAST)))),
        angle=float(rng.uniform(-math.pi / 4, math.pi / 4)),
        scale=float(np.exp(rng.uniform(*np.log(_SCALE)))),
        displacement=rng.normal(0, _ELASTIC_PX, (2, points, points)),
        noise=float(rng.uniform(0, _NOISE)),
        noise_seed=int(rng.integers(2**62)),
    )


def _symmetry(t: torch.Tensor, which: int) -> torch.Tensor:
    """One of the eight symmetries of the square, of the last two axes."""
    t = torch.rot90(t, which % 4, (-2, -1))
    return t.flip(-1) if which >= 4 else t


def _warp(
    images: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor, plans: Sequence[_Plan], edge: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grid = torch.stack([_grid(p, edge, images.shape[-1]) for p in plans]).to(images.device, images.dtype)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # IGNORE is 255: shifted by one, what is sampled from outside, 0, is told from class 0
    labels = torch.stack([targets.to(images.dtype) + 1, valid.to(images.dtype)], dim=1)
    labels = F.grid_sample(labels, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    known = labels[:, 0] > 0
    moved_targets = torch.where(known, labels[:, 0] - 1, IGNORE).to(torch.uint8)
    return moved, moved_targets, labels[:, 1] > 0


def _grid(plan: _Plan, edge: int, read: int) -> torch.Tensor:
    """Where each output pixel looks: (edge, edge, 2) x, y in grid_sample's units of a `read`-wide input."""
    place = torch.arange(edge, dtype=torch.float32) - (edge - 1) / 2
    y, x = torch.meshgrid(place, place, indexing="ij")
    shift = F.interpolate(
        torch.from_numpy(plan.displacement).float()[None],
        size=(edge, edge),
        mode="bicubic",
        align_corners=True,
    )[0]
    x, y = x + shift[0], y + shift[1]
    if plan.symmetry >= 4:
        x = -x
    angle = plan.angle + plan.symmetry % 4 * math.pi / 2
    cos, sin = math.cos(angle) / plan.scale, math.sin(angle) / plan.scale
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1) * 2 / read


def _noise(plan: _Plan, images: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator(images.device).manual_seed(plan.noise_seed)
    shape = images.shape[1:]
    return plan.noise * torch.randn(shape, generator=generator, device=images.device, dtype=images.dtype)
