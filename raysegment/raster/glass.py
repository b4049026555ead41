"""Where a slide shows bare glass: found on a small picture of it, on the side of keeping too much.

Tissue takes light out of at least one channel. What bare glass lets through is read off the picture itself (scanners
differ in white balance); a cell of the picture is tissue when some channel gets less of it, by more than glass
varies. A threshold between two modes of saturation (Otsu's) would not do: on a slide that is mostly tissue it falls
between pale and dark tissue, and grey tissue has no saturation at all.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from raysegment import console
from raysegment.errors import ReadError
from raysegment.geometry import Size, Window
from raysegment.raster.overview import mean_picture

if TYPE_CHECKING:
    from raysegment.raster.protocol import Raster

#: Edge of a cell of the picture, unless that makes too many of them.
CELL_UM = 8.0
MOST_CELLS = 1 << 22
#: How far around tissue nothing is given up, in µm and at least in cells: faint edges, levels off by a pixel.
MARGIN_UM = 32.0
MARGIN_CELLS = 2
#: Gaps in tissue of up to twice this many cells are filled.
CLOSE_CELLS = 3
#: Pixels above this are no microscope's (a scan at 72 dpi is 353 µm, a satellite's are metres).
MOST_SLIDE_UM = 5.0
#: Glass is at least this bright in every channel, and this little coloured: share of the brightest channel.
LEAST_WHITE = 180
MOST_TINT = 0.15
#: Share of light by which tissue differs from glass: six times glass's own spread, within these bounds.
LEAST_ABSORBED, MOST_ABSORBED = 0.04, 0.10
#: Share of a picture that must be glass: in a slide format, and where only looks speak for a slide.
LEAST_GLASS, LEAST_GLASS_BY_LOOKS = 0.01, 0.20
#: A slide of which less than this is tissue was not understood.
LEAST_TISSUE = 0.0005


def tissue_grid(raster: Raster) -> np.ndarray | None:
    """Where a slide is not bare glass: bool (rows, columns), an even grid over the whole image; None = everywhere.

    None for what is no slide: anything but three bytes a pixel, anything with a place on Earth, pixels of more
    than 5 µm. A file of a slide scanner is a slide; any other file that says its pixel size in µm is one when a
    fifth of it is bare glass and the rest has colours: no electron micrograph, no fluorescence.

    Reads the coarsest level that has 8 µm cells, part by part. Where that level is damaged nothing is left out.
    """
    by_format = raster.format.endswith("slide")
    if not _may_be_slide(raster, by_format):
        return None
    size = _picture_size(raster)
    height, width, _ = raster.shape
    try:
        mean, _ = mean_picture(raster, Window(y=0, x=0, height=height, width=width), size, (0, 1, 2), "glass")
    except ReadError as e:
        console.warn(f"no glass is left out: {e}")
        return None
    tissue = find_tissue(mean, LEAST_GLASS if by_format else LEAST_GLASS_BY_LOOKS, grey=by_format)
    if tissue is None:
        console.detail(f"{raster.path}: no bare glass found")
        return None
    found = tissue.mean()
    if found < LEAST_TISSUE:
        console.warn(f"{raster.path} looks like bare glass ({found:.2%} tissue): nothing is left out")
        return None
    cell_um = None if raster.pixel_size is None else raster.pixel_size[0] * height / size.height
    margin = MARGIN_CELLS if cell_um is None else max(MARGIN_CELLS, ceil(MARGIN_UM / cell_um))
    kept = _grown(tissue, margin + CLOSE_CELLS)
    kept = ~_grown(~kept, CLOSE_CELLS)
    return None if 1 - kept.mean() < LEAST_GLASS else kept


def find_tissue(mean: np.ndarray, least_glass: float, *, grey: bool) -> np.ndarray | None:
    """Cells of a picture (rows, columns, 3), 0–255, that are not bare glass; None where glass is not found.

    `least_glass`: share of the picture that must be glass; `grey`: whether what is left may be without colour.
    Cells without a neighbour that is tissue are taken for dust.
    """
    white = _glass_colour(mean, least_glass)
    if white is None:
        return None
    through = mean / white
    darkest = through.min(axis=2)
    brighter = darkest[(darkest >= 1) & (darkest < 1 + MOST_ABSORBED)]  # the half that no tissue is in
    spread = float(np.median(brighter) - 1) / 0.6745 if brighter.size else 0.0
    tissue = 1 - darkest > min(max(6 * spread, LEAST_ABSORBED), MOST_ABSORBED)
    if (~tissue).mean() < least_glass:
        return None
    tissue &= _neighbours(tissue) > 1
    if not grey and tissue.any():
        seen = through[tissue]
        if np.percentile(1 - seen.min(axis=1) / seen.max(axis=1), 90) < LEAST_ABSORBED:
            return None
    return tissue


def _may_be_slide(raster: Raster, by_format: bool) -> bool:
    if raster.shape[2] != 3 or raster.dtype != np.uint8 or raster.palette is not None:
        return False
    if raster.crs is not None or raster.transform is not None:
        return False
    if raster.pixel_size is None:
        return by_format
    y, x, unit = raster.pixel_size
    return max(y, x) <= MOST_SLIDE_UM if unit == "um" else by_format and unit is None


def _picture_size(raster: Raster) -> Size:
    height, width, _ = raster.shape
    factor = 1.0
    if raster.pixel_size is not None and raster.pixel_size[2] == "um":
        factor = max(factor, CELL_UM / raster.pixel_size[0])
    factor = max(factor, (height * width / MOST_CELLS) ** 0.5)
    return Size(max(1, int(height / factor)), max(1, int(width / factor)))


def _glass_colour(mean: np.ndarray, least_glass: float) -> np.ndarray | None:
    """What bare glass looks like, per channel: the commonest of the bright and nearly white cells."""
    low, high = mean.min(axis=2), mean.max(axis=2)
    candidates = (low >= LEAST_WHITE) & (high - low <= MOST_TINT * high)
    if candidates.mean() < least_glass:
        return None
    counts = np.bincount(low[candidates].astype(np.int64), minlength=256)
    commonest = int(np.convolve(counts, np.ones(5), "same").argmax())
    white: np.ndarray = np.median(mean[candidates & (np.abs(low - commonest) <= 3)], axis=0)
    return white


def _neighbours(cells: np.ndarray) -> np.ndarray:
    """How many of the nine cells around each, itself among them, are True."""
    padded = np.pad(cells.astype(np.uint8), 1)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    total: np.ndarray = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return total


def _grown(cells: np.ndarray, by: int) -> np.ndarray:
    """What lies within `by` cells of a True one, in a square."""
    for axis in (0, 1):
        done, grown = 0, cells
        while done < by:
            step = min(by - done, done + 1)  # doubles: every place between is covered already
            more = grown.copy()
            ahead, behind = [slice(None)] * 2, [slice(None)] * 2
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            more[tuple(ahead)] |= grown[tuple(behind)]
            more[tuple(behind)] |= grown[tuple(ahead)]
            done, grown = done + step, more
        cells = grown
    return cells
