"""Windows that visit an image."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raysegment.geometry import Size, Window
from raysegment.raster.walk import windows

sizes = st.integers(1, 90)


@given(sizes, sizes, st.integers(0, 40), st.integers(0, 40), sizes, sizes, st.integers(1, 4000))
def test_every_pixel_is_visited_once_and_memory_is_bounded(
    height: int, width: int, y: int, x: int, chunk_height: int, chunk_width: int, pixels: int
) -> None:
    area = Window(y=y, x=x, height=height, width=width)
    chunk = Size(chunk_height, chunk_width)
    seen = np.zeros((y + height, x + width), int)
    for window in windows(area, chunk, pixels):
        assert area.holds(window)
        assert window.area <= max(4 * pixels, chunk.width, width)
        seen[window.slices()] += 1
    assert (seen[area.slices()] == 1).all()
    assert seen.sum() == area.area


@given(sizes, sizes, st.integers(1, 16), st.integers(1, 16))
def test_no_chunk_is_decoded_twice_when_chunks_are_small(height: int, width: int, ch: int, cw: int) -> None:
    area = Window(y=0, x=0, height=height, width=width)
    chunk = Size(ch, cw)
    for window in windows(area, chunk, 16 * 16):
        assert window.y % ch == 0
        assert window.x % cw == 0
        assert window.bottom % ch == 0 or window.bottom == height
        assert window.right % cw == 0 or window.right == width
