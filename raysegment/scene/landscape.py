"""A synthetic aerial scene without borders: any window of it, pixels and classes, by seed and place alone.

It is made in tiles of `TILE_PX`: a tile draws the shapes of the districts it sees as one byte per pixel (which
material), then every material gets its colour, texture, light and noise. Windows are cut from whole tiles, so
a pixel has one value, whatever window asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from PIL import Image, ImageDraw

from raysegment.geometry import Window
from raysegment.scene.district import DISTRICT_PX, REACH_PX, district, near
from raysegment.scene.materials import BANK, FIELD, MATERIALS, POOL
from raysegment.scene.noise import Stream, place_rng, value_noise
from raysegment.scene.sketch import GROUND, KEEP, Shape, Shapes
from raysegment.scene.terrain import shore_on
from raysegment.scene.texture import Textures, sliced

TILE_PX = 512
#: Drawn around a tile and cut off after the blur.
_RIM = 1
_DRAWN = TILE_PX + 2 * _RIM
#: Lattice on which what changes slowly (water's edge, light) is computed.
_COARSE = 16
_DISTRICTS_KEPT = 1024
_SENSOR_NOISE = 2.6


@dataclass(frozen=True, slots=True)
class _Surfaces:
    """One tile, drawn: which material each pixel is, how brightly lit, and the materials' own numbers."""

    material: np.ndarray
    brightness: np.ndarray
    parcels: list[Shape]


class Landscape:
    """The scene of one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._textures = Textures.of(seed)
        self._district: Callable[[int, int], Shapes] = lru_cache(_DISTRICTS_KEPT)(partial(district, seed))

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (h, w, 3) uint8 and classes (h, w) uint8 of any window."""
        pixels = np.empty((window.height, window.width, 3), np.uint8)
        classes = np.empty((window.height, window.width), np.uint8)
        for row in range(window.y // TILE_PX, -(-window.bottom // TILE_PX)):
            for column in range(window.x // TILE_PX, -(-window.right // TILE_PX)):
                place = Window(y=row * TILE_PX, x=column * TILE_PX, height=TILE_PX, width=TILE_PX)
                part = window.intersect(place)
                image, mask = self.tile(row, column)
                pixels[part.slices(window)] = image[part.slices(place)]
                classes[part.slices(window)] = mask[part.slices(place)]
        return pixels, classes

    def tile(self, row: int, column: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (TILE_PX, TILE_PX, 3) uint8 and classes (TILE_PX, TILE_PX) uint8 of one tile."""
        y, x = row * TILE_PX - _RIM, column * TILE_PX - _RIM
        surfaces = self._drawn(y, x)
        inner = surfaces.material[_RIM:-_RIM, _RIM:-_RIM]
        classes = _class_table(surfaces.parcels).take(inner)
        rng = place_rng(self.seed, Stream.SENSOR, row, column)
        return self._coloured(surfaces, y, x, rng), classes

    # ---- drawing

    def _seen(self, y: int, x: int) -> list[Shape]:
        """The shapes that touch the tile, layer by layer."""
        found: list[Shape] = []
        rows = range((y - REACH_PX) // DISTRICT_PX, (y + _DRAWN + REACH_PX) // DISTRICT_PX + 1)
        columns = range((x - REACH_PX) // DISTRICT_PX, (x + _DRAWN + REACH_PX) // DISTRICT_PX + 1)
        for i in rows:
            for j in columns:
                if near(self.seed, i, j, y, x, _DRAWN):
                    found += self._district(i, j).meeting(y, x, _DRAWN)
        found.sort(key=lambda shape: shape.layer)
        return found

    def _drawn(self, y: int, x: int) -> _Surfaces:
        material = Image.new("L", (_DRAWN, _DRAWN), 0)
        brightness = Image.new("L", (_DRAWN, _DRAWN), 128)
        on_material, on_brightness = ImageDraw.Draw(material), ImageDraw.Draw(brightness)
        parcels: list[Shape] = []
        shapes = self._seen(y, x)
        above = sum(shape.layer == GROUND for shape in shapes)
        for shape in shapes[:above]:
            parcels.append(shape)
            on_material.polygon(shape.points, fill=_parcel_number(len(parcels)))
        self._flood(material, y, x)
        for shape in shapes[above:]:
            for draw, value in ((on_material, shape.material), (on_brightness, shape.brightness)):
                if value != KEEP:
                    (draw.ellipse if shape.is_ellipse else draw.polygon)(shape.points, fill=value)
        return _Surfaces(np.asarray(material), np.asarray(brightness), parcels)

    def _flood(self, material: Image.Image, y: int, x: int) -> None:
        """Water, and a bank around it."""
        away = shore_on(self.seed, _coarse_places(y), _coarse_places(x)).astype(np.float32)
        if away.min() > 40:
            return
        distance = _refined(away, y, x)
        distance += 2.0 * sliced(self._textures.patches, y, x, _DRAWN)
        for value, limit in ((BANK, 6.0), (POOL, 0.0)):
            material.paste(value, mask=Image.fromarray(((distance < limit) * 255).astype(np.uint8)))

    # ---- colouring

    def _coloured(self, surfaces: _Surfaces, y: int, x: int, rng: np.random.Generator) -> np.ndarray:
        table = _number_table(surfaces.parcels, y, x)
        index = surfaces.material
        light = surfaces.brightness * np.float32(1 / 128)
        light *= self._illumination(y, x)
        relief = table["grain"].take(index)
        relief *= sliced(self._textures.grain, y, x, _DRAWN)
        patches = sliced(self._textures.patches, y, x, _DRAWN)
        relief += table["patches"].take(index) * patches
        if table["crowns"][np.unique(index)].any():
            relief += table["crowns"].take(index) * sliced(self._textures.crowns, y, x, _DRAWN)
        if any(MATERIALS[p.material].of == FIELD for p in surfaces.parcels):
            relief += _rows(table, index)
        relief += 1.0
        light *= relief
        noise = _sensor_noise(rng)
        out = np.empty((TILE_PX, TILE_PX, 3), np.uint8)
        for band, name in enumerate(("red", "green", "blue")):
            plane = table[name].take(index)
            plane += (2.4, 1.0, -1.4)[band] * patches
            plane *= light
            plane = _blurred(plane)
            plane += noise[band]
            plane += (7.0, 9.0, 16.0)[band]  # haze
            out[:, :, band] = np.clip(plane, 1, 255, out=plane)
        return out

    def _illumination(self, y: int, x: int) -> np.ndarray:
        coarse_y, coarse_x = np.meshgrid(_coarse_places(y), _coarse_places(x), indexing="ij")
        slope = value_noise(self.seed, Stream.LIGHT, coarse_y, coarse_x, 900.0)
        cloud = value_noise(self.seed, Stream.CLOUDS, coarse_y, coarse_x, 1700.0)
        light = 1.0 + 0.06 * slope - 0.12 * np.clip(2.5 * (cloud - 0.35), 0, 1)
        return _refined(light.astype(np.float32), y, x)


#: Material numbers below are fixed; those of a tile's parcels, each with rows and tone of its own, follow.
_FIXED = len(MATERIALS)


def _parcel_number(count: int) -> int:
    return min(_FIXED + count - 1, 255)


def _all_materials(parcels: Iterable[Shape]) -> list[tuple[int, float, float]]:
    """Material, tone and row direction of every number that a tile uses."""
    fixed = [(k, 1.0, 0.0) for k in range(_FIXED)]
    return fixed + [(p.material, p.tone, p.angle) for p in parcels]


def _class_table(parcels: list[Shape]) -> np.ndarray:
    return np.array([MATERIALS[k].of for k, _, _ in _all_materials(parcels)], np.uint8)


def _number_table(parcels: list[Shape], y: int, x: int) -> dict[str, np.ndarray]:
    """What each material number means, as columns. The phase of crop rows is that of the scene, not the tile's."""
    columns: dict[str, list[float]] = {}
    for k, tone, angle in _all_materials(parcels):
        material = MATERIALS[k]
        turn = 2 * np.pi / material.row_px
        ky, kx = turn * np.cos(angle), -turn * np.sin(angle)
        values = {
            "red": tone * material.colour[0],
            "green": tone * material.colour[1],
            "blue": tone * material.colour[2],
            "grain": material.grain,
            "patches": material.patches * 0.5,
            "crowns": material.crowns,
            "rows": material.rows,
            "ky": ky,
            "kx": kx,
            "phase": (ky * y + kx * x) % (2 * np.pi),
        }
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    return {name: np.array(values, np.float32) for name, values in columns.items()}


def _rows(table: dict[str, np.ndarray], index: np.ndarray) -> np.ndarray:
    along = np.arange(_DRAWN, dtype=np.float32)
    wave = table["ky"].take(index)
    wave *= along[:, None]
    across = table["kx"].take(index)
    across *= along
    wave += across
    wave += table["phase"].take(index)
    np.sin(wave, out=wave)
    wave *= table["rows"].take(index)
    return wave


def _sensor_noise(rng: np.random.Generator) -> np.ndarray:
    """Noise (3, TILE_PX, TILE_PX) float32: of two random bytes each, eight times as fast as a normal variate."""
    raw = np.frombuffer(rng.bytes(6 * TILE_PX**2), np.int8).reshape(2, 3, TILE_PX, TILE_PX)
    noise = raw[0].astype(np.float32)
    noise += raw[1]
    noise *= np.float32(_SENSOR_NOISE / np.sqrt(2 * (256**2 - 1) / 12))
    return noise


def _coarse_places(start: int) -> np.ndarray:
    """Places on one axis of the coarse lattice around a tile; the lattice is the scene's, so tiles agree on it."""
    return (start // _COARSE + np.arange(_DRAWN // _COARSE + 3)) * float(_COARSE)


def _refined(coarse: np.ndarray, y: int, x: int) -> np.ndarray:
    """Coarse values at every pixel of the tile, by linear interpolation."""
    (row, wy), (column, wx) = _weights(y), _weights(x)
    tall = coarse[row]
    tall += wy[:, None] * (coarse[row + 1] - tall)
    wide = tall[:, column]
    step = (tall[:, 1:] - tall[:, :-1])[:, column]
    step *= wx
    wide += step
    return wide


def _weights(start: int) -> tuple[np.ndarray, np.ndarray]:
    offset = np.arange(start, start + _DRAWN) - start // _COARSE * _COARSE
    return offset // _COARSE, ((offset % _COARSE) / _COARSE).astype(np.float32)


def _blurred(plane: np.ndarray) -> np.ndarray:
    """A slight blur by 1 4 1 in both directions; the rim is used up."""
    tall = plane[:-2] + plane[2:]
    tall += 4.0 * plane[1:-1]
    wide = tall[:, :-2] + tall[:, 2:]
    wide += 4.0 * tall[:, 1:-1]
    wide *= np.float32(1 / 36)
    return wide
