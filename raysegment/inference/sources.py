"""Which images a call names, and where the mask of each goes."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from raysegment.errors import InputError, NotBuiltError, UsageError


def expand(source: str | Path | Sequence[str | Path]) -> list[str]:
    """Paths of all images named, in order; globs are expanded. Raises InputError for a glob without a match."""
    found: list[str] = []
    for name in [source] if isinstance(source, (str, Path)) else source:
        text = os.fspath(name)
        if glob.has_magic(text) and not os.path.exists(text):
            matches = sorted(glob.glob(text, recursive=True))
            if not matches:
                raise InputError(f"{text} matches no file: check the pattern, and quote it")
            found += matches
        else:
            found.append(text)
    if not found:
        raise UsageError("no image was named: give at least one")
    return found


def place(sources: Sequence[str], out: str | Path) -> list[tuple[str, Path]]:
    """Each image with the path of its mask: `out` itself, a ``*.zarr``, for one; ``STEM.zarr`` in it for several.

    Raises UsageError for a name that cannot be.
    """
    path = Path(out).absolute()
    if path.suffix.lower() in (".tif", ".tiff"):
        raise NotBuiltError(f"--out {path.name}: masks as TIFF are not built yet; name it *.zarr")
    if path.suffix == ".zarr":
        if len(sources) > 1:
            raise UsageError(f"--out {path.name} is one mask for {len(sources)} images: name a folder")
        _check_folder(path, path.parent)
        return [(sources[0], path)]
    if path.suffix and not path.is_dir():
        raise UsageError(f"--out {path.name}: the mask is an OME-Zarr; name it *.zarr, or a folder")
    if path.is_file():
        raise UsageError(f"--out {path} is a file: name a folder, or a *.zarr")
    _check_folder(path, path if path.is_dir() else path.parent)
    masks: dict[str, str] = {}
    for source in sources:
        name = f"{_stem(source)}.zarr"
        if name in masks:
            raise UsageError(
                f"{masks[name]} and {source} would both become {name}: give them in separate calls, or rename one"
            )
        masks[name] = source
    return [(source, path / name) for name, source in masks.items()]


def _stem(source: str) -> str:
    """slide.ome.tif → slide."""
    name = Path(source).name
    for suffix in (".ome.tiff", ".ome.tif", ".ome.zarr"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(name).stem


def _check_folder(out: Path, folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(f"--out {out}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--out {out}: no right to write into {folder}")
