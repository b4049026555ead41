"""Which images a call names, and where the mask of each goes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from raysegment.errors import InputError, NotBuiltError, UsageError
from raysegment.storage import Location, Url, is_url, location
from raysegment.storage.objects import before_work, check_writable, glob, has_magic

#: What a name ends in that is meant for a mask of another kind, or for one that was mistyped.
_NO_FOLDER = (
    ".zarr", ".png", ".jpg", ".jpeg", ".jp2", ".webp", ".gif", ".bmp", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vrt",
    ".img", ".npy", ".npz", ".nc", ".h5", ".hdf5", ".n5", ".zip", ".json", ".geojson", ".gpkg", ".fgb", ".shp",
)  # fmt: skip


def expand(source: str | Path | Sequence[str | Path]) -> list[str]:
    """Paths and URLs of all images named, globs expanded, in order. Raises InputError for a glob without a match."""
    found: list[str] = []
    for name in [source] if isinstance(source, (str, Path)) else source:
        text = os.fspath(name)
        if has_magic(text) and (is_url(text) or not os.path.exists(text)):
            with before_work():
                matches = glob(text)
            if not matches:
                raise InputError(f"{text} matches no file: check the pattern, and quote it")
            found += matches
        else:
            found.append(text)
    if not found:
        raise UsageError("no image was named: give at least one")
    return found


def place(sources: Sequence[str], out: str | Path) -> list[tuple[str, Location]]:
    """Each image with the path of its mask: `out` itself, a ``*.zarr``, for one; ``STEM.zarr`` in it for several.

    Raises UsageError for a name that cannot be.
    """
    if out is None:
        raise UsageError("out is None: name the mask, such as mask.zarr, or a folder")
    path = location(out)
    if path.suffix.lower() in (".tif", ".tiff"):
        raise NotBuiltError(f"--out {path.name}: masks as TIFF are not built yet; name it *.zarr")
    if path.suffix == ".zarr":
        if len(sources) > 1:
            raise UsageError(f"--out {path.name} is one mask for {len(sources)} images: name a folder")
        _check_folder(path, path.parent)
        return [(sources[0], path)]
    if path.suffix.lower() in _NO_FOLDER and (isinstance(path, Url) or not path.is_dir()):
        raise UsageError(f"--out {path.name}: the mask is an OME-Zarr; name it *.zarr, or a folder")
    if path.is_file():
        raise UsageError(f"--out {path} is a file: name a folder, or a *.zarr")
    _check_folder(path, path if isinstance(path, Url) or path.is_dir() else path.parent)
    masks: dict[str, str] = {}
    for source in sources:
        name = f"{stem_of(source)}.zarr"
        if name in masks:
            raise UsageError(
                f"{masks[name]} and {source} would both become {name}: give them in separate calls, or rename one"
            )
        masks[name] = source
    return [(source, path / name) for name, source in masks.items()]


def stem_of(source: str) -> str:
    """slide.ome.tif → slide."""
    name = location(source).name
    for suffix in (".ome.tiff", ".ome.tif", ".ome.zarr"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(name).stem


def _check_folder(out: Location, folder: Location) -> None:
    if isinstance(folder, Url):
        check_writable(folder, f"--out {out}")
        return
    if not folder.is_dir():
        raise UsageError(f"--out {out}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--out {out}: no right to write into {folder}")
