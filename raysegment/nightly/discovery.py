"""Which images there are: paths, globs and URLs, listed with what tells whether their content changed."""

from __future__ import annotations

import functools
import glob
import hashlib
import os
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raysegment.errors import InputError, RaysegmentError, StorageError
from raysegment.inference.sources import stem_of
from raysegment.nightly.job import JobFile
from raysegment.raster.identity import path_identity
from raysegment.storage import Url, is_url, location
from raysegment.storage.objects import before_work, has_magic, is_passing, tag_of
from raysegment.storage.remote import remote

#: What counts as an image where a whole folder is named.
SUFFIXES = (
    ".tif", ".tiff", ".btf", ".tf2", ".tf8", ".svs", ".ndpi", ".scn", ".bif", ".qptiff",
    ".png", ".jpg", ".jpeg", ".zarr",
)  # fmt: skip
#: Images that a storage must refuse before it is taken to refuse all that lie there.
_REFUSED = 4
_ZARR = ("zarr.json", ".zgroup", ".zarray")
_TIMES = ("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "created")


@dataclass(frozen=True, slots=True)
class Found:
    """One image as a listing shows it."""

    source: str
    """Absolute path, or URL."""
    fixed: str
    """What is fixed of the pattern that found it: ``{relpath}`` counts from there."""
    size: int
    """Bytes, of all files of a store."""
    tag: str
    """ETag on object storage; modification times, in ns, on disks."""
    modified: float | None
    """Seconds since the epoch, where the storage tells."""

    def names(self, date: str) -> dict[str, str]:
        """What stands for each placeholder of ``[output] path``."""
        path = urlsplit(self.source).path if is_url(self.source) else self.source
        below = path.removeprefix(urlsplit(self.fixed).path if is_url(self.fixed) else self.fixed).lstrip("/")
        stem, parent = stem_of(path), os.path.dirname(path)
        relpath = os.path.join(os.path.dirname(below), stem)
        return {"date": date, "stem": stem, "parent": os.path.basename(parent), "relpath": relpath}

    def digest(self) -> str | None:
        """Of the content, read; None on object storage, where the tag is all. Raises InputError."""
        return None if is_url(self.source) else path_identity(self.source)


def discover(job: JobFile) -> list[Found]:
    """Every image that ``[input] paths`` names, once, in the order of names.

    Raises InputError for a path, or the fixed folder of a pattern, that is not there or may not be read: a pattern
    that matches nothing yet is fine.
    """
    found: dict[str, Found] = {}
    with before_work():
        for pattern in job.input.paths:
            for one in _matches(job, pattern):
                found.setdefault(one.source, one)
    return [found[source] for source in sorted(found)]


def check_readable(images: Iterable[Found]) -> None:
    """Raise InputError for a place of ``[input] paths`` whose storage lists images and gives none of the first."""
    by_place: dict[str, list[str]] = defaultdict(list)
    for one in images:
        if is_url(one.source):
            by_place[one.fixed].append(one.source)
    for sources in by_place.values():
        refusal = None
        for source in sources[:_REFUSED]:
            refusal = _refusal(source)
            if refusal is None:
                break
        if refusal is not None:
            raise refusal


def _refusal(source: str) -> RaysegmentError | None:
    """Why the storage does not give an image; None where it does, be it an image or not."""
    from raysegment.raster import open_raster

    try:
        open_raster(source).close()
    except RaysegmentError as e:
        return e if is_passing(e) else None
    return None


def _matches(job: JobFile, path: str) -> Iterator[Found]:
    place = location(job.place(path))
    if isinstance(place, Url):
        yield from _remote(place)
        return
    pattern = str(place).removeprefix(f"{job.folder}/")  # the folder's own name is none
    fixed = str(job.folder / _fixed(pattern)) if has_magic(pattern) else str(place)
    if not os.path.exists(fixed):
        raise InputError(f"{fixed} does not exist: mend [input] paths, or make the folder")
    if not os.access(fixed, os.R_OK | os.X_OK if os.path.isdir(fixed) else os.R_OK):
        raise InputError(f"{fixed} may not be read: mend its rights, or [input] paths")
    if has_magic(pattern):
        found = glob.glob(pattern, root_dir=job.folder, recursive=True)
        names = [os.path.join(job.folder, name) for name in found]
    elif place.is_dir() and not _is_zarr(place):
        names = [
            str(p) for p in place.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
        ]
    else:
        names, fixed = [str(place)], str(place.parent)
    for name in names:
        if os.path.isdir(name) and not _is_zarr(Path(name)):
            continue
        try:
            yield _local(name, fixed)
        except OSError as e:
            # a link to nothing or to itself, or no right to look: that is for whoever opens it to say
            if os.path.islink(name) or not isinstance(e, FileNotFoundError):
                tag = os.readlink(name) if os.path.islink(name) else ""
                yield Found(name, fixed, size=0, tag=tag, modified=None)


def _local(name: str, fixed: str) -> Found:
    """Raises FileNotFoundError where it went away since it was listed, as files do that are being moved in."""
    path = Path(name)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stats = [(file.relative_to(path).as_posix(), file.stat()) for file in files]
    listing = "\n".join(f"{file} {s.st_size} {s.st_mtime_ns}" for file, s in stats)
    tag = str(stats[0][1].st_mtime_ns) if files == [path] else hashlib.sha256(listing.encode()).hexdigest()
    modified = max((s.st_mtime for _, s in stats), default=path.stat().st_mtime)
    return Found(name, fixed, sum(s.st_size for _, s in stats), tag, modified)


def _remote(place: Url) -> Iterator[Found]:
    storage, pattern = remote(place), str(place)
    if not has_magic(pattern):
        yield _object(storage.call("look at", place, _inside), place, pattern.rpartition("/")[0])
        return
    listed: dict[str, Any] = storage.call("list", place, lambda fs, path: fs.glob(path, detail=True))
    for path, info in listed.items():
        name = storage.fs.unstrip_protocol(path)
        if info.get("type") != "directory":
            yield _object({path: info}, Url(name), _fixed(pattern))
        elif name.rstrip("/").endswith(".zarr"):
            yield _object(storage.call("list", Url(name), _inside), Url(name), _fixed(pattern))


def _inside(fs: Any, path: str) -> dict[str, Any]:
    """An object, or all that lie below it, each with what the storage says of it."""
    info = fs.info(path)
    return fs.find(path, detail=True) if info.get("type") == "directory" else {path: info}


def _object(infos: dict[str, Any], url: Url, fixed: str) -> Found:
    if not infos:
        raise StorageError(f"cannot look at {url}: it does not exist")
    tags = [tag_of(info) for _, info in sorted(infos.items())]
    tag = tags[0] if len(tags) == 1 else hashlib.sha256("\n".join(tags).encode()).hexdigest()
    times = [time for info in infos.values() if (time := _time(info)) is not None]
    size = sum(int(info.get("size") or 0) for info in infos.values())
    return Found(str(url), fixed, size, tag, max(times, default=None))


def _time(info: dict[str, Any]) -> float | None:
    found = next((info[key] for key in _TIMES if info.get(key)), None)
    if isinstance(found, datetime):
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    return float(found) if isinstance(found, (int, float)) else None


@functools.cache
def _fixed(pattern: str) -> str:
    """The folders of a pattern before the first that is not plain."""
    head, _, _ = pattern.partition(next(c for c in pattern if c in "*?["))
    return posixpath.dirname(head)


def _is_zarr(folder: Path) -> bool:
    return folder.suffix.lower() == ".zarr" or any((folder / name).is_file() for name in _ZARR)
