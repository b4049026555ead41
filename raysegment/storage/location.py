"""A place by its name: a path on this machine, or a URL."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from raysegment.errors import UsageError

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
#: memory:// lives in one process and is for tests.
SCHEMES = ("s3", "gs", "https", "http", "memory")


@dataclass(frozen=True, slots=True, order=True)
class Url:
    """A URL that answers to the names of `pathlib.Path`, as far as object storage has them. Safe to send to workers.

    Object storage has no folders: one is there while something in it is. Raises StorageError where the storage refuses.
    """

    text: str

    def __str__(self) -> str:
        return self.text

    def __fspath__(self) -> str:
        return self.text

    @property
    def scheme(self) -> str:
        return self.text.partition("://")[0].lower()

    @property
    def is_writable(self) -> bool:
        """Whether its kind of storage can be written to at all."""
        return self.scheme not in ("http", "https")

    @property
    def name(self) -> str:
        """What is behind the last slash, without the query of a signed address."""
        return posixpath.basename(self._split()[0].partition("://")[2].partition("/")[2])

    @property
    def stem(self) -> str:
        return posixpath.splitext(self.name)[0]

    @property
    def suffix(self) -> str:
        return posixpath.splitext(self.name)[1]

    @property
    def parent(self) -> Url:
        path, query = self._split()
        return Url(path.removesuffix("/" + self.name) + query)

    def __truediv__(self, name: str) -> Url:
        path, query = self._split()
        return Url(f"{path}/{name}{query}")

    def with_name(self, name: str) -> Url:
        return self.parent / name

    def _split(self) -> tuple[str, str]:
        """The address, and the query that a server wants with every part of it."""
        path, mark, query = (
            self.text.partition("?") if self.scheme in ("http", "https") else (self.text, "", "")
        )
        return path.rstrip("/"), mark + query

    def exists(self) -> bool:
        """Whether there is an object of that name, or one below it."""
        from raysegment.storage.remote import remote

        return bool(remote(self).call("look for", self, lambda fs, path: fs.exists(path)))

    def is_file(self) -> bool:
        from raysegment.storage.remote import remote

        return bool(remote(self).call("look for", self, lambda fs, path: fs.isfile(path)))

    def is_dir(self) -> bool:
        """Whether there are objects below it. (A web server cannot be asked: no.)"""
        from raysegment.storage.remote import remote

        if not self.is_writable:
            return False
        return bool(remote(self).call("look for", self, lambda fs, path: fs.isdir(path)))

    def iterdir(self) -> Iterator[Url]:
        """What lies in it, in order of names."""
        from raysegment.storage.remote import remote

        found: list[Any] = remote(self).call("list", self, lambda fs, path: fs.ls(path, detail=False))
        for name in sorted(posixpath.basename(str(path).rstrip("/")) for path in found):
            yield self / name

    def read_bytes(self) -> bytes:
        """All of it. Raises GoneError, which is a FileNotFoundError."""
        from raysegment.storage.remote import remote

        return bytes(remote(self).call("read", self, lambda fs, path: fs.cat_file(path)))

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)


Location = Path | Url


def is_url(text: str | os.PathLike[str]) -> bool:
    """Whether it names something by a URL; ``file://`` is a path."""
    found = os.fspath(text)
    return _URL.match(found) is not None and not found.lower().startswith("file://")


def location(text: str | os.PathLike[str]) -> Location:
    """What a name stands for: an absolute path, or a URL. Raises UsageError for a URL of another kind, an empty name
    (which `pathlib` takes for the working folder), and what is no name at all."""
    if not isinstance(text, (str, os.PathLike)):
        raise UsageError(f"a {type(text).__name__} is no path: give a file, a folder or a URL")
    name = os.fspath(text)
    is_file_url = name.lower().startswith("file://")
    path = unquote(urlsplit(name).path) if is_file_url else name
    if not path:
        raise UsageError(
            f"{name!r} is an empty path: name a file, a folder or a URL (is a variable not set?)"
        )
    if is_file_url:
        return Path(path).absolute()
    if not is_url(name):
        return Path(name).absolute()
    url = Url(name)
    if url.scheme not in SCHEMES:
        raise UsageError(f"{name}: {url.scheme}:// cannot be opened: give a path, s3://, gs:// or https://")
    if not url.text.partition("://")[2].strip("/"):
        raise UsageError(f"{name} names no place: a bucket or a host is missing")
    return url
