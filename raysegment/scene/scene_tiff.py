"""A scene and its mask as tiled GeoTIFF (BigTIFF when large), streamed in row order."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import imagecodecs
import numpy as np
import tifffile

from raysegment.mask.coding import KEY
from raysegment.scene import place
from raysegment.scene.landscape import TILE_PX, Landscape
from raysegment.scene.materials import CLASSES
from raysegment.threads import in_order

if TYPE_CHECKING:
    from raysegment.console import Progress

#: A classic TIFF ends at 4 GiB.
_CLASSIC_BYTES = 3 << 30
#: libdeflate's fastest: the noise in a scene does not compress, whatever the effort.
_DEFLATE_LEVEL = 1


def write_tiffs(scene: Landscape, size: int, image: Path, mask: Path, progress: Progress) -> None:
    """Write both files; `progress` advances by the megapixels made."""
    edge = -(-size // TILE_PX)
    # Tiles are drawn here and compressed by other threads: drawing in several was no faster (the interpreter's
    # lock, and memory that threads give back at once), compressing beside it hides a quarter of the time.
    tiles = (scene.tile(row, column) for row in range(edge) for column in range(edge))
    # The image is written as it is made. The mask's tiles, a hundredth of its size, wait in a scratch file
    # until the image is complete: tifffile writes one file at a time.
    with tempfile.TemporaryFile(dir=image.parent) as scratch:
        lengths: list[int] = []

        def images() -> Iterator[bytes]:
            for pixels, classes in in_order(_encoded, tiles):
                lengths.append(scratch.write(classes))
                progress.advance(TILE_PX**2 / 1e6)
                yield pixels

        _write(image, images(), (size, size, 3), scene.seed, photometric="rgb")
        scratch.seek(0)
        _write(mask, (scratch.read(n) for n in lengths), (size, size), scene.seed, **_mask_tags())


def _encoded(tile: tuple[np.ndarray, np.ndarray]) -> tuple[bytes, bytes]:
    pixels, classes = tile
    return (
        bytes(imagecodecs.deflate_encode(pixels.tobytes(), level=_DEFLATE_LEVEL)),
        bytes(imagecodecs.deflate_encode(classes.tobytes(), level=6)),
    )


def _write(path: Path, tiles: Iterator[bytes], shape: tuple[int, ...], seed: int, **options: Any) -> None:
    tags = [*_geo_tags(seed), *options.pop("extratags", ())]
    with tifffile.TiffWriter(path, bigtiff=int(np.prod(shape)) > _CLASSIC_BYTES) as tif:
        tif.write(
            tiles,
            shape=shape,
            dtype=np.uint8,
            tile=(TILE_PX, TILE_PX),
            compression="adobe_deflate",
            metadata=None,
            software="raysegment synth",
            extratags=tags,
            **options,
        )


def _geo_tags(seed: int) -> list[tuple[int, int, int, Any, bool]]:
    """GeoTIFF 1.1: pixel scale, one tie point at the top left corner, a projected CRS by its code, metres."""
    double, short = 12, 3
    easting, northing = place.transform(seed)[2::3]
    keys = (1, 1, 0, 4, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, place.EPSG, 3076, 0, 1, 9001)
    return [
        (33550, double, 3, (place.PIXEL_M, place.PIXEL_M, 0.0), True),
        (33922, double, 6, (0.0, 0.0, 0.0, easting, northing, 0.0), True),
        (34735, short, len(keys), keys, True),
    ]


def _mask_tags() -> dict[str, Any]:
    """The class of each number: its colour for viewers, the whole coding in the GDAL metadata."""
    colours = np.zeros((3, 256), np.uint16)
    for index, known in enumerate(CLASSES):
        colours[:, index] = [c * 257 for c in known.colour]
    item = f'<Item name="{KEY}">{escape(json.dumps(place.CODING))}</Item>'
    text = f"<GDALMetadata>{item}</GDALMetadata>"
    ascii_ = 2
    return {
        "photometric": "palette",
        "colormap": colours,
        "extratags": [(42112, ascii_, 0, text, True), (42113, ascii_, 0, str(place.NODATA), True)],
    }
