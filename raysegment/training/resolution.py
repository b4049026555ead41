"""Scenes at an asked pixel size: images averaged or interpolated as `infer` does, masks by their nearest pixel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from raysegment.errors import UsageError
from raysegment.raster import PixelSize, Raster
from raysegment.raster.resolution import asked_pixel_size, choose_sampling
from raysegment.raster.sampling import Sampling, sampled
from raysegment.training.forms import Scene, Source


@dataclass(frozen=True, slots=True)
class Resampled:
    """A source on another grid than its own."""

    source: Source
    sampling: Sampling
    labels: bool = False
    """Values as stored, each that of the pixel under its centre, as masks need it."""

    def open(self) -> Raster:
        return sampled(self.source.open(), self.sampling, labels=self.labels)

    def __str__(self) -> str:
        return str(self.source)


def at_pixel_size(scenes: Sequence[Scene], pixel_size: float) -> tuple[tuple[Scene, ...], PixelSize]:
    """The scenes on grids of `pixel_size`, an edge length in the images' own unit, and what that is as the
    model says it.

    Raises UsageError naming an image that does not say its pixel size or would not fit that grid, and two
    images of which it would be different lengths.
    """
    found: list[Scene] = []
    first: tuple[str, PixelSize] | None = None
    for scene in scenes:
        with closing(scene.image.open()) as image:
            asked = asked_pixel_size(image, pixel_size)
            sampling, _ = choose_sampling(image, pixel_size=pixel_size)
        first = first or (str(scene.image), asked)
        if not _same(asked, first[1]):
            raise UsageError(
                f"--pixel-size {pixel_size:g} is {_length(first[1])} in {first[0]} and {_length(asked)} in "
                f"{scene.image}: train on images of one unit"
            )
        found.append(scene if sampling is None else _on_grid(scene, sampling))
    assert first is not None
    return tuple(found), first[1]


def _on_grid(scene: Scene, sampling: Sampling) -> Scene:
    image = Resampled(scene.image, sampling)
    mask = Resampled(scene.mask, Sampling(level=0, size=sampling.size), labels=True)
    return dataclasses.replace(scene, image=image, mask=mask, size=sampling.size)


def _same(a: PixelSize, b: PixelSize) -> bool:
    return a[2] == b[2] and abs(a[0] - b[0]) <= 1e-6 * b[0]


def _length(pixel_size: PixelSize) -> str:
    return f"{pixel_size[0]:.4g} {pixel_size[2] or '(no unit)'}"
