"""Which pages of a TIFF make which resolution level, which channel and which validity mask."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysegment.errors import InputError
from raysegment.geometry import Size
from raysegment.raster.axes import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tifffile import TiffFile, TiffPage, TiffPageSeries

_REDUCED, _MASK = 1, 4  # bits of NewSubfileType, TIFF 6.0 p. 36
#: tifffile's names of series in which a page says itself what it is.
_SELF_DESCRIBED = ("generic", "uniform")
_MAY_HAVE_MASKS = (*_SELF_DESCRIBED, "shaped")
_GLASS_FIRST = ("scn", "ome")
_AXIS_NAMES = {"Y": "y", "X": "x", "C": "c", "S": "c", "T": "t", "Z": "z", "I": "page"}


@dataclass(frozen=True, slots=True)
class LevelPages:
    """One resolution level."""

    pages: tuple[tuple[Any, int | None], ...]
    """In channel order; each with the offset of its pixels where it has no header of its own."""
    mask: Any | None
    """The page that is 0 where there is no data: of the level's size or, failing that, the nearest larger."""


def find_levels(tif: TiffFile, select: Mapping[str, int], path: str) -> tuple[LevelPages, ...]:
    """The levels of the first image of the file, full resolution first. Raises InputError, UsageError."""
    if not tif.series:
        raise InputError(f"{path} is a TIFF without an image")
    series = main_series(tif)
    # Microscopes' own formats, thousands of pages some of them, have no use for mask pages.
    pages = _all_pages(tif) if series.kind in _MAY_HAVE_MASKS else []
    if series.kind in _SELF_DESCRIBED:
        levels = _by_subfile_type(pages, select, path)
    else:
        levels = [_of_series(level, select, path) for level in series.levels]
    masks = [p for p in pages if p.subfiletype & _MASK]
    return tuple(LevelPages(tuple(found), _mask_for(found[0][0].keyframe, masks)) for found in levels)


def main_series(tif: TiffFile) -> TiffPageSeries:
    """The image of the file: the first or, in formats that may begin with a picture of the whole glass, the largest."""
    found = tif.series
    return max(found, key=_area) if found[0].kind in _GLASS_FIRST else found[0]


def other_images(tif: TiffFile) -> tuple[tuple[str, Size], ...]:
    """Name and size of each further image of a file whose metadata name them: labels, thumbnails, other areas."""
    main = main_series(tif)
    if main.kind in _MAY_HAVE_MASKS:
        return ()
    others = [(s.name, s.keyframe) for s in tif.series if s is not main]
    return tuple((name, Size(key.imagelength, key.imagewidth)) for name, key in others)


def _area(series: TiffPageSeries) -> int:
    return series.keyframe.imagelength * series.keyframe.imagewidth


def _all_pages(tif: TiffFile) -> list[TiffPage]:
    """Every page that has a size, with its own header read in full."""
    pages: list[Any] = [tif.pages.get(i, aspage=True) for i in range(len(tif.pages))]
    return [page for page in pages if page.imagelength]


def _by_subfile_type(
    pages: Sequence[TiffPage], select: Mapping[str, int], path: str
) -> list[list[tuple[Any, int | None]]]:
    if not pages:
        raise InputError(f"{path} has no page with a size: there is nothing to read")
    images = [p for p in pages if not p.subfiletype & (_REDUCED | _MASK)] or pages[:1]
    alike = [p for p in images if _alike(p, images[0]) and p.shape == images[0].shape]
    axes = resolve(
        ("page", "y", "x"), (len(alike), images[0].imagelength, images[0].imagewidth), select, path
    )
    main = alike[axes.fixed[0]]
    subpages: list[Any] = list(main.pages or ())
    smaller = [p for p in subpages if not p.subfiletype & _MASK]
    if len(alike) == 1:
        smaller += [p for p in pages if p is not main and _is_reduced(p, main)]
    fitting = [p for p in smaller if _alike(p, main) and _is_scaled(p, main)]
    fitting.sort(key=lambda p: -p.imagelength * p.imagewidth)
    return [[(p, None)] for p in [main, *fitting]]


def _is_scaled(page: TiffPage, main: TiffPage) -> bool:
    """Smaller by the same factor in both directions, to a pixel: a label or a macro picture is not."""
    height, width = main.imagelength, main.imagewidth
    skew = abs(page.imagelength * width - page.imagewidth * height)
    return page.imagelength < height and skew <= height + width


def _alike(page: TiffPage, main: TiffPage) -> bool:
    return page.dtype == main.dtype and page.samplesperpixel == main.samplesperpixel


def _is_reduced(page: TiffPage, main: TiffPage) -> bool:
    """Marked as an overview or, as some slide writers leave it, tiled and a plain fraction of the image."""
    if page.subfiletype & _MASK:
        return False
    if page.subfiletype & _REDUCED:
        return True
    factor = round(main.imagelength / page.imagelength)
    return (
        factor > 1
        and page.is_tiled
        and main.is_tiled
        and abs(page.imagelength - main.imagelength / factor) <= 1
        and abs(page.imagewidth - main.imagewidth / factor) <= 1
    )


def _of_series(series: TiffPageSeries, select: Mapping[str, int], path: str) -> list[tuple[Any, int | None]]:
    """Pages of a series whose metadata say what its axes are."""
    if series.transform is not None:
        raise InputError(f"{path}: {series.kind} files need their pixels rearranged, which is not supported")
    own = len(series.keyframe.axes)
    letters, sizes = series.axes, series.shape
    leading, lengths = letters[: len(letters) - own], sizes[: len(letters) - own]
    names = [_AXIS_NAMES.get(letter, letter.lower()) for letter in leading]
    axes = resolve(
        [*names, "y", "x"], [*lengths, series.keyframe.imagelength, series.keyframe.imagewidth], select, path
    )
    channels = lengths[axes.channel] if axes.channel is not None else 1
    found = []
    for c in range(channels):
        at = [c if i == axes.channel else axes.fixed[i] for i in range(len(lengths))]
        found.append(_page_at(series, _ravel(at, lengths), path))
    return found


def _page_at(series: TiffPageSeries, index: int, path: str) -> tuple[Any, int | None]:
    key = series.keyframe
    if series.is_truncated or len(series._pages) == 1:
        if index == 0:
            return key, None
        if not key.is_contiguous or key.dtype is None:
            raise InputError(
                f"{path} says it holds {len(series)} planes, but has a header for the first alone"
            )
        return key, key.dataoffsets[0] + index * math.prod(key.shape) * key.dtype.itemsize
    page = series[index]
    if page is None:
        raise InputError(f"{path} lacks plane {index} of {len(series)}: is a file of a set missing?")
    return page, None


def _ravel(at: Sequence[int], lengths: Sequence[int]) -> int:
    index = 0
    for i, n in zip(at, lengths, strict=True):
        index = index * n + i
    return index


def _mask_for(page: TiffPage, masks: Sequence[TiffPage]) -> TiffPage | None:
    large = [m for m in masks if m.imagelength >= page.imagelength and m.imagewidth >= page.imagewidth]
    return min(large, key=lambda m: m.imagelength * m.imagewidth, default=None)
