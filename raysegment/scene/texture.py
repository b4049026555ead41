"""Textures that repeat: grain, patches and tree crowns, made once per scene and then only sliced."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysegment.scene.noise import Stream, place_rng

#: Two edges without a common factor of note, so that the sum of two textures does not repeat visibly.
GRAIN_PX = 500
PATCH_PX = 864
CROWN_PX = 768


@dataclass(frozen=True, slots=True)
class Textures:
    """Periodic float32 fields of mean 0 and deviation 1 (crowns: a brightness around 0)."""

    grain: np.ndarray
    patches: np.ndarray
    crowns: np.ndarray

    @classmethod
    def of(cls, seed: int) -> Textures:
        grain = _filtered(seed, Stream.GRAIN, GRAIN_PX, (0.5, 1.1))
        patches = _filtered(seed, Stream.PATCHES, PATCH_PX, (3.0, 9.0, 24.0))
        return cls(grain, patches, _crowns(seed))


def sliced(texture: np.ndarray, y: int, x: int, size: int) -> np.ndarray:
    """`size` × `size` pixels of the endlessly repeated texture, from scene pixel (y, x)."""
    edge = texture.shape[0]
    rows = np.arange(y, y + size) % edge
    columns = np.arange(x, x + size) % edge
    return texture.take(rows, axis=0).take(columns, axis=1)


def _filtered(seed: int, stream: Stream, edge: int, sigmas: tuple[float, ...]) -> np.ndarray:
    """White noise smoothed by Gaussians of these widths, each brought to the same strength, added up."""
    squared = np.fft.fftfreq(edge)[:, None] ** 2 + np.fft.rfftfreq(edge)[None, :] ** 2
    total = np.zeros((edge, edge))
    for k, sigma in enumerate(sigmas):
        white = np.fft.rfft2(place_rng(seed, stream, k).standard_normal((edge, edge)))
        smooth = np.fft.irfft2(white * np.exp(-2.0 * (np.pi * sigma) ** 2 * squared), s=(edge, edge))
        total += (smooth - smooth.mean()) / smooth.std()
    return (total / total.std()).astype(np.float32)


def _crowns(seed: int) -> np.ndarray:
    """A closed canopy from above: crowns in random order, dark at the rim, bright on the side of the sun."""
    from PIL import Image, ImageDraw

    rng = place_rng(seed, Stream.CROWNS)
    image = Image.new("L", (CROWN_PX, CROWN_PX), 40)
    draw = ImageDraw.Draw(image)
    count = CROWN_PX**2 // 42
    places = rng.uniform(0, CROWN_PX, (count, 2))
    radii = rng.uniform(3.5, 8.0, count)
    tones = rng.uniform(0.75, 1.15, count)
    for (y, x), r, tone in zip(places.tolist(), radii.tolist(), tones.tolist(), strict=True):
        for oy in _copies(y, r):
            for ox in _copies(x, r):
                for shrink, shift, grey in ((1.0, 0.0, 62), (0.8, 0.12, 100), (0.5, 0.32, 138)):
                    cy, cx, rr = oy - shift * r, ox - shift * r, shrink * r
                    draw.ellipse((cx - rr, cy - rr, cx + rr, cy + rr), fill=int(grey * tone))
    field = np.asarray(image, np.float32)
    smooth = field + np.roll(field, 1, 0) + np.roll(field, 1, 1) + np.roll(field, (1, 1), (0, 1))
    centred = smooth / smooth.mean() - 1.0
    return np.asarray(centred, np.float32)


def _copies(at: float, radius: float) -> list[float]:
    """Where a disc has to be drawn so that it goes on at the opposite edge."""
    copies = [at]
    if at < 2 * radius:
        copies.append(at + CROWN_PX)
    if at > CROWN_PX - 2 * radius:
        copies.append(at - CROWN_PX)
    return copies
