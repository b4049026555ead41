"""What is trained on: pairs of image and mask, checked before anything starts, and their statistics.

A folder holds ``images/`` and ``masks/``; a pair is two files of one stem, in any format that
:func:`raysegment.open_raster` opens. Nothing here keeps pixels: images may be of any size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raysegment.errors import InputError
from raysegment.geometry import Size, Window
from raysegment.raster import PixelSize, Raster, open_raster
from raysegment.raster.sampling import Sampling

#: Files that stand beside images without being images.
_SIDECARS = frozenset(
    {".xml", ".txt", ".json", ".csv", ".toml", ".md", ".prj", ".ovr", ".tfw", ".pgw", ".jgw", ".wld", ".db"}
)
_SHOWN = 3
#: Pixel sizes that differ by less than this share count as one.
_SAME_PIXEL_SIZE = 0.01
_SURVEY_EDGE = 2048


@dataclass(frozen=True, slots=True)
class Scene:
    """One image with its mask; both are opened where they are read."""

    name: str
    image: str
    mask: str
    size: Size
    """Of the grid that both are read on."""
    sampling: Sampling | None = None
    """How the image is read on that grid; None: as stored."""


@dataclass(frozen=True, slots=True)
class Format:
    """What all images of a set have in common."""

    channels: tuple[int, ...]
    """Indices of the stored channels that the network sees: all but alpha."""
    dtype: str
    pixel_size: PixelSize | None
    """None where the images have none or do not agree."""


def find_scenes(data: str | Path) -> tuple[Scene, ...]:
    """The pairs of a folder in the order of their names. Raises InputError for whatever does not pair up."""
    root = Path(data)
    if not root.exists():
        raise InputError(f"{data} does not exist: give a folder with images/ and masks/")
    folders = root / "images", root / "masks"
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{data} has no folder {folder.name}/: a training set holds images/ and masks/")
    images, masks = map(files_by_stem, folders)
    if not images:
        raise InputError(f"{folders[0]} holds no images")
    for missing, here, there in (
        (images.keys() - masks.keys(), images, "masks"),
        (masks.keys() - images.keys(), masks, "images"),
    ):
        if missing:
            names = _several(sorted(here[stem].name for stem in missing))
            raise InputError(f"{data}: no partner of the same stem in {there}/ for {names}")
    pairs = sorted((image.name, image, masks[stem]) for stem, image in images.items())
    return tuple(_scene(name, image, mask) for name, image, mask in pairs)


def common_format(scenes: Sequence[Scene]) -> Format:
    """Channels, dtype and pixel size of the images. Raises InputError naming two that differ."""
    first: tuple[str, int, str] | None = None
    alphas, pixel_sizes = set(), []
    for scene in scenes:
        image = open_raster(scene.image)
        this = (scene.image, image.shape[2] - (image.alpha is not None), str(image.dtype))
        alphas.add((image.alpha, image.shape[2]))
        pixel_sizes.append(image.pixel_size)
        image.close()
        first = first or this
        if this[1:] != first[1:]:
            raise InputError(
                f"images must be of one kind: {first[0]} has {first[1]} channels of {first[2]}, "
                f"{this[0]} has {this[1]} of {this[2]}"
            )
    assert first is not None
    layouts = {tuple(c for c in range(count) if c != alpha) for alpha, count in alphas}
    if len(layouts) > 1:
        raise InputError(
            f"images must be of one kind: alpha is at different places in {scenes[0].image} and others"
        )
    return Format(layouts.pop(), first[2], _common_pixel_size(pixel_sizes))


def split(scenes: Sequence[Scene], fraction: float) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """(training, validation): the last `fraction` of the names, at least one and not all, is for validation."""
    if len(scenes) < 2:
        raise InputError(
            f"{scenes[0].image} is the only image: give images to validate on with --val DATA, or a second one"
        )
    held = min(max(1, round(len(scenes) * fraction)), len(scenes) - 1)
    return tuple(scenes[:-held]), tuple(scenes[-held:])


def identity(scenes: Sequence[Scene]) -> str:
    """A digest of names and contents; the same wherever the files lie."""
    digest = hashlib.blake2b(digest_size=16)
    for scene in scenes:
        for path in (scene.image, scene.mask):
            raster = open_raster(path)
            digest.update(f"{scene.name}\0{raster.identity()}\0".encode())
            raster.close()
    return digest.hexdigest()


def blocks(raster: Raster) -> Iterator[Window]:
    """Windows that cover an image once, of whole chunks where that is affordable, a few megapixels each."""
    height, width, _ = raster.shape
    step_x = min(width, _whole(raster.chunk.width, _SURVEY_EDGE))
    step_y = min(height, _whole(raster.chunk.height, max(1, _SURVEY_EDGE**2 // step_x)))
    for y in range(0, height, step_y):
        for x in range(0, width, step_x):
            yield Window.between(y, x, min(y + step_y, height), min(x + step_x, width))


def usable(pixels: np.ndarray, path: str) -> np.ndarray:
    """Pixels in a dtype that torch takes. Raises InputError for inf, which no normalisation survives."""
    if pixels.dtype.kind == "f" and np.isinf(pixels).any():
        raise InputError(f"{path} holds inf: mend those pixels, or make them nodata")
    if pixels.dtype in (np.uint8, np.int8, np.int16, np.int32, np.float32):
        return pixels
    if pixels.dtype == np.uint16:
        return pixels.astype(np.int32)
    return pixels.astype(np.float32)


def _scene(name: str, image_path: Path, mask_path: Path) -> Scene:
    image, mask = open_raster(image_path), open_raster(mask_path)
    size, mask_size = Size(*image.shape[:2]), Size(*mask.shape[:2])
    image.close()
    mask.close()
    if size != mask_size:
        raise InputError(
            f"{image_path} is {size.height} × {size.width} px, its mask {mask_path} "
            f"{mask_size.height} × {mask_size.width}: they must be of one size"
        )
    return Scene(name, str(image_path.resolve()), str(mask_path.resolve()), size)


def files_by_stem(folder: Path) -> dict[str, Path]:
    """Images or masks of a folder by stem, in the order of their names. Raises InputError for two of one stem."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        store = path.is_dir() and path.suffix == ".zarr"
        picture = path.is_file() and path.suffix.lower() not in _SIDECARS
        if path.name.startswith(".") or not (store or picture):
            continue
        stem = path.stem.removesuffix(".ome")
        if stem in found:
            raise InputError(f"{folder} holds {found[stem].name} and {path.name}: one file per stem")
        found[stem] = path
    return found


def _common_pixel_size(sizes: Sequence[PixelSize | None]) -> PixelSize | None:
    first = sizes[0]
    for size in sizes:
        if first is None or size is None or size[2] != first[2]:
            return None
        if any(abs(a - b) > _SAME_PIXEL_SIZE * abs(b) for a, b in zip(size[:2], first[:2], strict=True)):
            return None
    return first


def _whole(chunk: int, wish: int) -> int:
    """The multiple of `chunk` nearest below `wish`, at least one chunk."""
    return chunk * max(1, wish // chunk)


def _several(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
