"""What the scenes of a training set have in common, and how they are divided.

Where scenes come from is in forms/. Nothing here keeps pixels: images may be of any size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np

from raysegment.console import counted
from raysegment.errors import InputError
from raysegment.raster import PixelSize
from raysegment.raster.validity import unusable
from raysegment.threads import OPENERS, in_order
from raysegment.training.forms import Scene, Source, find_scenes
from raysegment.training.forms.find import header

__all__ = [
    "Format", "Scene", "common_format", "find_scenes", "identities", "identity", "usable",
]  # fmt: skip

#: Pixel sizes that differ by less than this share count as one.
_SAME_PIXEL_SIZE = 0.01


@dataclass(frozen=True, slots=True)
class Format:
    """What all images of a set have in common."""

    channels: tuple[int, ...]
    """Indices of the stored channels that the network sees: all but alpha."""
    dtype: str
    pixel_size: PixelSize | None
    """None where the images have none or do not agree."""


def common_format(scenes: Sequence[Scene]) -> Format:
    """Channels, dtype and pixel size of the images. Raises InputError naming two that differ."""
    first: tuple[str, int, str] | None = None
    alphas, pixel_sizes, palettes = set(), [], dict[object, str]()
    for scene, image in zip(scenes, in_order(lambda s: header(s.image), scenes, OPENERS), strict=True):
        this = (str(scene.image), image.shape[2] - (image.alpha is not None), str(image.dtype))
        alphas.add((image.alpha, image.shape[2]))
        pixel_sizes.append(image.pixel_size)
        palettes.setdefault(image.palette, str(scene.image))
        first = first or this
        if this[1:] != first[1:]:
            raise InputError(
                f"images must be of one kind: {first[0]} has {counted(first[1], 'channel')} of {first[2]}, "
                f"{this[0]} has {this[1]} of {this[2]}"
            )
    assert first is not None
    if len(palettes) > 1:
        one, other = list(palettes.values())[:2]
        raise InputError(
            f"the images hold entries of palettes, not of one palette ({one}, {other}): convert them to RGB"
        )
    layouts = {tuple(c for c in range(count) if c != alpha) for alpha, count in alphas}
    if len(layouts) > 1:
        raise InputError(
            f"images must be of one kind: alpha is at different places in {scenes[0].image} and others"
        )
    return Format(layouts.pop(), first[2], _common_pixel_size(pixel_sizes))


def identities(scenes: Sequence[Scene]) -> list[tuple[str, str]]:
    """Digests of the content of each image and mask; the same wherever the files lie, whatever they are called."""
    known = _Contents()
    return list(in_order(lambda scene: (known.of(scene.image), known.of(scene.mask)), scenes, OPENERS))


def identity(scenes: Sequence[Scene], contents: Sequence[tuple[str, str]] | None = None) -> str:
    """A digest of names and contents, the latter by :func:`identities`; the same wherever the files lie."""
    digest = hashlib.blake2b(digest_size=16)
    for scene, parts in zip(scenes, contents or identities(scenes), strict=True):
        for part in parts:
            digest.update(f"{scene.name}\0{part}\0".encode())
    return digest.hexdigest()


class _Contents:
    """Digests of files, each found once: the planes of a stack and the polygons of many scenes share one."""

    def __init__(self) -> None:
        self._known: dict[object, str] = {}
        self._locks: dict[object, Lock] = {}

    def of(self, source: Source) -> str:
        """The digest of a source's file, and its plane of it. For any thread."""
        raster = source.open()
        file = raster.path, getattr(raster, "part", None)
        with self._locks.setdefault(file, Lock()):
            if file not in self._known:
                self._known[file] = raster.identity()
        raster.close()
        plane = "".join(f" {axis}={index}" for axis, index in sorted(raster.select.items()))
        return self._known[file] + plane


def usable(pixels: np.ndarray, valid: np.ndarray | None, path: str) -> np.ndarray:
    """Pixels (h, w, channels) in a dtype that torch takes. Raises InputError where `valid` ones (None: all) hold inf,
    which no normalisation survives, or what becomes inf in that dtype."""
    if pixels.dtype.kind == "f" and (wrong := unusable(pixels if valid is None else pixels[valid])):
        raise InputError(f"{path} holds {wrong}: mend those pixels, or make them nodata")
    if pixels.dtype in (np.uint8, np.int8, np.int16, np.int32, np.float32):
        return pixels
    if pixels.dtype == np.uint16:
        return pixels.astype(np.int32)
    with np.errstate(over="ignore"):  # nodata alone, such as the least float64, can be beyond it
        return pixels.astype(np.float32)


def _common_pixel_size(sizes: Sequence[PixelSize | None]) -> PixelSize | None:
    first = sizes[0]
    for size in sizes:
        if first is None or size is None or size[2] != first[2]:
            return None
        if any(abs(a - b) > _SAME_PIXEL_SIZE * abs(b) for a, b in zip(size[:2], first[:2], strict=True)):
            return None
    return first
