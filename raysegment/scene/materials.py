"""What the ground is made of: colour, texture and class of every surface of a synthetic scene."""

from __future__ import annotations

from typing import NamedTuple

from raysegment.model.spec import Class

GRASS, FIELD, FOREST, WATER, ROAD, BUILDING = range(6)

CLASSES = (
    Class(name="grass", colour=(140, 190, 90), value=GRASS),
    Class(name="field", colour=(235, 200, 90), value=FIELD),
    Class(name="forest", colour=(30, 110, 60), value=FOREST),
    Class(name="water", colour=(60, 120, 210), value=WATER),
    Class(name="road", colour=(90, 90, 95), value=ROAD),
    Class(name="building", colour=(200, 70, 60), value=BUILDING),
)


class Material(NamedTuple):
    """A surface. The amplitudes are fractions of its brightness."""

    of: int
    """Class index."""
    colour: tuple[int, int, int]
    grain: float = 0.06
    """Amplitude of the texture of a pixel or two."""
    patches: float = 0.10
    """Amplitude of the texture of some ten pixels."""
    crowns: float = 0.0
    """Amplitude of tree crowns seen from above."""
    rows: float = 0.0
    """Amplitude of crop rows."""
    row_px: float = 6.0
    """Distance between two crop rows."""


_MEADOWS = ((104, 122, 72), (116, 130, 80), (96, 116, 66), (126, 134, 84), (110, 120, 70), (98, 126, 74))
_LAWNS = ((100, 122, 74), (114, 134, 86), (122, 128, 92), (92, 112, 70))
_CROPS = (
    ((174, 156, 98), 0.11, 6.0),  # ripe grain
    ((188, 172, 120), 0.09, 5.0),  # stubble
    ((112, 136, 62), 0.16, 6.0),  # maize
    ((126, 146, 76), 0.16, 5.0),  # young green
    ((134, 112, 88), 0.13, 7.0),  # ploughed
    ((152, 134, 108), 0.11, 6.0),  # bare
    ((118, 138, 78), 0.14, 5.0),  # clover
    ((176, 170, 76), 0.11, 6.0),  # rape
    ((112, 94, 74), 0.14, 7.0),  # freshly ploughed
    ((146, 146, 86), 0.12, 5.0),  # turning
)
_WOODS = ((58, 78, 46), (64, 82, 50), (52, 74, 48), (70, 86, 48))
_TREES = ((60, 82, 46), (70, 90, 50), (54, 76, 46), (80, 94, 52))
_ROOFS = (
    (152, 90, 72), (142, 84, 68), (164, 102, 80), (126, 76, 64), (112, 82, 70), (150, 108, 88),
    (80, 84, 100), (176, 170, 166), (192, 190, 186),
)  # fmt: skip
_ASPHALT = ((114, 112, 110), (124, 121, 116), (106, 105, 105), (138, 128, 112))  # the last is gravel

MATERIALS: tuple[Material, ...] = (
    *(Material(GRASS, c, grain=0.08, patches=0.16) for c in _MEADOWS),
    *(Material(GRASS, c, grain=0.07, patches=0.12) for c in _LAWNS),
    Material(GRASS, (130, 128, 96), grain=0.08, patches=0.14),  # verge
    Material(GRASS, (124, 124, 84), grain=0.10, patches=0.20),  # bank
    *(Material(FIELD, c, grain=0.05, patches=0.09, rows=r, row_px=p) for c, r, p in _CROPS),
    *(Material(FOREST, c, grain=0.06, patches=0.14, crowns=1.0) for c in _WOODS),
    *(Material(FOREST, c, grain=0.12, patches=0.10, crowns=0.25) for c in _TREES),
    Material(WATER, (55, 70, 58), grain=0.03, patches=0.22),
    *(Material(ROAD, c, grain=0.05, patches=0.06) for c in _ASPHALT),
    Material(ROAD, (196, 194, 186), grain=0.05, patches=0.05),  # paint
    *(Material(BUILDING, c, grain=0.05, patches=0.04) for c in _ROOFS),
)


def _numbered(first: int, count: int) -> range:
    return range(first, first + count)


MEADOWS = _numbered(0, len(_MEADOWS))
LAWNS = _numbered(MEADOWS.stop, len(_LAWNS))
VERGE = LAWNS.stop
BANK = VERGE + 1
CROPS = _numbered(BANK + 1, len(_CROPS))
WOODS = _numbered(CROPS.stop, len(_WOODS))
TREES = _numbered(WOODS.stop, len(_TREES))
POOL = TREES.stop
ASPHALT = _numbered(POOL + 1, len(_ASPHALT))
PAINT = ASPHALT.stop
ROOFS = _numbered(PAINT + 1, len(_ROOFS))
