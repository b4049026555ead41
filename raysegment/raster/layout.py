"""How to copy an image chunk by chunk: the order of reading, and chunks and shards of the copy that suit it.

Shards that are a plain fraction or multiple of the source's chunks are complete as soon as a chunk is read. Where
they are not, or where the source is as wide as the image, a row of shards is filled at the same time: it is
made low enough to fit `HELD_BYTES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raysegment.geometry import Size, Window

#: Edges of the copy's chunks and shards: a window reads little that it does not want, and files stay few.
_CHUNK_PX, _SHARD_PX = 512, 2048
#: Pixels that are read at once, or that wait for their shard to be complete, where the source leaves a choice.
HELD_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Layout:
    """The two grids of a copy, and the steps in which its source is read."""

    chunk: Size
    """Of the copy."""
    shard: Size
    """Of the copy: what one file holds. Whole chunks."""
    step: Size
    """Whole chunks of the source, or all of an axis."""

    @classmethod
    def of(cls, size: Size, source: Size, pixel_bytes: int) -> Layout:
        """For a source of `size` that is decoded in chunks of the size `source`."""
        x_chunk, x_shard = _edges(source.width, size.width, _CHUNK_PX, _SHARD_PX)
        most_rows = max(64, HELD_BYTES // (size.width * pixel_bytes))
        y_chunk, y_shard = _edges(source.height, size.height, _CHUNK_PX, _SHARD_PX)
        row_is_held = source.width >= size.width or not _fit(y_shard, source.height, size.height)
        if row_is_held and y_shard > most_rows:
            edge = 1 << min(_CHUNK_PX, most_rows).bit_length() - 1
            y_chunk, y_shard = _edges(source.height, size.height, edge, most_rows // edge * edge)
            x_shard = x_chunk * max(1, _SHARD_PX**2 // (y_shard * x_chunk))  # as many pixels as ever
        step = Size(_step(source.height, size.height, y_shard), _step(source.width, size.width, x_shard))
        return cls(Size(y_chunk, x_chunk), Size(y_shard, x_shard), step)

    def windows(self, size: Size, pixel_bytes: int, in_parts: bool) -> Iterator[Window]:
        """Windows that tile `size` in the order of reading.

        `in_parts`: a step that takes more than HELD_BYTES is read in parts, from its top to its bottom.
        """
        most_rows = self.step.height
        if in_parts and self.step.area * pixel_bytes > HELD_BYTES:
            most_rows = max(1, HELD_BYTES // (self.step.width * pixel_bytes))
            most_rows = max(most_rows // self.shard.height * self.shard.height, self.shard.height)
        whole = Window(y=0, x=0, height=size.height, width=size.width)
        for y in range(0, size.height, self.step.height):
            for x in range(0, size.width, self.step.width):
                step = Window(y=y, x=x, height=self.step.height, width=self.step.width).intersect(whole)
                for top in range(step.y, step.bottom, most_rows):
                    yield Window.between(top, step.x, min(top + most_rows, step.bottom), step.right)

    def shards(self, window: Window, size: Size) -> Iterator[Window]:
        """The shards that `window` touches, as far as they lie in the image."""
        h, w = self.shard
        for y in range(window.y // h * h, window.bottom, h):
            for x in range(window.x // w * w, window.right, w):
                yield Window.between(y, x, min(y + h, size.height), min(x + w, size.width))


def _edges(unit: int, length: int, chunk_px: int, shard_px: int) -> tuple[int, int]:
    """Edges of a chunk and a shard near those wished for, each a fraction or multiple of `unit` if one is near."""
    near = [c for c in range(max(1, chunk_px // 2), 2 * chunk_px + 1) if _fit(c, unit, length)]
    chunk = min(near, key=lambda c: abs(c - chunk_px), default=chunk_px)
    shards = range(chunk, max(2 * shard_px, chunk) + 1, chunk)
    fitting = [s for s in shards if _fit(s, unit, length)] or list(shards)
    return chunk, min(fitting, key=lambda s: abs(s - shard_px))


def _fit(edge: int, unit: int, length: int) -> bool:
    """Whether shards of `edge` and source chunks of `unit` never half overlap on an axis of `length`."""
    return unit >= length or edge % unit == 0 or unit % edge == 0


def _step(unit: int, length: int, shard: int) -> int:
    """Whole source chunks: as many as one shard takes."""
    return min(length, unit * max(1, shard // unit))
