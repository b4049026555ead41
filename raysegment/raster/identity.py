"""A digest that changes when an image's content does.

Up to `WHOLE_BYTES` every byte counts, so a copy or a touched file keeps its identity. Above that, reading all
of it would cost more than it tells (1 GiB takes about a second, a 2 TB mosaic on a network disk hours): the
digest then covers the files' names, sizes and modification times, and `SAMPLES` pieces spread over them.

At a URL it covers names, sizes and what the storage says of the content: its ETag.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from raysegment.errors import GoneError, InputError
from raysegment.storage import Url, location
from raysegment.storage.objects import entries, open_bytes

#: Content is hashed whole up to this size in all.
WHOLE_BYTES = 1 << 30
#: Number and size of the pieces that stand for the content of something larger.
SAMPLES = 64
SAMPLE_BYTES = 1 << 16

_READ_BYTES = 1 << 22


def path_identity(path: str | os.PathLike[str]) -> str:
    """blake2b (32 hex digits) of a file, or of all files of a folder with their relative names.

    Raises InputError when something there cannot be read; StorageError for a URL.
    """
    place = location(path)
    if isinstance(place, Url):
        return _url_identity(place)
    try:
        return _identity(place)
    except OSError as e:
        raise InputError(f"cannot read {e.filename or path}: {e.strerror}") from e


def part_identity(path: str | os.PathLike[str], offset: int, length: int) -> str:
    """blake2b (32 hex digits) of a part of a file. Raises InputError when it cannot be read; StorageError for a URL."""
    digest = hashlib.blake2b(digest_size=16)
    place = location(path)
    if isinstance(place, Url):
        digest.update(open_bytes(place).read(offset, length))
        return digest.hexdigest()
    try:
        _add(digest, place, offset, length)
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e
    return digest.hexdigest()


def content_identity(contents: Iterable[bytes]) -> str:
    """The same of contents that are in memory."""
    digest = hashlib.blake2b(digest_size=16)
    for content in contents:
        digest.update(f"{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _url_identity(url: Url) -> str:
    found = entries(url)
    if not found:
        raise GoneError(f"cannot read {url}: it does not exist")
    about = [f"{name}\0{entry.size}\0{entry.tag}".encode() for name, entry in found.items()]
    if any(not entry.tag for entry in found.values()):  # a web server that says nothing: its ends must do
        file = open_bytes(url)
        count = min(SAMPLE_BYTES, file.size)
        about += [file.read(0, count), file.read(file.size - count, count)]
    return content_identity(about)


def _identity(root: Path) -> str:
    if root.is_dir():
        files = sorted((p.relative_to(root).as_posix(), p) for p in root.rglob("*") if p.is_file())
    else:
        files = [("", root)]
    sizes = [p.stat().st_size for _, p in files]
    total = sum(sizes)
    digest = hashlib.blake2b(digest_size=16)
    for (name, _), size in zip(files, sizes, strict=True):
        digest.update(f"{name}\0{size}\0".encode())
    if total <= WHOLE_BYTES:
        digest.update(b"whole\0")
        for _, file in files:
            _add(digest, file, 0, None)
    else:
        digest.update(b"samples\0")
        for _, file in files:
            digest.update(f"{file.stat().st_mtime_ns}\0".encode())
        _add_samples(digest, [p for _, p in files], sizes)
    return digest.hexdigest()


def _add(digest: hashlib.blake2b, file: Path, offset: int, length: int | None) -> None:
    with file.open("rb") as f:
        f.seek(offset)
        left = length if length is not None else -1
        while piece := f.read(_READ_BYTES if left < 0 else min(left, _READ_BYTES)):
            digest.update(piece)
            if left >= 0:
                left -= len(piece)


def _add_samples(digest: hashlib.blake2b, files: list[Path], sizes: list[int]) -> None:
    """Pieces at equal distances over all the files laid end to end, the first and last bytes among them."""
    span = max(0, sum(sizes) - SAMPLE_BYTES)
    places = [span * i // (SAMPLES - 1) for i in range(SAMPLES)]
    start = 0
    for file, size in zip(files, sizes, strict=True):
        for place in places:
            if start <= place < start + size:
                _add(digest, file, place - start, SAMPLE_BYTES)
        start += size
