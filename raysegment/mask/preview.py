"""A picture of a mask over its image, at any zoom, without loading either."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raysegment.errors import InputError, OutputExistsError, UsageError
from raysegment.geometry import Size, Window
from raysegment.mask.coding import Coding, read_coding
from raysegment.mask.drawing import Scene, draw, save, stretched
from raysegment.mask.overview import NOTHING, Area, classes_of, mode_picture
from raysegment.model.spec import Class
from raysegment.raster import open_raster
from raysegment.raster.open import open_plane
from raysegment.raster.overview import level_for, mean_picture
from raysegment.storage.objects import check_writable

if TYPE_CHECKING:
    from raysegment.raster import Raster

Layout = Literal["overlay", "side"]

#: A region smaller than the picture is magnified by a whole number, at most this.
MOST_ZOOM = 8
#: Of a pixel: what lies nearer to a border than this lies on it.
_HAIR = 1e-6


@dataclass(frozen=True, slots=True)
class PreviewResult:
    """What was drawn."""

    output: str
    shape: tuple[int, int]
    """Height and width of the picture, legend included."""
    region: Window
    """What is shown, in full-resolution pixels of the image."""
    scale: float
    """Image pixels per picture pixel; below 1 the image is magnified."""
    classes: dict[str, float]
    """Share of each class among the shown pixels that have one."""

    @property
    def exit_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, Any]:
        r = self.region
        return {
            "output": self.output,
            "shape": list(self.shape),
            "region": [r.x, r.y, r.width, r.height],
            "scale": self.scale,
            "classes": self.classes,
        }

    def summary(self) -> str:
        return f"{self.output}: {self.region}; {self.scale:.3g} image pixels per picture pixel"


def preview(
    image: str | os.PathLike[str],
    mask: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    region: Window | None = None,
    max_size: int = 1024,
    layout: Layout = "overlay",
    select: Mapping[str, int] | None = None,
    overwrite: bool = False,
) -> PreviewResult:
    """Draw `mask` over `image` as a PNG, its longer edge about `max_size` pixels, with a legend below.

    `region`: full-resolution pixels of the image; by default what the mask covers. `layout` "side" puts image
    and mask beside each other. `select`: the plane of an image, and of a mask, with further axes: {"z": 0}. The
    nearest pyramid level is read, or the image is streamed and averaged. Where the image has no data the picture is
    transparent; where the mask has none it is hatched. Raises UsageError (`out`, `region`, `max_size`, `select`),
    OutputExistsError (without `overwrite`) and InputError (unreadable, or the two do not fit).
    """
    target = _target(Path(out), overwrite)
    if max_size < 16:
        raise UsageError(f"a picture of {max_size} px is too small: give a max size of 16 px or more")
    under, over, coding = open_raster(image, select=select), open_plane(mask, select), read_coding(mask)
    try:
        place = Placement.of(under, over, coding)
        shown = place.covers if region is None else _inside(region, under)
        size, scale = picture_size(shown, max_size)
        pixels, share = mean_picture(under, shown, size, _colour_channels(under))
        codes = place.codes(over, shown, size)
        classes = classes_of(over, coding, codes)
        colours = stretched(pixels, share, under.dtype)
    finally:
        under.close()
        over.close()
    shares = _shares(np.where(share >= 0.5, codes, NOTHING), classes)
    picture = draw(Scene(colours, share, codes, classes), shares, side_by_side=layout == "side")
    save(picture, target)
    return PreviewResult(str(out), (picture.height, picture.width), shown, scale, shares)


def pixels_read(image: str | os.PathLike[str], mask: str | os.PathLike[str], max_size: int) -> int:
    """How many pixels of the image :func:`preview` reads for a picture of all that the mask covers: of its nearest
    pyramid level. Raises InputError."""
    under, over, coding = open_raster(image), open_plane(mask, None), read_coding(mask)
    try:
        shown = Placement.of(under, over, coding).covers
        return level_for(under, shown, picture_size(shown, max_size)[0])[1].area
    finally:
        under.close()
        over.close()


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a mask lies on its image."""

    offset: tuple[int, int]
    """(y, x) of the mask's corner in pixels of its own size, counted from the image's corner."""
    scale: tuple[float, float]
    """Image pixels per mask pixel (y, x)."""
    size: Size
    """Of the mask."""

    @classmethod
    def of(cls, image: Raster, mask: Raster, coding: Coding | None) -> Placement:
        """From the mask's origin and scale, the pixel sizes, or its size alone. Raises InputError if nothing fits."""
        full, size = Size(*image.shape[:2]), Size(*mask.shape[:2])
        whole = Window(y=0, x=0, height=full.height, width=full.width)
        offset = coding.offset if coding is not None else (0, 0)
        for scale in _scales(image, mask, full, size, coding):
            place = cls(offset, scale, size)
            if whole.holds(place.covers):
                return place
        raise InputError(
            f"the mask {mask.path} ({size.height} × {size.width} px) does not fit "
            f"the image {image.path} ({full.height} × {full.width} px): give the mask of this image"
        )

    @property
    def covers(self) -> Window:
        """The pixels of the image that the mask touches."""
        starts = [floor(o * s + _HAIR) for o, s in zip(self.offset, self.scale, strict=True)]
        ends = zip(self.offset, self.size, self.scale, strict=True)
        return Window.between(*starts, *(ceil((o + length) * s - _HAIR) for o, length, s in ends))

    def codes(self, mask: Raster, shown: Window, size: Size) -> np.ndarray:
        """The mask's codes under a picture of `size` of the image's window `shown`; NOTHING beside the mask."""
        (y, x), (y_scale, x_scale) = self.offset, self.scale
        area = Area(
            shown.y / y_scale - y,
            shown.x / x_scale - x,
            shown.bottom / y_scale - y,
            shown.right / x_scale - x,
        )
        return mode_picture(mask, area, size)


def picture_size(shown: Window, max_size: int) -> tuple[Size, float]:
    """Size of the picture of a window, and image pixels per picture pixel."""
    longest = max(shown.size)
    if longest <= max_size:
        zoom = min(max_size // longest, MOST_ZOOM)
        return Size(shown.height * zoom, shown.width * zoom), 1 / zoom
    scale = longest / max_size
    return Size(max(1, round(shown.height / scale)), max(1, round(shown.width / scale))), scale


def _scales(
    image: Raster, mask: Raster, full: Size, size: Size, coding: Coding | None
) -> list[tuple[float, float]]:
    """Image pixels per mask pixel (y, x), the likeliest first."""
    same = (1.0, 1.0)
    if full == size and (coding is None or coding.offset == (0, 0)):
        return [same]
    likely = []
    said = coding.scale if coding is not None else same
    a, b = image.pixel_size, mask.pixel_size
    if a is not None and b is not None and a[2] is not None and a[2] == b[2]:
        ratios = b[0] / a[0], b[1] / a[1]
        # what the mask says is exact; but this may be a smaller copy of the image that it was made from
        likely.append(
            said if all(abs(r / s - 1) < 0.01 for r, s in zip(ratios, said, strict=True)) else ratios
        )
    if coding is not None:
        likely.append(said)
    fit = full.height / size.height, full.width / size.width
    if abs(fit[0] / fit[1] - 1) < 2 / min(size):
        likely.append(fit)
    return likely


def _inside(region: Window, image: Raster) -> Window:
    height, width = image.shape[:2]
    shown = region.intersect(Window(y=0, x=0, height=height, width=width))
    if not shown.area:
        raise UsageError(f"the region {region} lies outside {image.path}, which is {height} × {width} px")
    return shown


def _colour_channels(image: Raster) -> list[int]:
    """Red, green and blue: the first three channels that are no opacity; one or two give grey."""
    if image.palette is not None:
        return [0, 1, 2]
    measured = [c for c in range(image.shape[2]) if c != image.alpha]
    return measured[:3] if len(measured) >= 3 else measured[:1]


def _shares(codes: np.ndarray, classes: Mapping[int, Class]) -> dict[str, float]:
    pixels = {c.name: int(np.count_nonzero(codes == code)) for code, c in classes.items()}
    total = sum(pixels.values())
    return {name: n / total if total else 0.0 for name, n in pixels.items()}


def _target(out: Path, overwrite: bool) -> Path:
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: a preview is a PNG: give a name that ends in .png")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}")
    check_writable(out.parent, f"--out {out}")
    if out.exists() and not overwrite:
        raise OutputExistsError(f"{out} is there already: pass --overwrite, or name another output")
    return out
