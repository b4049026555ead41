"""One page of a TIFF: cut a window out of it, decoding only the tiles or strips that the window touches.

tifffile understands the header and gives the decoder of one segment (a tile or a strip). Several threads may read one
page at once. A segment of which a window took only a part is kept for the next (segment_cache.py); large ones are read
another way (large_segment.py).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from raysegment.errors import InputError, ReadError, StorageError
from raysegment.geometry import Size, Window
from raysegment.raster import jpeg, lerc
from raysegment.raster.large_segment import LARGE_BYTES, MOST_KEPT_BYTES, LargeSegments
from raysegment.raster.segment_cache import DECODED
from raysegment.raster.segment_stream import Section, SegmentStream, can_stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tifffile import TiffFrame, TiffPage

    from raysegment.storage.byte_file import ByteFile
    from raysegment.storage.url_file import UrlFile

#: What an uncompressed page is said to decode at once, if its segments allow: any part of it can be had alone.
_DIRECT_CHUNK = 256


class Page:
    """A page (y, x, sample), opened. `base` is the offset of one without a header of its own (ImageJ)."""

    def __init__(self, page: TiffPage | TiffFrame, file: ByteFile | UrlFile, base: int | None = None) -> None:
        key = page.keyframe
        if key is None or key.dtype is None or key._dtype is None:
            bits = getattr(key, "bitspersample", "?")
            raise InputError(f"{file.path} has pixels of a kind that cannot be read: {bits} bits per sample")
        if key.dtype.kind not in "buif":
            raise InputError(f"{file.path} has {key.dtype} pixels: give real numbers, such as the amplitude")
        planes, depth, height, width, samples = key.shaped
        if not all(isinstance(n, int) and n > 0 for n in key.shaped):
            raise InputError(f"{file.path} says that it is {height} × {width} px: there is nothing to read")
        if depth != 1:
            raise InputError(f"{file.path} has pages of depth {depth}: give one page per plane")
        self.file = file
        self.size = Size(height, width)
        self._whole = Window(y=0, x=0, height=height, width=width)
        self._id = object()
        self.samples = planes * samples
        # By its letters: tifffile's unsigned long long is equal to uint64, but not to torch.
        native = np.dtype(key.dtype.newbyteorder("=").str)
        self.dtype = np.dtype(np.uint8) if native.kind == "b" else native
        self._planes, self._samples = planes, samples
        self._segment = (
            Size(key.tilelength, key.tilewidth)
            if key.is_tiled and base is None
            else Size(height if base is not None else min(key.rowsperstrip, height), width)
        )
        self._rows = math.ceil(height / self._segment.height)
        self._columns = math.ceil(width / self._segment.width)
        self._large: LargeSegments | None = None
        # of a large image there are millions: as Python's own numbers they would take five times the memory
        self._offsets = np.asarray(page.dataoffsets if base is None else (base,), np.uint64)
        self._counts = np.asarray(page.databytecounts if base is None else (0,), np.uint64)
        self._stored = _plain_dtype(key) if base is None else key.dtype.newbyteorder(key.parent.byteorder)
        if base is None:
            self._check_header(key)
            self._decode = jpeg.decoder_of(key) or lerc.decoder_of(key) or key.decode
            self._tables = {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader}
            self._large = self._large_segments(key)
        elif planes > 1:
            raise InputError(f"{file.path} is a hyperstack with planar samples: rewrite it page by page")

    @property
    def chunk(self) -> Size:
        """What is decoded at once; it lies in one segment."""
        edges = zip(self._segment, self.size, strict=True)
        if self._stored is not None:
            return Size(*(_direct_edge(segment, length) for segment, length in edges))
        return Size(*(min(segment, length) for segment, length in edges))

    @property
    def stored(self) -> tuple[Size, np.ndarray]:
        """Size of a tile or strip, and which of them are in the file in some plane: bool (rows, columns)."""
        count = self._planes * self._rows * self._columns
        there = self._counts[:count] > 0
        if self._stored is not None:  # bare samples: their number is known, whatever the header says of it
            there |= self._offsets[:count] > 0
        grid: np.ndarray = there.reshape(self._planes, -1).any(axis=0)  # type: ignore[assignment]
        return self._segment, grid.reshape(self._rows, self._columns)

    def read_in_order(self, in_order: bool) -> None:
        """Whether windows will come from the top down, so that large segments can be decoded as they are read."""
        if self._large is not None:
            self._large.in_order = in_order

    def read_into(self, window: Window, out: np.ndarray, fill: float) -> None:
        """Write the window's pixels to `out` (height, width, samples); what is not stored becomes `fill`.

        Raises ReadError naming the window and the tile or strip that is broken.
        """
        h = self._segment.height
        column_bytes = (math.ceil(window.bottom / h) - window.y // h) * self._planes * self._segment_bytes
        keeps = column_bytes <= DECODED.most_bytes  # a column that did not fit would push out its own top
        self.file.expect(self._ranges(window))
        for plane in range(self._planes):
            samples = slice(plane * self._samples, (plane + 1) * self._samples)
            for index, place in self._segments(plane, window):
                part = window.intersect(place)
                rows, columns = part.slices(window)
                target = out[rows, columns, samples]
                try:
                    pixels = self._pixels(index, place, part, keeps)
                except StorageError:  # says nothing of the segment
                    raise
                except Exception as e:  # codecs raise anything on damaged data
                    reason = str(e) or type(e).__name__
                    raise ReadError(
                        f"{self.file.path}: cannot read {window}: the segment at {place} is broken: {reason}"
                    ) from e
                target[...] = fill if pixels is None else pixels

    def _segments(self, plane: int, window: Window) -> Iterator[tuple[int, Window]]:
        """Index and place of every segment that the window touches."""
        h, w = self._segment
        for row in range(window.y // h, math.ceil(window.bottom / h)):
            for column in range(window.x // w, math.ceil(window.right / w)):
                index = (plane * self._rows + row) * self._columns + column
                yield index, Window(y=row * h, x=column * w, height=h, width=w)

    def _ranges(self, window: Window) -> Iterator[tuple[int, int]]:
        """Offset and length of all that :meth:`read_into` will read for the window, in that order."""
        for plane in range(self._planes):
            for index, place in self._segments(plane, window):
                offset, count = self._place(index)
                if self._stored is not None and offset:
                    yield from self._direct_ranges(offset, place, window.intersect(place))
                elif (self.file, (self._id, index)) not in DECODED:
                    yield offset, count

    def _pixels(self, index: int, place: Window, part: Window, keeps: bool) -> np.ndarray | None:
        """Pixels of `part` of one segment; None for one that is not stored (GDAL's sparse files).

        `keeps`: whether the segment may stay decoded for the next window.
        """
        offset, count = self._place(index)
        if self._stored is not None and offset:
            self._check_whole(offset, place, part)
            return self._direct(self._direct_ranges(offset, place, part), part, self._stored)
        if not count:
            return None
        self.file.check(offset, count)
        rows, columns = part.slices(place)
        if self._large is not None:
            whole_rows = columns.start == 0 and part.right == min(place.right, self.size.width)
            pixels = self._large.read(index, rows, columns, whole_rows)
        else:
            segment = self._kept_or_decoded(index, place, part, keeps)
            pixels = None if segment is None else segment[rows, columns]
        if pixels is not None and pixels.shape[:2] != part.size:
            raise ValueError(
                f"it unpacks to less than the {part.size.height} × {part.size.width} px of {part}"
            )
        return pixels

    def _kept_or_decoded(self, index: int, place: Window, part: Window, keeps: bool) -> np.ndarray | None:
        """One whole segment, decoded now or when a window before took a part of it."""
        key = (self.file, (self._id, index))
        segment = DECODED.take(key)
        if segment is None:
            segment = self._decoded(index)
        if segment is not None and keeps:
            DECODED.keep(key, segment, place.intersect(self._whole), part)
        return segment

    def _decoded(self, index: int) -> np.ndarray | None:
        """One whole segment (y, x, sample)."""
        data = self.file.read(*self._place(index))
        segment, _, _ = self._decode(data, index, **self._tables)
        return None if segment is None else segment[0]

    def _place(self, index: int) -> tuple[int, int]:
        """Offset and length of one segment in the file."""
        return int(self._offsets[index]), int(self._counts[index])

    def _large_segments(self, key: TiffPage) -> LargeSegments | None:
        """Where segments are large: what reads them."""
        if self._stored is not None or self._segment_bytes <= LARGE_BYTES:
            return None

        def stream(index: int) -> SegmentStream:
            packed = Section(self.file, *self._place(index))
            row = index // self._columns % self._rows
            last_row = min(self._segment.height, self.size.height - row * self._segment.height)
            return SegmentStream(key, packed, self._segment, last_row, self._samples)

        return LargeSegments(
            self._segment_bytes, self._planes, self._decoded, stream if can_stream(key) else None
        )

    @property
    def _segment_bytes(self) -> int:
        """Of one segment, unpacked."""
        return self._segment.area * self._samples * self.dtype.itemsize

    def _direct_ranges(self, offset: int, place: Window, part: Window) -> list[tuple[int, int]]:
        """Offset and length of the bytes of `part`, and no others; in one piece where that is most of the rows."""
        assert self._stored is not None
        pixel = self._stored.itemsize * self._samples
        row = pixel * self._segment.width
        first = offset + (part.y - place.y) * row + (part.x - place.x) * pixel
        if 2 * part.width >= self._segment.width:
            # The last row is read only as far as its pixels go: the last strip of a file may end there.
            return [(first, (part.height - 1) * row + part.width * pixel)]
        return [(first + r * row, part.width * pixel) for r in range(part.height)]

    def _direct(self, ranges: list[tuple[int, int]], part: Window, dtype: np.dtype) -> np.ndarray:
        """Uncompressed rows."""
        data = np.frombuffer(b"".join(self.file.read(*each) for each in ranges), np.uint8)
        size = (part.height, part.width * dtype.itemsize * self._samples)
        if data.size > size[0] * size[1]:
            row = dtype.itemsize * self._samples * self._segment.width
            strided = np.lib.stride_tricks.as_strided(data, size, (row, 1), writeable=False)
            data = np.ascontiguousarray(strided).reshape(-1)
        return data.view(dtype).reshape(part.height, part.width, self._samples)

    def _check_whole(self, offset: int, place: Window, part: Window) -> None:
        """Raise EOFError when the file ends inside a chunk that `part` touches.

        What lies before the end could still be read; but what is broken must not depend on who asks.
        """
        height, width = self.chunk
        bottom = min(math.ceil(part.bottom / height) * height, place.bottom, self.size.height)
        right = min(math.ceil(part.right / width) * width, place.right, self.size.width)
        pixels = (bottom - 1 - place.y) * self._segment.width + right - place.x
        self.file.check(offset, pixels * self._samples * self.dtype.itemsize)

    def _check_header(self, key: TiffPage) -> None:
        """Raise InputError when the header contradicts itself or the pixels cannot be decoded here."""
        import tifffile

        path, (height, width) = self.file.path, self.size
        wanted = self._planes * self._rows * self._columns
        if min(len(self._offsets), len(self._counts)) < wanted:
            found = min(len(self._offsets), len(self._counts))
            raise InputError(
                f"{path}: its header says {height} × {width} px in tiles or strips, {wanted} in all, but has {found}"
            )
        if key.compression != 1:
            try:
                tifffile.TIFF.DECOMPRESSORS[key.compression]
            except KeyError as e:
                raise InputError(
                    f"{path} is compressed in a way that cannot be read: {key.compression!s}"
                ) from e
        if key.is_subsampled and key.compression not in (6, 7, 34892, 33007):
            raise InputError(f"{path} has subsampled colour without JPEG: rewrite it as RGB")
        if self._stored is None and self._segment_bytes > MOST_KEPT_BYTES and not can_stream(key):
            raise InputError(
                f"{path} is compressed in pieces of {self._segment.height} × {self._segment.width} px "
                f"({self._segment_bytes / 2**30:.1f} GiB each): rewrite it tiled, e.g. gdal_translate -co TILED=YES"
            )


def _direct_edge(segment: int, length: int) -> int:
    """Edge of a chunk of bare samples, for a segment's edge on an axis of `length` pixels."""
    divides = segment >= length or segment % _DIRECT_CHUNK == 0
    return min(_DIRECT_CHUNK if divides else segment, length)


def _plain_dtype(key: TiffPage) -> np.dtype | None:
    """The samples' dtype in the file where segments are bare samples; None where they need decoding."""
    plain = (
        key.compression == 1
        and key.predictor == 1
        and key.fillorder == 1
        and key.bitspersample in (8, 16, 32, 64)
        and not key.is_subsampled
    )
    return key.dtype.newbyteorder(key.parent.byteorder) if plain and key.dtype is not None else None
