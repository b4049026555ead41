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

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F

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
        images, targets, valid = (
            torch.stack([_symmetry(t, plan.symmetry) for t, plan in zip(part, plans, strict=True)])
            for part in (images, targets, valid)
        )
    else:
        images, targets, valid = _warp(images, targets, valid, plans, edge)
    # in place: these are copies by now
    images.mul_(_column(plans, "contrast", images)).add_(_column(plans, "brightness", images))
    if policy == "strong":
        for image, plan in zip(images, plans, strict=True):
            image.add_(_noise(plan, image))
    images.mul_(valid[:, None])
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
    grid = _grid(plans, edge, images)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # One number tells all: 0 outside, else 1 + target, and 256 more where the image has data. Less 1, in eight
    # bits, it is the target, and 255, which is IGNORE, outside.
    codes = valid.to(images.dtype).mul_(256).add_(targets).add_(1)[:, None]
    codes = F.grid_sample(codes, grid, mode="nearest", padding_mode="zeros", align_corners=False)[:, 0]
    codes = codes.to(torch.int16)
    return moved, (codes - 1).to(torch.uint8), codes > 256


def _grid(plans: Sequence[_Plan], edge: int, images: torch.Tensor) -> torch.Tensor:
    """Where each output pixel looks: (n, edge, edge, 2) x, y in grid_sample's units of the `images`."""
    turns, points = [], []
    for plan in plans:
        angle = plan.angle + plan.symmetry % 4 * math.pi / 2
        cos, sin, mirrored = math.cos(angle), math.sin(angle), -1 if plan.symmetry >= 4 else 1
        matrix = (
            np.array([[mirrored * cos, -sin], [mirrored * sin, cos]]) * 2 / (plan.scale * images.shape[-1])
        )
        turns.append(matrix)
        points.append(np.einsum("ij,jyx->iyx", matrix, plan.displacement))
    turn, point = (torch.from_numpy(np.stack(t)).to(images.device, images.dtype) for t in (turns, points))
    place = torch.arange(edge, dtype=images.dtype, device=images.device) - (edge - 1) / 2
    shares = _shares(edge, point.shape[-1]).to(images.device, images.dtype)
    # Sums of products element by element: a matrix product may round otherwise in a batch of another size.
    rows = point.new_zeros((len(plans), 2, edge, point.shape[-1]))
    for k, share in enumerate(shares.unbind(1)):
        rows.addcmul_(share[:, None], point[:, :, k, None])
    grid = turn[:, :, 0, None, None] * place + (turn[:, :, 1, None] * place)[..., None]
    for k, share in enumerate(shares.unbind(1)):
        grid.addcmul_(rows[..., k, None], share)
    return grid.permute(0, 2, 3, 1)


@functools.lru_cache(maxsize=8)
def _shares(edge: int, points: int) -> torch.Tensor:
    """(edge, points): the share of each grid point in each pixel's displacement, bicubic, the outer at the edges."""
    each = torch.eye(points)[None, None]
    return F.interpolate(each, size=(edge, points), mode="bicubic", align_corners=True)[0, 0]


def _column(plans: Sequence[_Plan], name: str, like: torch.Tensor) -> torch.Tensor:
    values = [getattr(plan, name) for plan in plans]
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1, 1)


def _noise(plan: _Plan, image: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator(image.device).manual_seed(plan.noise_seed)
    noise = torch.randn(image.shape, generator=generator, device=image.device, dtype=image.dtype)
    return noise.mul_(plan.noise)
