"""Scenes at an asked pixel size: images averaged or interpolated as `infer` does, masks by their nearest pixel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from raysegment.errors import UsageError
from raysegment.raster import PixelSize, Raster, open_raster
from raysegment.raster.resolution import asked_pixel_size, choose_sampling
from raysegment.raster.sampling import Sampling, sampled
from raysegment.training.dataset import Scene


def at_pixel_size(scenes: Sequence[Scene], pixel_size: float) -> tuple[tuple[Scene, ...], PixelSize]:
    """The scenes on grids of `pixel_size`, an edge length in the images' own unit, and what that is as the
    model says it.

    Raises UsageError naming an image that does not say its pixel size or would not fit that grid, and two
    images of which it would be different lengths.
    """
    found: list[Scene] = []
    first: tuple[str, PixelSize] | None = None
    for scene in scenes:
        image = open_raster(scene.image)
        asked = asked_pixel_size(image, pixel_size)
        sampling, _ = choose_sampling(image, pixel_size=pixel_size)
        image.close()
        first = first or (scene.image, asked)
        if not _same(asked, first[1]):
            raise UsageError(
                f"--pixel-size {pixel_size:g} is {_length(first[1])} in {first[0]} and {_length(asked)} in "
                f"{scene.image}: train on images of one unit"
            )
        size = scene.size if sampling is None else sampling.size
        found.append(dataclasses.replace(scene, size=size, sampling=sampling))
    assert first is not None
    return tuple(found), first[1]


def open_image(scene: Scene) -> Raster:
    """The image on the scene's grid."""
    return sampled(open_raster(scene.image), scene.sampling)


def open_mask(scene: Scene) -> Raster:
    """The mask on the scene's grid: values as stored, each that of the pixel under its centre."""
    grid = None if scene.sampling is None else Sampling(level=0, size=scene.size)
    return sampled(open_raster(scene.mask), grid, labels=True)


def _same(a: PixelSize, b: PixelSize) -> bool:
    return a[2] == b[2] and abs(a[0] - b[0]) <= 1e-6 * b[0]


def _length(pixel_size: PixelSize) -> str:
    return f"{pixel_size[0]:.4g} {pixel_size[2] or '(no unit)'}"
