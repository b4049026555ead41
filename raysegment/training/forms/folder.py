"""A folder with ``images/`` and ``masks/``: a pair is two files of one stem, in any format that can be opened.

A mask may also be a file of polygons (see polygons.py).
"""

from __future__ import annotations

import unicodedata

from raysegment.errors import InputError
from raysegment.storage import Location
from raysegment.storage.objects import children
from raysegment.training.forms.masks import mask_source
from raysegment.training.forms.scene import File, Listing, Pair

#: Files that stand beside images without being images.
_SIDECARS = frozenset(
    {".xml", ".txt", ".json", ".csv", ".toml", ".md", ".ini", ".db", ".ovr", ".msk"}
    | {".prj", ".tfw", ".pgw", ".jgw", ".wld"}  # where a picture lies
    | {".dbf", ".shx", ".cpg", ".sbn", ".sbx", ".qpj"}  # the other parts of a Shapefile
)


def recognises(place: Location) -> bool:
    return (place / "images").is_dir() or (place / "masks").is_dir()


def listing(place: Location) -> Listing:
    folders = place / "images", place / "masks"
    problems = [
        f"{place} has no folder {f.name}/: a training set holds images/ and masks/"
        for f in folders
        if not f.is_dir()
    ]
    notes: list[str] = []
    images, masks = (_files(folder, problems, notes) for folder in folders)
    pairs = []
    for stem in sorted(images.keys() | masks.keys(), key=lambda s: (images.get(s) or masks[s]).name):
        image, mask = images.get(stem), masks.get(stem)
        here = image or mask
        assert here is not None
        if images and masks and (image is None or mask is None):
            there = "images" if image is None else "masks"
            problems.append(
                f"{here.name} has no partner of the same stem in {there}/: name both alike, or pair them in a manifest"
            )
        source = None if image is None else File.at(image)
        pairs.append(Pair(here.name, source, None if mask is None else mask_source(mask, source)))
    return Listing(tuple(pairs), tuple(problems), tuple(notes))


def _files(folder: Location, problems: list[str], notes: list[str]) -> dict[str, Location]:
    """Images or masks by stem; what is wrong with the folder goes to `problems`, what is passed over to `notes`."""
    if not folder.is_dir():
        return {}
    found: dict[str, Location] = {}
    try:
        entries = children(folder)
    except OSError as e:
        raise InputError(f"cannot read the folder {folder}: {e.strerror}") from e
    for name, is_folder in entries.items():
        path = folder / name
        fits = path.suffix == ".zarr" if is_folder else path.suffix.lower() not in _SIDECARS
        if name.startswith("."):
            continue
        if not fits:
            if is_folder:
                notes.append(f"{path} is a folder: what is in it is left out; a manifest can name it")
            continue
        # macOS may write ä as a and a mark, which looks the same
        stem = unicodedata.normalize("NFC", path.stem.removesuffix(".ome"))
        if stem in found:
            problems.append(f"{folder} holds {found[stem].name} and {path.name}: one file per stem")
        found.setdefault(stem, path)
    if not found:
        problems.append(f"{folder} holds no {folder.name}")
    return found
