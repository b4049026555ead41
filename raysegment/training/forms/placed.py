"""Whether a mask lies where its image lies, as far as both say where that is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysegment.console import counted
from raysegment.raster import Raster

#: Masks that are off by no more, in pixels, differ by rounding, or by whether a place is a pixel's corner or centre.
_CLOSE_PX = 1.0
_SHOWN = 3


def displacement(image: Raster, mask: Raster) -> float:
    """How far the corners of a mask of the same size are from those of its image, at most, in pixels of the image; 0
    where one of them says nothing of its place."""
    if image.transform is None or mask.transform is None:
        return 0.0
    height, width = image.shape[:2]
    at, there = (np.reshape(t, (2, 3)).astype(float) for t in (image.transform, mask.transform))
    corners = np.array([(x, y, 1) for x in (0, width) for y in (0, height)], dtype=float).T
    off = (there - at) @ corners  # in CRS units
    if not np.linalg.det(at[:, :2]):
        return 0.0
    return float(np.hypot(*np.linalg.solve(at[:, :2], off)).max())


def displaced_note(names: Sequence[str], displacements: Sequence[float]) -> str | None:
    """One line on the scenes whose masks lie elsewhere; None where there are none."""
    off = [(name, px) for name, px in zip(names, displacements, strict=True) if px > _CLOSE_PX]
    if not off:
        return None
    shown = ", ".join(f"{name} by {px:.0f} px" for name, px in off[:_SHOWN])
    more = f" and {len(off) - _SHOWN} more" if len(off) > _SHOWN else ""
    return (
        f"{counted(len(off), 'mask')} {'lies' if len(off) == 1 else 'lie'} elsewhere on the ground than "
        f"{'its image' if len(off) == 1 else 'their images'} ({shown}{more}): they are laid over each other pixel by "
        "pixel all the same; look whether they belong together"
    )
