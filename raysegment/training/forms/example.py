"""Where the byte features of a serialised tf.train.Example lie: as much of protobuf as that takes.

Example{features: 1 Features}, Features{feature: 1 map<string, Feature>}, Feature{bytes_list: 1 BytesList},
BytesList{value: 1 repeated bytes}; see tensorflow/core/example/feature.proto and
https://protobuf.dev/programming-guides/encoding. Values are located, not copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Buffer(Protocol):
    """Bytes, or a mapped file."""

    def __getitem__(self, place: slice, /) -> bytes: ...


def bytes_features(data: Buffer, start: int, end: int, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Name → (offset, length) in `data` of the first value of those features, where they are bytes.

    The message is ``data[start:end]``. Raises ValueError when it is damaged.
    """
    found = {}
    for features in _fields(data, start, end, 1):
        for entry in _fields(data, *features, 1):
            key = next(_fields(data, *entry, 1), None)
            name = data[key[0] : key[1]].decode("utf-8", "replace") if key is not None else ""
            if name not in names:
                continue
            for feature in _fields(data, *entry, 2):
                for values in _fields(data, *feature, 1):
                    first = next(_fields(data, *values, 1), None)
                    if first is not None:
                        found[name] = (first[0], first[1] - first[0])
    return found


def _fields(data: Buffer, start: int, end: int, number: int) -> Iterator[tuple[int, int]]:
    """Start and end of every length-delimited field of that number, in order."""
    at = start
    while at < end:
        tag, at = _varint(data, at, end)
        kind = tag & 7
        if kind == _BYTES:
            length, at = _varint(data, at, end)
            if at + length > end:
                raise ValueError(f"a field of {length} bytes at {at} is longer than what holds it")
            if tag >> 3 == number:
                yield at, at + length
            at += length
        elif kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of the unknown wire type {kind} at {at}")


def _varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    """(value, place after it)."""
    value = 0
    for shift, byte in enumerate(data[at : min(at + 10, end)]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    raise ValueError(f"the number at {at} does not end")
