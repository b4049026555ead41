"""How a preview looks: colours over the image, outlines, hatching, a legend."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from raysegment.errors import WorkError
from raysegment.model.spec import Class

#: How much of a class's colour covers the image.
OPACITY = 0.45
#: An 8-bit image whose 99th percentile lies below this is too dark to be looked at.
_DARK = 128
_GAP_PX = 8
_HATCH_PX = 8
_PAPER, _INK, _FAINT = (255, 255, 255, 255), (34, 38, 43, 255), (118, 124, 132, 255)


@dataclass(frozen=True)
class Scene:
    """What is drawn, all of one height and width."""

    colours: np.ndarray
    """uint8 (height, width, 3)."""
    share: np.ndarray
    """float32 (height, width): how much of each pixel has data."""
    codes: np.ndarray
    """int64 (height, width)."""
    classes: Mapping[int, Class]
    """Of each code; any other code is nodata."""


def stretched(pixels: np.ndarray, share: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Pixels (h, w, 1 or 3) as uint8 (h, w, 3) that a person can see.

    8-bit images as they are, a dark one brightened by one factor; others from the 2nd to the 98th percentile of
    each channel, of the pixels with data.
    """
    seen = pixels[share > 0]
    if dtype == np.bool_:
        bright = pixels * 255
    elif not len(seen):
        bright = pixels
    elif dtype == np.uint8:
        high = np.percentile(seen, 99)
        bright = pixels * (230 / high) if 0 < high < _DARK else pixels
    else:
        low, high = np.percentile(seen, (2, 98), axis=0)
        bright = (pixels - low) * (255 / np.maximum(high - low, 1e-12))
    return np.repeat(np.clip(bright + 0.5, 0, 255).astype(np.uint8), 3 // pixels.shape[2], axis=2)


def draw(scene: Scene, shares: Mapping[str, float], *, side_by_side: bool) -> Image.Image:
    """The whole picture, RGBA. `shares`: of each class, for the legend."""
    if side_by_side:
        panels = [_panel(scene, scene.colours), _panel(scene, _flat(scene))]
    else:
        panels = [_panel(scene, _covered(scene))]
    height, width = scene.share.shape
    total = len(panels) * width + (len(panels) - 1) * _GAP_PX
    legend = _legend(scene.classes, shares, total)
    picture = Image.new("RGBA", (max(total, legend.width), height + legend.height), _PAPER)
    for i, panel in enumerate(panels):
        picture.paste(Image.fromarray(panel), (i * (width + _GAP_PX), 0))
    picture.paste(legend, (0, height))
    return picture


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG by temp file and rename."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        picture.save(temp, format="PNG", optimize=True)
        os.replace(temp, path)
    except OSError as e:
        temp.unlink(missing_ok=True)
        raise WorkError(f"cannot write {path}: {e.strerror or e}") from e


def _panel(scene: Scene, colours: np.ndarray) -> np.ndarray:
    """RGBA (h, w, 4): transparent with a faint hatch where the image has no data."""
    has = scene.share >= 0.5
    hatch = _stripes(has.shape)
    panel = np.dstack([colours, np.full(has.shape, 255, np.uint8)])
    panel[~has] = (0, 0, 0, 0)
    panel[~has & hatch] = (128, 128, 128, 70)
    return panel


def _covered(scene: Scene) -> np.ndarray:
    """The image under translucent class colours, every region with an outline of its own colour."""
    picture = scene.colours.astype(np.float32)
    edge = outlines(scene.codes)
    for code, c in scene.classes.items():
        here = scene.codes == code
        colour = np.asarray(c.colour, np.float32)
        picture[here] += OPACITY * (colour - picture[here])
        picture[here & edge] = colour
    nothing = ~np.isin(scene.codes, list(scene.classes))
    lines = nothing & _stripes(nothing.shape)
    picture[lines] += 0.5 * (128 - picture[lines])
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def _flat(scene: Scene) -> np.ndarray:
    """The classes alone, in their full colours."""
    picture = np.full((*scene.codes.shape, 3), 235, np.uint8)
    picture[_stripes(scene.codes.shape)] = 205
    for code, c in scene.classes.items():
        picture[scene.codes == code] = c.colour
    return picture


def outlines(codes: np.ndarray) -> np.ndarray:
    """bool (h, w): pixels with another code above, below, left or right."""
    edge = np.zeros(codes.shape, bool)
    down, right = codes[1:] != codes[:-1], codes[:, 1:] != codes[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge


def _stripes(shape: tuple[int, ...]) -> np.ndarray:
    """bool (h, w): thin diagonal lines."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (y + x) % _HATCH_PX == 0


def _legend(classes: Mapping[int, Class], shares: Mapping[str, float], width: int) -> Image.Image:
    """A strip of `width` px or more: a swatch, the name and the share of every class, in as many rows as needed."""
    text_px = min(max(12, width // 64), 28)
    font = ImageFont.load_default(text_px)
    pad, swatch, line = text_px, text_px, round(1.9 * text_px)
    entries = [(c, f"~{shares[c.name]:.1%}".replace("%", " %")) for c in classes.values()]
    widths = [
        swatch + 0.5 * text_px + font.getlength(c.name) + 0.5 * text_px + font.getlength(said)
        for c, said in entries
    ]
    places, x, y = [], float(pad), 0.0
    for entry_width in widths:
        if x > pad and x + entry_width + pad > width:
            x, y = float(pad), y + line
        places.append((x, y))
        x += entry_width + 1.8 * text_px
    needed = round(max([width, *(w + 2 * pad for w in widths)]))
    strip = Image.new("RGBA", (needed, round(y + line + 0.8 * text_px)) if entries else (width, 1), _PAPER)
    brush = ImageDraw.Draw(strip)
    for (c, said), (x, y) in zip(entries, places, strict=True):
        top = y + 0.85 * text_px
        brush.rounded_rectangle((x, top, x + swatch, top + swatch), radius=text_px / 5, fill=c.colour)
        text_x, middle = x + 1.5 * swatch, top + swatch / 2
        brush.text((text_x, middle), c.name, font=font, fill=_INK, anchor="lm")
        brush.text(
            (text_x + font.getlength(c.name) + 0.5 * text_px, middle),
            said,
            font=font,
            fill=_FAINT,
            anchor="lm",
        )
    return strip
