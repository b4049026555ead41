"""TIFF of every flavour: BigTIFF, GeoTIFF, COG, OME-TIFF, SVS and other slides."""

from __future__ import annotations

import contextlib
import logging
import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from raysegment import console
from raysegment.errors import InputError, RaysegmentError
from raysegment.geometry import Size, Window
from raysegment.raster.beside import mask_beside
from raysegment.raster.georeference import Georeference, georeference_of
from raysegment.raster.identity import path_identity
from raysegment.raster.page import Page
from raysegment.raster.pyramid import LevelPages, find_levels, other_images
from raysegment.raster.segment_cache import DECODED
from raysegment.raster.stored import Stored
from raysegment.raster.validity import representable, valid_pixels
from raysegment.raster.window import check_window
from raysegment.storage import Url, location
from raysegment.storage.byte_file import ByteFile
from raysegment.storage.url_file import UrlFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tifffile import TiffFile, TiffPage

    from raysegment.raster.protocol import Raster

_ALPHA = (1, 2)  # ExtraSamples: associated, unassociated alpha
_PALETTE = 3  # PhotometricInterpretation


@dataclass(frozen=True, slots=True)
class _Level:
    pages: tuple[Page, ...]
    mask: Page | None

    @property
    def size(self) -> Size:
        return self.pages[0].size

    def stored(self) -> Stored | None:
        """The segments that some page holds; None where all of them are there, or the pages differ in grid."""
        segment, grid = self.pages[0].stored
        for page in self.pages[1:]:
            other, more = page.stored
            if other != segment:
                return None
            grid = grid | more
        return Stored.unless_whole(segment, grid)


class TiffRaster:
    """A TIFF as one (y, x, channel) plane; see :class:`raysegment.raster.protocol.Raster`.

    Several threads may read it at once. Pickled, it travels as its path and opens again.
    """

    offset: tuple[float, float] = (0.0, 0.0)

    def __init__(self, path: str, select: Mapping[str, int]) -> None:
        self.path = path
        self.select = dict(select)
        self._files: dict[str, ByteFile | UrlFile] = {}
        weakref.finalize(self, _close, self._files)  # of threads that share it none knows which is the last
        self._stored: dict[int, Stored | None] = {}
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        import tifffile

        _talk_quietly()
        try:
            with tifffile.TiffFile(self._header()) as tif:
                levels = find_levels(tif, self.select, self.path)
                self._levels = tuple(self._level(found) for found in levels)
                first: TiffPage = levels[0].pages[0][0].keyframe
                place = georeference_of(tif, first, self.path)
                self._describe(tif, first, place)
            self._take_mask_beside()
        except RaysegmentError:
            raise
        except OSError as e:
            raise InputError(f"cannot read {self.path}: {e.strerror or e}") from e
        except Exception as e:  # a damaged header makes tifffile raise nearly anything
            raise InputError(f"{self.path} is not a readable TIFF: {type(e).__name__}: {e}") from e

    def _header(self) -> Any:
        """What tifffile opens."""
        place = location(self.path)
        if not isinstance(place, Url):
            return self.path
        self._files[self.path] = file = UrlFile(place)
        return file.stream()

    def _take_mask_beside(self) -> None:
        """GDAL's external mask counts as a mask page does; one in the file itself wins."""
        path = mask_beside(self.path)
        if path is None or self._levels[0].mask is not None:
            return
        import tifffile

        try:
            with tifffile.TiffFile(path) as tif:
                first: TiffPage = tif.pages.first.keyframe
                mask = Page(first, self._file(first))
        except Exception as e:  # as of the image itself
            why = str(e) if isinstance(e, InputError) else f"{type(e).__name__}: {e}"
            raise InputError(
                f"{path}, the mask of an image, is no readable TIFF: {why}: mend or move it"
            ) from e
        size = self._levels[0].size
        if mask.size != size:
            raise InputError(
                f"{path} is {mask.size.height} × {mask.size.width} px, the image that it is the mask of "
                f"{size.height} × {size.width} px: make it again, or move it"
            )
        self._levels = tuple(replace(level, mask=mask) for level in self._levels)

    def _level(self, found: LevelPages) -> _Level:
        pages = tuple(Page(page, self._file(page), base) for page, base in found.pages)
        mask = Page(found.mask, self._file(found.mask)) if found.mask is not None else None
        return _Level(pages, mask)

    def _file(self, page: Any) -> ByteFile | UrlFile:
        if isinstance(file := self._files.get(self.path), UrlFile):
            return file  # of a set of files tifffile opens none but the first, without a disk
        path = page.parent.filehandle.path
        if path not in self._files:
            self._files[path] = ByteFile(path)
        return self._files[path]

    def _describe(self, tif: TiffFile, first: TiffPage, place: Georeference) -> None:
        main = self._levels[0]
        height, width = main.size
        self.format = _format_name(tif, place)
        self.shape = (height, width, sum(p.samples for p in main.pages))
        self.dtype = main.pages[0].dtype
        self.levels = tuple(level.size for level in self._levels)
        self.chunks = tuple(level.pages[0].chunk for level in self._levels)
        self.chunk = self.chunks[0]
        self.pixel_size = place.pixel_size
        self.crs = place.crs
        self.transform = place.transform
        self._beside = place.beside
        self.nodata = representable(place.nodata, self.dtype)
        self._absent = self.nodata if self.nodata is not None else 0
        self.alpha = _alpha(first) if len(main.pages) == 1 else None
        self.palette = _palette(first)
        self.other_images = other_images(tif)

    def read(self, window: Window, level: int = 0) -> np.ndarray:
        """Pixels as stored (height, width, channels); 1-bit samples as uint8 0 and 1. Raises ReadError."""
        at = self._levels[level]
        check_window(window, at.size, self.path)
        out = np.empty((window.height, window.width, self.shape[2]), self.dtype)
        start = 0
        for page in at.pages:
            page.read_into(window, out[:, :, start : start + page.samples], self._absent)
            start += page.samples
        return out

    @contextlib.contextmanager
    def in_order(self) -> Iterator[None]:
        """Within, windows go down through tiles and strips and are as wide: large ones are never held decoded."""
        pages = [p for at in self._levels for p in (*at.pages, at.mask) if p is not None]
        for page in pages:
            page.read_in_order(True)
        try:
            yield
        finally:
            for page in pages:
                page.read_in_order(False)

    def valid(self, window: Window, pixels: np.ndarray, level: int = 0) -> np.ndarray | None:
        """Where there is data: by nodata and NaN, alpha and mask. True = data; None = everywhere."""
        valid = valid_pixels(pixels, self.nodata, self.alpha)
        mask = self._levels[level].mask
        if mask is None:
            return valid
        seen = _mask_pixels(mask, window, self._levels[level].size)
        return seen if valid is None else valid & seen

    def stored(self, level: int = 0) -> Stored | None:
        """The tiles or strips that are in the file, by the header's offsets; None = every one."""
        if level not in self._stored:
            self._stored[level] = self._levels[level].stored()
        return self._stored[level]

    def identity(self) -> str:
        """Digest of the content of its file or files, and of what is told beside them; see identity.py, beside.py."""
        others = sorted(path for path in self._files if path != self.path)
        parts = [path_identity(path) for path in [self.path, *others]]
        if self._beside is not None:
            parts.append(self._beside)
        return "-".join(parts)

    def close(self) -> None:
        """Close the files, and let go of what was decoded of them."""
        _close(self._files)
        for file in self._files.values():
            DECODED.forget(file)

    def __reduce__(self) -> tuple[Callable[..., Raster], tuple[str, dict[str, int]]]:
        return TiffRaster, (self.path, self.select)


def _close(files: Mapping[str, ByteFile | UrlFile]) -> None:
    for file in files.values():
        file.close()


def _mask_pixels(mask: Page, window: Window, size: Size) -> np.ndarray:
    """The mask page over the window of a level of `size`; its nearest pixels where its own size differs."""
    if mask.size == size:
        wide = window
        rows = columns = slice(None)
    else:
        ys = _nearest(window.y, window.height, size.height, mask.size.height)
        xs = _nearest(window.x, window.width, size.width, mask.size.width)
        wide = Window.between(int(ys[0]), int(xs[0]), int(ys[-1]) + 1, int(xs[-1]) + 1)
        rows, columns = ys - wide.y, xs - wide.x  # type: ignore[assignment]
    out = np.empty((wide.height, wide.width, mask.samples), mask.dtype)
    mask.read_into(wide, out, 0)
    # One for all bands or, of an external mask, one for each: a pixel has data where any of them has.
    seen: np.ndarray = (out != 0).any(axis=2)[rows][:, columns]
    return seen


def _nearest(start: int, count: int, length: int, other: int) -> np.ndarray:
    """Indices on an axis of `other` pixels nearest to `count` pixels from `start` on one of `length`."""
    return ((np.arange(start, start + count) + 0.5) * other / length).astype(np.int64).clip(0, other - 1)


def _alpha(page: TiffPage) -> int | None:
    extra = page.extrasamples
    first = page.samplesperpixel - len(extra)
    if first < 1:  # no sample would be a colour: the header lies
        return None
    return next((first + i for i, kind in enumerate(extra) if kind in _ALPHA), None)


def _palette(page: TiffPage) -> tuple[tuple[int, int, int], ...] | None:
    if page.photometric != _PALETTE or page.colormap is None:
        return None
    return tuple((int(r), int(g), int(b)) for r, g, b in (page.colormap >> 8).T)


def _format_name(tif: TiffFile, place: Georeference) -> str:
    kind = tif.series[0].kind
    if kind in ("ome", "svs", "ndpi", "scn", "bif", "qpi", "philips", "imagej"):
        return {"ome": "OME-TIFF", "imagej": "ImageJ TIFF"}.get(kind, f"{kind.upper()} slide")
    return ("GeoTIFF" if place.is_geotiff else "TIFF") + (" (BigTIFF)" if tif.is_bigtiff else "")


class _Detail(logging.Handler):
    """tifffile's remarks on a file are for those who asked for --verbose."""

    def emit(self, record: logging.LogRecord) -> None:
        console.detail(f"tifffile: {record.getMessage()}")


def _talk_quietly() -> None:
    logger = logging.getLogger("tifffile")
    if not any(isinstance(h, _Detail) for h in logger.handlers):
        logger.addHandler(_Detail())
        logger.propagate = False
