"""A scene and its mask as OME-Zarr 0.5: sharded Zarr v3 with half-size levels, streamed shard by shard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from raysegment.geometry import Size, Window
from raysegment.mask.header import MaskHeader
from raysegment.mask.store import MaskStore, mode_2x2
from raysegment.scene import place
from raysegment.scene.landscape import TILE_PX, Landscape
from raysegment.scene.materials import CLASSES

if TYPE_CHECKING:
    from raysegment.console import Progress

_TILES_PER_SHARD = 4
_SHARD_PX = _TILES_PER_SHARD * TILE_PX
_BANDS = 3


def write_zarrs(scene: Landscape, size: int, image: Path, mask: Path, progress: Progress) -> None:
    """Write both stores; `progress` advances by the megapixels made."""
    writer = _Writer(scene, size, image, mask, progress)
    writer.write(len(writer.arrays) - 1, 0, 0)
    writer.labels.finish(_header(mask, scene.seed, size, writer.counts))
    zarr.create_group(image, attributes=_image_attributes(image.stem, scene.seed, writer.labels.level_shapes))


class _Writer:
    """Goes down from the top of the pyramid, which is one shard: so a few shards of each level are held, never one."""

    def __init__(self, scene: Landscape, size: int, image: Path, mask: Path, progress: Progress) -> None:
        self.scene, self.progress = scene, progress
        self.labels = MaskStore(mask, Size(size, size), np.dtype(np.uint8), _SHARD_PX)
        self.labels.create()
        self.arrays = [_create(image, level, shape) for level, shape in enumerate(self.labels.level_shapes)]
        self.counts = np.zeros(len(CLASSES), np.int64)

    def write(self, level: int, row: int, col: int) -> tuple[np.ndarray, np.ndarray]:
        """Write a shard of a level and all below it; its pixels (3, h, w) and classes (h, w) at half their size."""
        height, width = self.labels.level_shapes[level]
        y, x = row * _SHARD_PX, col * _SHARD_PX
        window = Window.between(y, x, min(y + _SHARD_PX, height), min(x + _SHARD_PX, width))
        pixels, classes = self._made(window) if level == 0 else self._joined(level, window)
        self.arrays[level][(slice(None), *window.slices())] = pixels
        self.labels.write(level, window, classes)
        return _mean_2x2(pixels), mode_2x2(classes)

    def _made(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        pixels, classes = _shard(self.scene, window)
        self.progress.advance(window.area / 1e6)
        self.counts += np.bincount(classes.ravel(), minlength=len(CLASSES))
        return pixels, classes

    def _joined(self, level: int, window: Window) -> tuple[np.ndarray, np.ndarray]:
        pixels, classes = np.empty((_BANDS, *window.size), np.uint8), np.empty(window.size, np.uint8)
        edge = _SHARD_PX // 2
        for y in range(window.y, window.bottom, edge):
            for x in range(window.x, window.right, edge):
                at = Window(y=y, x=x, height=edge, width=edge).intersect(window).slices(window)
                pixels[(slice(None), *at)], classes[at] = self.write(level - 1, y // edge, x // edge)
        return pixels, classes


def _create(path: Path, level: int, shape: Size) -> Any:
    """An empty level. A store of its own: Zarr would write the root's zarr.json otherwise, which comes last."""
    return zarr.create_array(
        path / str(level),
        shape=(_BANDS, *shape),
        chunks=(_BANDS, TILE_PX, TILE_PX),
        shards=(_BANDS, _SHARD_PX, _SHARD_PX),
        dtype=np.uint8,
        compressors=ZstdCodec(level=1),
        dimension_names=("c", "y", "x"),
    )


def _shard(scene: Landscape, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (3, h, w) and classes (h, w) of a shard."""
    pixels = np.empty((_BANDS, window.height, window.width), np.uint8)
    classes = np.empty((window.height, window.width), np.uint8)
    for row, column in _tiles(window):
        colours, indices = scene.tile(row, column)
        whole = Window(y=row * TILE_PX, x=column * TILE_PX, height=TILE_PX, width=TILE_PX)
        part = whole.intersect(window)
        pixels[(slice(None), *part.slices(window))] = colours[part.slices(whole)].transpose(2, 0, 1)
        classes[part.slices(window)] = indices[part.slices(whole)]
    return pixels, classes


def _tiles(window: Window) -> Iterator[tuple[int, int]]:
    for row in range(window.y // TILE_PX, -(-window.bottom // TILE_PX)):
        for column in range(window.x // TILE_PX, -(-window.right // TILE_PX)):
            yield row, column


def _mean_2x2(pixels: np.ndarray) -> np.ndarray:
    """The mean of each 2 × 2 pixels, (3, h, w) → (3, ⌈h/2⌉, ⌈w/2⌉); an odd last row or column counts twice."""
    _, height, width = pixels.shape
    padded = np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge").astype(np.uint16)
    rows = padded[:, ::2] + padded[:, 1::2]
    return ((rows[:, :, ::2] + rows[:, :, 1::2] + 2) // 4).astype(np.uint8)


def _header(path: Path, seed: int, size: int, counts: np.ndarray) -> MaskHeader:
    return MaskHeader(
        name=path.stem,
        shape=Size(size, size),
        classes=CLASSES,
        dtype=np.dtype(np.uint8),
        origin=(0, 0),
        recipe={"synth": {"seed": seed, "size": size}},
        tiles=0,
        class_pixels={c.name: int(n) for c, n in zip(CLASSES, counts, strict=True)},
        pixel_size=(place.PIXEL_M, place.PIXEL_M, "m"),
        crs=place.CRS,
        transform=place.transform(seed),
    )


def _image_attributes(name: str, seed: int, shapes: list[Size]) -> dict[str, Any]:
    space = [{"name": axis, "type": "space", "unit": "meter"} for axis in ("y", "x")]
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [
                {"type": "scale", "scale": [1.0, *(2 * [place.PIXEL_M * 2**level])]},
                {"type": "translation", "translation": [0.0, *(2 * [place.PIXEL_M * (2**level - 1) / 2])]},
            ],
        }
        for level in range(len(shapes))
    ]
    axes = [{"name": "c", "type": "channel"}, *space]
    return {
        "ome": {
            "version": "0.5",
            "multiscales": [{"name": name, "axes": axes, "datasets": datasets}],
            "omero": {"channels": [_channel(*band) for band in _CHANNELS]},
        },
        "proj:code": place.CRS,
        "spatial:dimensions": ["y", "x"],
        "spatial:transform": list(place.transform(seed)),
    }


_CHANNELS = (("red", "FF0000"), ("green", "00FF00"), ("blue", "0000FF"))


def _channel(label: str, colour: str) -> dict[str, Any]:
    window = {"start": 0, "end": 255, "min": 0, "max": 255}
    return {"label": label, "color": colour, "active": True, "window": window}
