"""At which resolution an image is read: as asked for, or as the model learned, and said in words.

Pixel sizes are compared in the model's unit. Degrees become metres at the scene's centre: 111,320 m a degree on
the meridian (a sphere of 6,378 km), times the cosine of the latitude across it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from raysegment.errors import UsageError
from raysegment.geometry import Size, Window
from raysegment.raster.sampling import Sampling, rescaled

if TYPE_CHECKING:
    from raysegment.raster.protocol import PixelSize, Raster

#: An image is resampled where its pixel size differs by more than this from what the model learned at.
TOLERANCE = 0.1
#: A stored level this close to what is wanted is read as it is.
_SAME = 0.01
_METRES_PER_DEGREE = 111_320.0
_METRES = {"m": 1.0, "um": 1e-6}
#: Most pixels made along a stored one: 30 m scenes are read at 0.5 m, and a wrong unit is a thousand times off.
_MOST_MAGNIFIED = 100
#: Most pixels of a grid much finer than what is stored: a Sentinel-2 tile at 0.1 m has a quarter of them.
_MOST_MADE = 2**42


def choose_sampling(
    raster: Raster,
    *,
    level: int | None = None,
    pixel_size: float | Literal["native"] | None = None,
    trained: PixelSize | None = None,
) -> tuple[Sampling | None, str | None]:
    """How to read `raster`, and what to tell about it. None: as stored, at level 0; nothing to tell.

    `level`: a stored level; `pixel_size`: edge length in the image's own unit (µm under the microscope, the CRS's
    unit on the ground), or "native" for as stored; `trained`: the pixel size that the model learned at, which
    decides where neither is given.

    Raises UsageError for a level that is not there, for both options at once, for a pixel size that is not
    positive or does not fit the image, and for one of an image that does not say its own.
    """
    if pixel_size == "native":
        if level:
            raise UsageError(f"--level {level} and --pixel-size native contradict each other: give one")
        return None, None
    if level is not None and pixel_size is not None:
        raise UsageError(f"--level {level} and --pixel-size {pixel_size} both choose a resolution: give one")
    if level is not None:
        return _at_level(raster, level, trained)
    if pixel_size is not None:
        return _at_pixel_size(raster, pixel_size, trained)
    if trained is not None:
        return _as_trained(raster, trained)
    return None, None


def asked_pixel_size(raster: Raster, pixel_size: float) -> PixelSize:
    """`pixel_size`, an edge length in the image's own unit, as :attr:`Raster.pixel_size` would say it.

    Raises UsageError for an image that does not say its own.
    """
    own, said = _own(raster), raster.pixel_size
    if own is None or said is None:
        raise UsageError(f"--pixel-size {pixel_size:g} cannot be met: {raster.path} does not say its own")
    edge = pixel_size * said[0] / own[0]
    return edge, edge, said[2]


def snap_region(region: Window, full: Size, target: Size) -> Window:
    """Full-resolution pixels as pixels of a grid of `target` size: every one that `region` touches."""
    return rescaled(region, full, target)


def to_source(window: Window, full: Size, target: Size) -> Window:
    """Pixels of a grid of `target` size as full-resolution pixels: every one that `window` touches."""
    return rescaled(window, target, full)


def _at_level(raster: Raster, level: int, trained: PixelSize | None) -> tuple[Sampling | None, str | None]:
    if not 0 <= level < len(raster.levels):
        there = ", ".join(f"{n} ({s.height} × {s.width} px)" for n, s in enumerate(raster.levels))
        raise UsageError(f"--level {level} is not in {raster.path}: it has {there}")
    size = raster.levels[level]
    sampling = Sampling(level=level, size=size) if level else None
    return sampling, _unlike(raster, size, trained)


def _at_pixel_size(
    raster: Raster, pixel_size: float, trained: PixelSize | None
) -> tuple[Sampling | None, str | None]:
    if not (math.isfinite(pixel_size) and pixel_size > 0):
        raise UsageError(f"--pixel-size {pixel_size} must be a positive number, or native")
    own = _own(raster)
    if own is None:
        raise UsageError(
            f"--pixel-size {pixel_size:g} cannot be met: {raster.path} does not say its own; give --level instead"
        )
    y, x, unit = own
    what = f"--pixel-size {pixel_size:g}, on pixels of {_shown(y, x, unit)},"
    sampling = _fitting(raster, y / pixel_size, x / pixel_size, what)
    size = raster.levels[0] if sampling is None else sampling.size
    said = _how(raster, sampling, (y, x), (pixel_size, pixel_size), unit)
    unlike = _unlike(raster, size, trained)
    return sampling, "; ".join(part for part in (said, unlike) if part) or None


def _as_trained(raster: Raster, trained: PixelSize) -> tuple[Sampling | None, str | None]:
    wanted, unit = trained[:2], trained[2]
    learned = _shown(*wanted, unit)
    here = raster.pixel_size
    if here is None or not _positive(here):
        return None, f"the image has no pixel size (the model learned at {learned}/px): read as stored"
    own = _in_unit(raster, unit) if _positive(trained) else None
    if own is not None and _alike(own, wanted, TOLERANCE):
        return None, None
    if own is None or unit is None:  # numbers without a unit tell nothing, unless they are equal
        return None, (
            f"pixel sizes cannot be compared (model: {learned}, image: {_shown(*here)}): read as stored"
        )
    what = f"the pixel size the model learned at, {learned}, on pixels of {_shown(*own, unit)},"
    unasked = ", or read it as stored with --pixel-size native"
    sampling = _fitting(raster, own[0] / wanted[0], own[1] / wanted[1], what, unasked)
    said = _how(raster, sampling, own, wanted, unit)
    return sampling, said and f"{said}, the pixel size the model learned at"


def _fitting(raster: Raster, y: float, x: float, what: str, otherwise: str = "") -> Sampling | None:
    """The grid of `y`, `x` times the image's pixels, from the coarsest stored level that is as fine.

    Raises UsageError, which begins with `what` and ends with `otherwise`, where it would hold no pixel, or absurdly
    many.
    """
    full = raster.levels[0]
    height, width = full.height * y, full.width * x
    most = max(_MOST_MADE, 2 * full.area)
    is_absurd = max(y, x) > _MOST_MAGNIFIED * (1 + 1e-9) or height * width > most
    if is_absurd or min(height, width) < 0.5:
        raise UsageError(
            f"{what} would make {raster.path} {height:.3g} × {width:.3g} px: check the unit{otherwise}"
        )
    size = Size(round(height), round(width))
    fine = 0
    for n, level in enumerate(raster.levels):
        if _alike(level, size, _SAME):
            return Sampling(level=n, size=level) if n else None
        if level.height >= size.height * (1 - _SAME) and level.width >= size.width * (1 - _SAME):
            fine = n
    return Sampling(level=fine, size=size)


def _how(
    raster: Raster,
    sampling: Sampling | None,
    own: tuple[float, float],
    wanted: tuple[float, float],
    unit: str | None,
) -> str | None:
    if sampling is None:
        return None
    is_stored = sampling.size == raster.levels[sampling.level]
    verb = f"read at level {sampling.level}:" if is_stored else "resampled"
    return f"{verb} from {_shown(*own, None)} to {_shown(*wanted, unit)}/px"


def _unlike(raster: Raster, size: Size, trained: PixelSize | None) -> str | None:
    """What to say where the pixels of a grid of `size`, as asked for, are not what the model learned at."""
    own = None if trained is None else _in_unit(raster, trained[2])
    if trained is None or own is None:
        return None
    full = raster.levels[0]
    read = own[0] * full.height / size.height, own[1] * full.width / size.width
    if _alike(read, trained[:2], TOLERANCE):
        return None
    return f"read at {_shown(*read, trained[2])}/px, the model learned at {_shown(*trained)}/px"


def _own(raster: Raster) -> tuple[float, float, str] | None:
    """The image's pixel size in the unit that people give: the CRS's own, which may be feet, or µm."""
    if raster.pixel_size is None or not _positive(raster.pixel_size):
        return None
    y, x, unit = raster.pixel_size
    if raster.transform is None:
        return y, x, unit or "units"
    a, b, _, d, e, _ = raster.transform
    own_y, own_x = math.hypot(b, e), math.hypot(a, d)
    is_named = unit is not None and math.isclose(own_y, y, rel_tol=1e-6)
    return own_y, own_x, unit if is_named and unit else "CRS units"


def _in_unit(raster: Raster, unit: str | None) -> tuple[float, float] | None:
    """The image's pixel size (y, x) in `unit`; None where it cannot be told."""
    if raster.pixel_size is None or not _positive(raster.pixel_size):
        return None
    y, x, own = raster.pixel_size
    if own == unit:
        return y, x
    if own == "degree":
        latitude = _centre_latitude(raster)
        if latitude is None:
            return None
        y, x, own = y * _METRES_PER_DEGREE, x * _METRES_PER_DEGREE * math.cos(math.radians(latitude)), "m"
    if own not in _METRES or unit not in _METRES:
        return None
    factor = _METRES[own] / _METRES[unit]
    return y * factor, x * factor


def _centre_latitude(raster: Raster) -> float | None:
    """Degrees north at the image's centre; None where it lies nowhere on the globe."""
    if raster.transform is None:
        return None
    _, _, _, d, e, f = raster.transform
    latitude = d * raster.shape[1] / 2 + e * raster.shape[0] / 2 + f
    return latitude if abs(latitude) < 90 else None


def _positive(pixel_size: PixelSize | None) -> bool:
    return pixel_size is not None and all(math.isfinite(v) and v > 0 for v in pixel_size[:2])


def _alike(a: tuple[float, float], b: tuple[float, float], tolerance: float) -> bool:
    """Whether both numbers of `a` are within `tolerance` of those of `b`, as a share of these."""
    return all(abs(one - other) <= (tolerance + 1e-9) * other for one, other in zip(a, b, strict=True))


def _shown(y: float, x: float, unit: str | None) -> str:
    """ "0.5 um", "0.5 × 0.25 um"; without a unit the numbers alone."""
    number = f"{y:.4g}" if math.isclose(y, x, rel_tol=5e-4) else f"{y:.4g} × {x:.4g}"
    return f"{number} {unit}" if unit else number
