"""An image of which one level is read from the copy that transcode.py made; everything else is the image itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raysegment.errors import InputError, ReadError, StorageError
from raysegment.geometry import Size, Window
from raysegment.raster.validity import valid_pixels
from raysegment.raster.window import check_window
from raysegment.storage import Location
from raysegment.storage.objects import asked, zarr_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from raysegment.raster.protocol import Raster
    from raysegment.raster.stored import Stored


class TranscodedRaster:
    """See :class:`raysegment.raster.protocol.Raster`. `original` gives what is known of the image and its other
    levels; none of the copied level's pixels are read from it.

    Several threads may read it at once. Pickled, it travels as its two paths.
    """

    def __init__(self, store: Location, original: Raster) -> None:
        import zarr

        self.store, self.original = store, original
        try:
            group = zarr.open_group(zarr_store(store, read_only=True), mode="r")
            about: Any = group.attrs["raysegment"]
            pixels: Any = group["pixels"]
            self._pixels, self._validity = pixels, group["valid"] if about["has_validity"] else None
            self._identity, self._level = str(about["identity"]), int(about["level"])
        except Exception as e:  # damaged metadata makes zarr raise nearly anything
            raise InputError(f"{store} is no copy of an image: {type(e).__name__}: {e}: delete it") from e
        self.path, self.select = original.path, original.select
        self.format = original.format
        self.shape, self.dtype = original.shape, original.dtype
        self.levels = original.levels
        self.pixel_size, self.crs, self.transform = original.pixel_size, original.crs, original.transform
        self.nodata, self.alpha, self.palette = original.nodata, original.alpha, original.palette
        self.offset, self.other_images = original.offset, original.other_images
        found = (about["select"], pixels.shape, pixels.dtype)
        if found != (self.select, (*self.levels[self._level], self.shape[2]), self.dtype):
            raise InputError(f"{store} is a copy of another image than {self.path}: delete it")
        chunk = Size(*pixels.chunks[:2])
        self.chunks = tuple(
            Size(min(chunk.height, size.height), min(chunk.width, size.width)) if i == self._level else theirs
            for i, (size, theirs) in enumerate(zip(self.levels, original.chunks, strict=True))
        )
        self.chunk = self.chunks[0]

    def read(self, window: Window, level: int = 0) -> np.ndarray:
        """Pixels as stored (height, width, channels). Raises ReadError."""
        if level != self._level:
            return self.original.read(window, level)
        check_window(window, self.levels[level], self.path)
        return np.ascontiguousarray(self._of_store(self._pixels, window))

    def valid(self, window: Window, pixels: np.ndarray, level: int = 0) -> np.ndarray | None:
        """Where there is data. True = data; None = everywhere."""
        if level != self._level:
            return self.original.valid(window, pixels, level)
        told = valid_pixels(pixels, self.nodata, self.alpha)
        if self._validity is None:
            return told
        seen = self._of_store(self._validity, window)
        return seen if told is None else told & seen

    def _of_store(self, array: Any, window: Window) -> np.ndarray:
        try:
            return np.asarray(asked(self.store, lambda: array[window.slices()]))
        except StorageError:  # says nothing of the copy
            raise
        except Exception as e:  # codecs raise anything on damaged data
            raise ReadError(
                f"{self.path}: cannot read {window} of its copy {self.store}: {type(e).__name__}: {e}: "
                "delete the copy"
            ) from e

    def stored(self, level: int = 0) -> Stored | None:
        """Which chunks the original holds; None = every one."""
        return self.original.stored(level)

    def identity(self) -> str:
        """The original's, as it was when the copy was made."""
        return self._identity

    def close(self) -> None:
        """Close the original; the copy's files are not held open."""
        self.original.close()

    def __reduce__(self) -> tuple[Callable[..., Raster], tuple[Location, Raster]]:
        return TranscodedRaster, (self.store, self.original)


def open_transcoded(store: Location, original: Raster) -> Raster:
    """`original` with one level read from `store`, which :func:`transcode` made from it. Raises InputError."""
    return TranscodedRaster(store, original)
