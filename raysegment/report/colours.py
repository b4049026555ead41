"""Class colours as a page can show them: the model's own, and legible variants for lines and text.

Contrast is that of WCAG 2.2: (L1 + 0.05) / (L2 + 0.05) of relative luminances, 3 or more for graphics.
"""

from __future__ import annotations

from raysegment.model.spec import Colour

#: The backgrounds of style.css, on which lines are drawn.
LIGHT: Colour = (255, 255, 255)
DARK: Colour = (18, 21, 24)
_GRAPHICS = 3.0
_STEPS = 20


def hexadecimal(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def contrast(a: Colour, b: Colour) -> float:
    """From 1 (none) to 21 (black on white)."""
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


def legible(colour: Colour, background: Colour) -> Colour:
    """The colour, moved no further towards black or white than its contrast with `background` asks for."""
    target = (0, 0, 0) if _luminance(background) > 0.5 else (255, 255, 255)
    for step in range(_STEPS + 1):
        r, g, b = (round(c + (t - c) * step / _STEPS) for c, t in zip(colour, target, strict=True))
        if contrast((r, g, b), background) >= _GRAPHICS:
            return r, g, b
    return target


def _luminance(colour: Colour) -> float:
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
