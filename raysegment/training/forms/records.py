"""TFRecords of tf.train.Example with the features ``image_raw`` and ``image_label``: encoded JPEG or PNG bytes.

A file, or a folder of them. Only lengths and feature names are read to find the pictures; each is decoded from its
place in the file when it is needed. Framing: https://www.tensorflow.org/tutorials/load_data/tfrecord.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from raysegment.errors import InputError, StorageError
from raysegment.raster import Raster
from raysegment.storage import Location, Url
from raysegment.storage.objects import children, open_bytes
from raysegment.storage.url_file import UrlFile
from raysegment.training.forms.example import Buffer, bytes_features
from raysegment.training.forms.scene import Listing, Pair

SUFFIXES = (".tfrecord", ".tfrecords", ".tfrec")
_IMAGE, _MASK = "image_raw", "image_label"
_HEADER, _FOOTER = 12, 4
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture inside a record."""

    path: str
    record: int
    feature: str
    offset: int
    """Of its first byte in the file."""
    length: int

    def open(self) -> Raster:
        from raysegment.raster.picture import PictureRaster

        return PictureRaster(self.path, {}, part=(self.offset, self.length))

    def __str__(self) -> str:
        return f"{self.path}, record {self.record}, {self.feature}"


def recognises(place: Location) -> bool:
    if place.is_file():
        return place.name.lower().endswith((*SUFFIXES, *(s + ".gz" for s in SUFFIXES))) or _is_framed(place)
    return bool(_shards(place))


def listing(place: Location) -> Listing:
    pairs: list[Pair] = []
    problems: list[str] = []
    for shard in _shards(place) if place.is_dir() else [place]:
        _index(shard, pairs, problems)
    if not pairs and not problems:
        raise InputError(f"{place} holds no records: write tf.train.Example with {_IMAGE} and {_MASK}")
    return Listing(tuple(pairs), tuple(problems))


def _shards(folder: Location) -> list[Location]:
    if not folder.is_dir():
        return []
    files = [folder / name for name, is_folder in children(folder).items() if not is_folder]
    return [p for p in files if p.suffix.lower() in SUFFIXES or ("-of-" in p.name and _is_framed(p))]


def _index(path: Location, pairs: list[Pair], problems: list[str]) -> None:
    with _mapped(path) as data:
        if len(data) == 0:
            problems.append(f"{path} is empty (0 bytes): it holds no records")
            return
        if data[:2] == _GZIP and not _frame(data, 0):
            raise InputError(
                f"{path} is compressed as a whole: unpack it with gunzip, its records need their place"
            )
        for number, (start, end) in enumerate(_records(data, path)):
            try:
                found = bytes_features(data, start, end, (_IMAGE, _MASK))
            except ValueError as e:
                problems.append(f"{path}, record {number} is no tf.train.Example: {e}")
                continue
            sources = {name: Picture(str(path), number, name, *where) for name, where in found.items()}
            problems += [
                f"{path}, record {number} has no {n} (bytes)" for n in (_IMAGE, _MASK) if n not in found
            ]
            pairs.append(Pair(f"{path.name}/{number:06}", sources.get(_IMAGE), sources.get(_MASK)))


@contextlib.contextmanager
def _mapped(path: Location) -> Iterator[_Sized]:
    """The bytes of a file, which are read where they are looked at."""
    if isinstance(path, Url):
        yield _Remote(path)
        return
    with path.open("rb") as file:
        if path.stat().st_size == 0:  # cannot be mapped
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


class _Sized(Buffer, Protocol):
    def __len__(self) -> int: ...


class _Remote:
    """An object, sliced. Read ahead: the lengths lie between the pictures, a request for each would take longer."""

    def __init__(self, url: Url) -> None:
        file = UrlFile(url)
        file.expect([(0, file.size)])
        self._size, self._stream = file.size, file.stream()

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: slice) -> bytes:
        start, stop, _ = place.indices(self._size)
        self._stream.seek(start, io.SEEK_SET)
        return self._stream.read(stop - start)


def _records(data: _Sized, path: Location) -> Iterator[tuple[int, int]]:
    """Start and end of every record's content. Raises InputError where the file is cut short or is none."""
    at = 0
    while at < len(data):
        length = _frame(data, at)
        if length is None:
            raise InputError(
                f"{path} is damaged at byte {at}, or no TFRecord file: the length's checksum is wrong"
            )
        if at + _HEADER + length + _FOOTER > len(data):
            raise InputError(f"{path} ends within the record at byte {at}: it was cut short, copy it again")
        yield at + _HEADER, at + _HEADER + length
        at += _HEADER + length + _FOOTER


def _frame(data: Buffer, at: int) -> int | None:
    """Length of the record that begins there, None where its checksum does not fit."""
    import google_crc32c

    head = data[at : at + _HEADER]
    if len(head) < _HEADER:
        return None
    length, masked = struct.unpack("<QI", head)
    crc = google_crc32c.value(head[:8])
    rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
    return length if (rotated + 0xA282EAD8) & 0xFFFFFFFF == masked else None


def _is_framed(path: Location) -> bool:
    try:
        with contextlib.closing(open_bytes(path)) as file:
            return _frame(file.read(0, min(_HEADER, file.size)), 0) is not None
    except StorageError:
        raise
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e
