"""A scene and its mask as OME-Zarr 0.5: sharded Zarr v3 with half-size levels, streamed shard by shard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from raysegment.geometry import Size, Window
from raysegment.mask.store import MaskHeader, MaskStore
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
    labels = MaskStore(mask, Size(size, size), np.dtype(np.uint8), _SHARD_PX, TILE_PX)
    labels.create()
    arrays = [_create(image, level, shape) for level, shape in enumerate(labels.level_shapes)]
    counts = np.zeros(len(CLASSES), np.int64)
    for window in labels.shards(0):
        pixels, classes = _shard(scene, window)
        progress.advance(window.area / 1e6)
        arrays[0][(slice(None), *window.slices())] = pixels
        labels.write(0, window, classes)
        counts += np.bincount(classes.ravel(), minlength=len(CLASSES))
    for level in range(1, len(arrays)):
        for window in labels.shards(level):
            arrays[level][(slice(None), *window.slices())] = _halved(arrays[level - 1], window)
            labels.reduce(level, window)
    labels.finish(_header(mask, scene.seed, size, counts))
    zarr.create_group(image, attributes=_image_attributes(image.stem, labels.level_shapes))


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


def _halved(above: Any, window: Window) -> np.ndarray:
    """The window of a level from the level above it, by the mean of 2 × 2 pixels; an odd last row counts twice."""
    _, height, width = above.shape
    out = np.empty((_BANDS, window.height, window.width), np.uint8)
    for row in range(0, window.height, TILE_PX):
        stop = min(row + TILE_PX, window.height)
        wide = Window.between(
            2 * (window.y + row),
            2 * window.x,
            min(2 * (window.y + stop), height),
            min(2 * window.right, width),
        )
        pixels = np.asarray(above[(slice(None), *wide.slices())])
        padded = np.pad(pixels, ((0, 0), (0, wide.height % 2), (0, wide.width % 2)), mode="edge")
        quads = padded.reshape(_BANDS, padded.shape[1] // 2, 2, padded.shape[2] // 2, 2)
        out[:, row:stop] = (quads.sum(axis=(2, 4), dtype=np.uint16) + 2) // 4
    return out


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
        transform=place.TRANSFORM,
    )


def _image_attributes(name: str, shapes: list[Size]) -> dict[str, Any]:
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
        "spatial:transform": list(place.TRANSFORM),
    }


_CHANNELS = (("red", "FF0000"), ("green", "00FF00"), ("blue", "0000FF"))


def _channel(label: str, colour: str) -> dict[str, Any]:
    window = {"start": 0, "end": 255, "min": 0, "max": 255}
    return {"label": label, "color": colour, "active": True, "window": window}
