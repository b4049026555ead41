"""The one check that every reader makes before it reads."""

from __future__ import annotations

from raysegment.geometry import Size, Window


def check_window(window: Window, size: Size, path: str) -> None:
    """Raise ValueError, the caller's mistake, when the window is empty or sticks out of a level of `size`."""
    if window.area <= 0 or not Window(y=0, x=0, height=size.height, width=size.width).holds(window):
        raise ValueError(f"{window} is not inside {path}, which is {size.height} × {size.width} px there")
