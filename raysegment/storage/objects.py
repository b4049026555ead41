"""What is done with whole files, the same on a disk and on object storage.

A file appears whole or not at all: by temp file, fsync and rename on a disk, by one PUT on object storage.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob as local_glob
import hashlib
import os
import posixpath
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from raysegment.errors import GoneError, InputError, StorageError, UsageError
from raysegment.storage.location import Location, Url, is_url, location
from raysegment.storage.remote import remote, retried

if TYPE_CHECKING:
    from zarr.storage import FsspecStore

    from raysegment.storage.byte_file import ByteFile
    from raysegment.storage.url_file import UrlFile

T = TypeVar("T")

#: By what an object store or a web server says that content changed, the surest first.
_TAGS = ("ETag", "etag", "md5Hash", "Content-MD5", "Digest", "Last-Modified", "LastModified", "created")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a listing."""

    size: int
    tag: str
    """Changes when the content does: ETag; modification time in ns on a disk."""


@contextlib.contextmanager
def before_work() -> Iterator[None]:
    """Within, what a storage refuses is the caller's to mend: InputError instead of StorageError."""
    try:
        yield
    except StorageError as e:
        raise InputError(str(e)) from e


def is_passing(error: Exception) -> bool:
    """Whether it is a storage's, said by :func:`before_work` or not, and so no statement about what lies there."""
    return isinstance(error, StorageError) or isinstance(error.__cause__, StorageError)


def put(place: Location, data: bytes, *, survives: bool = True) -> None:
    """Write a whole file, replacing what is there. Raises OSError naming the file, StorageError.

    On a disk it is there after a power failure, too, unless it need not be: that takes milliseconds.
    """
    if isinstance(place, Url):
        remote(place).call("write", place, lambda fs, path: fs.pipe_file(path, data))
        return
    with _written_aside(place, data, survives) as temp:
        os.replace(temp, place)


def temp_beside(place: Path) -> Path:
    """A name for what is to become `place`, of this very writing: threads and other machines may write it, too."""
    return place.with_name(f".{place.name}.{secrets.token_hex(6)}.tmp")


def put_new(place: Location, data: bytes) -> bool:
    """Write a whole file where there is none yet; of several who try at once one gets True."""
    try:
        if isinstance(place, Url):
            return remote(place).call("write", place, lambda fs, path: _created(fs, path, data))
        with _written_aside(place, data, survives=True) as temp:
            _linked(temp, place, data)
    except FileExistsError:
        return False
    return True


def _linked(temp: Path, place: Path, data: bytes) -> None:
    """Give a whole file its name. Raises FileExistsError. Where there are no hard links (exFAT, many a network or FUSE
    file system) it is written in place: whoever looks in that moment finds it unfinished."""
    try:
        os.link(temp, place)
    except OSError as e:
        if e.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        with open(place, "xb") as f:
            f.write(data)


def _created(fs: Any, path: str, data: bytes) -> bool:
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    except Exception as e:
        # s3fs gives the answer to If-None-Match as it comes
        response: Any = getattr(e.__cause__ or e, "response", None) or {}
        if response.get("Error", {}).get("Code") in ("PreconditionFailed", "ConditionalRequestConflict"):
            return False
        raise
    return True


@contextlib.contextmanager
def _written_aside(place: Path, data: bytes, survives: bool) -> Iterator[Path]:
    """A file beside `place` with all of `data`, on the disk if it is to survive a power failure; gone at the end."""
    place.parent.mkdir(parents=True, exist_ok=True)
    temp = temp_beside(place)
    try:
        with open(temp, "wb") as f:
            f.write(data)
            if survives:
                f.flush()
                os.fsync(f.fileno())
        yield temp
    except OSError as e:
        if e.filename is None:  # a full disk does not say which
            e.filename = str(place)
        raise
    finally:
        temp.unlink(missing_ok=True)


def remove(place: Location) -> None:
    """Delete a file, or a folder with all that is in it; nothing there is as good. Raises OSError, StorageError."""
    if isinstance(place, Url):
        with contextlib.suppress(GoneError):
            remote(place).call("delete", place, lambda fs, path: fs.rm(path, recursive=True))
    elif place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def entries(place: Location) -> dict[str, Entry]:
    """Every file below a folder, by its name relative to it, sorted; of a file itself, under "".

    Raises OSError, StorageError. A web server has no listings: there only a file itself is found.
    """
    if isinstance(place, Url):
        look = _found if place.is_writable else _itself
        found: dict[str, Any] = remote(place).call("list", place, look)
        return {name: Entry(int(info["size"] or 0), tag_of(info)) for name, info in sorted(found.items())}
    if place.is_dir():
        files = {p.relative_to(place).as_posix(): p for p in sorted(place.rglob("*")) if p.is_file()}
    else:
        files = {"": place} if place.exists() else {}
    stats = {name: file.stat() for name, file in files.items()}
    return {name: Entry(s.st_size, str(s.st_mtime_ns)) for name, s in stats.items()}


def _found(fs: Any, path: str) -> dict[str, Any]:
    files = fs.find(path, detail=True)
    return {name.removeprefix(path).removeprefix("/"): info for name, info in files.items()}


def _itself(fs: Any, path: str) -> dict[str, Any]:
    return {"": fs.info(path)}


def tag_of(info: dict[str, Any]) -> str:
    """What of a listing's `info` on an object changes when its content does; "" where the storage tells nothing."""
    return str(next((info[key] for key in _TAGS if info.get(key)), "")).strip('"')


def children(folder: Location) -> dict[str, bool]:
    """What lies in a folder, by name, sorted: whether it is a folder itself. A link to nothing counts as a file, for
    whoever opens it to say so. Raises OSError, StorageError.

    At a URL by one listing, where asking for each would be a request each.
    """
    if isinstance(folder, Url):
        listed: list[Any] = remote(folder).call("list", folder, lambda fs, path: fs.ls(path, detail=True))
        own = remote(folder).path(folder).strip("/")  # some tools write an empty object in place of a folder
        held = {str(info["name"]).strip("/"): info["type"] == "directory" for info in listed}
        return {posixpath.basename(name): held[name] for name in sorted(held) if name != own}
    return {
        p.name: p.is_dir() for p in sorted(folder.iterdir()) if p.is_dir() or p.is_file() or p.is_symlink()
    }


def glob(pattern: str | os.PathLike[str]) -> list[str]:
    """The paths or URLs that a pattern matches, sorted; ``**`` goes through folders. Raises OSError, StorageError."""
    place = location(pattern)
    if not isinstance(place, Url):
        return sorted(local_glob.glob(os.fspath(pattern), recursive=True))
    found = remote(place).call("list", place, lambda fs, path: fs.glob(path))
    return sorted(path if is_url(path) else f"{place.scheme}://{path.lstrip('/')}" for path in found)


def has_magic(pattern: str | os.PathLike[str]) -> bool:
    """Whether it is a pattern. In an address of a web server "?" begins the query."""
    text = os.fspath(pattern)
    return any(c in text for c in "*[") if is_url(text) else local_glob.has_magic(text)


def check_writable(place: Location, option: str) -> None:
    """Raise UsageError, naming the option, when nothing can be written into a folder."""
    if isinstance(place, Path):
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise UsageError(f"{option}: no right to write into {place}")
        return
    if not place.is_writable:
        raise UsageError(f"{option}: {place.scheme}:// can only be read: give a path, s3:// or gs://")
    trial = place / ".raysegment-may-write"
    try:
        put(trial, b"")
        remove(trial)
    except StorageError as e:
        raise UsageError(f"{option}: {e}") from e


def fetched(url: Url) -> Path:
    """A copy of one object on this machine, for readers that need a file; gone when the process ends.

    Brought once, and again when it was replaced. Raises StorageError.
    """
    about = entries(url).get("")
    if about is None:
        raise GoneError(f"cannot read {url}: it does not exist")
    folder = hashlib.blake2b(f"{url}\0{about.size}\0{about.tag}".encode(), digest_size=8).hexdigest()
    copy = Path(_copies().name) / folder / url.name
    if not copy.exists():
        put(copy, url.read_bytes())
    return copy


@functools.cache
def _copies() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="raysegment-")


def asked(place: Location, work: Callable[[], T]) -> T:
    """The answer of `work`, which has a library read at `place`: retried, with the errors of all that is done here."""
    return retried("read", place, work) if isinstance(place, Url) else work()


def zarr_store(place: Location, *, read_only: bool = False) -> Path | FsspecStore:
    """What zarr opens: a local path as it is."""
    if not isinstance(place, Url):
        return place
    from zarr.storage import FsspecStore

    there = remote(place)
    return FsspecStore(there.asynchronous_fs, path=there.path(place), read_only=read_only)


def open_bytes(place: Location) -> ByteFile | UrlFile:
    """Any bytes of one file, by offset. Raises OSError, StorageError."""
    if isinstance(place, Url):
        from raysegment.storage.url_file import UrlFile

        return UrlFile(place)
    from raysegment.storage.byte_file import ByteFile

    return ByteFile(str(place))
