"""What is worth knowing of a training set: every file, the coding of its masks, class balance, every problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysegment import console
from raysegment.classes import IGNORE, ClassMap, class_code
from raysegment.errors import RaysegmentError
from raysegment.geometry import Size
from raysegment.raster import open_raster
from raysegment.training.coding import FileCodes, count_codes, infer, kind_of
from raysegment.training.dataset import blocks, files_by_stem


@dataclass(frozen=True)
class _Pair:
    """What is known of one image and its mask; what is None could not be found out."""

    name: str
    size: Size | None = None
    dtype: str | None = None
    channels: int | None = None
    mask: FileCodes | None = None
    problems: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "size": list(self.size) if self.size is not None else None,
            "dtype": self.dtype,
            "channels": self.channels,
            "mask": str(self.mask).partition(": ")[2] if self.mask is not None else None,
        }


def dataset_facts(root: Path) -> dict[str, Any]:
    """Of a folder with images/ and masks/. Every mask is read once; nothing is refused, all problems are listed."""
    images, masks, problems = _listed(root)
    stems = sorted(images.keys() | masks.keys())
    pairs = []
    with console.progress("check", len(stems), "images") as progress:
        for stem in stems:
            pairs.append(_looked_at(stem, images.get(stem), masks.get(stem)))
            progress.advance()
    problems += [p for pair in pairs for p in pair.problems]
    problems += _odd_ones_out(pairs)
    coded = [pair.mask for pair in pairs if pair.mask is not None]
    classes: list[dict[str, Any]] = []
    if coded:
        try:
            classes = _balance(infer(coded), coded)
        except RaysegmentError as e:
            problems.append(str(e))
    return {
        "images": len(images),
        "masks": len(masks),
        "pairs": len(images.keys() & masks.keys()),
        "megapixels": sum(p.size.area for p in pairs if p.size is not None) / 1e6,
        "coding": _several(Counter(str(f).partition(": ")[2] for f in coded)),
        "classes": classes,
        "files": [p.row() for p in pairs],
        "problems": problems,
    }


def _listed(root: Path) -> tuple[dict[str, Path], dict[str, Path], list[str]]:
    """Files by stem in images/ and masks/, and what is wrong with the folders."""
    found: list[dict[str, Path]] = []
    problems = []
    for name in ("images", "masks"):
        folder = root / name
        try:
            found.append(files_by_stem(folder) if folder.is_dir() else {})
        except RaysegmentError as e:
            found.append({})
            problems.append(str(e))
        if not folder.is_dir():
            problems.append(f"{root} has no folder {name}/")
        elif not found[-1]:
            problems.append(f"{folder} holds no {name}")
    return found[0], found[1], problems


def _looked_at(stem: str, image: Path | None, mask: Path | None) -> _Pair:
    problems: list[str] = []
    facts: dict[str, Any] = {}
    if image is None or mask is None:
        there = "images" if image is None else "masks"
        problems.append(f"{(image or mask or Path(stem)).name} has no partner of the same stem in {there}/")
    if image is not None:
        try:
            raster = open_raster(image)
            facts["size"], facts["dtype"] = Size(*raster.shape[:2]), str(raster.dtype)
            facts["channels"] = raster.shape[2] - (raster.alpha is not None)
            raster.close()
        except RaysegmentError as e:
            problems.append(str(e))
    if mask is not None:
        try:
            size, facts["mask"] = _coded(mask)
            if facts.get("size", size) != size:
                height, width = facts["size"]
                problems.append(
                    f"{mask.name} is {size.height} × {size.width} px, its image {height} × {width} px"
                )
        except RaysegmentError as e:
            problems.append(str(e))
    return _Pair((image or mask or Path(stem)).name, **facts, problems=tuple(problems))


def _coded(path: Path) -> tuple[Size, FileCodes]:
    """Size of a mask, and the pixels of every code in it."""
    mask = open_raster(path)
    try:
        kind = kind_of(mask)
        counts: Counter[Any] = Counter()
        for window in blocks(mask):
            pixels = mask.read(window)
            counts += count_codes(kind, pixels, mask.valid(window, pixels))
        return Size(*mask.shape[:2]), FileCodes(str(path), kind, counts, mask.palette)
    finally:
        mask.close()


def _odd_ones_out(pairs: Sequence[_Pair]) -> list[str]:
    """Images that are not of the commonest kind."""
    kinds = Counter((p.channels, p.dtype) for p in pairs if p.dtype is not None)
    if len(kinds) < 2:
        return []
    (channels, dtype), _ = kinds.most_common(1)[0]
    return [
        f"{p.name} has {p.channels} channels of {p.dtype}, most images {channels} of {dtype}"
        for p in pairs
        if p.dtype is not None and (p.channels, p.dtype) != (channels, dtype)
    ]


def _balance(found: ClassMap, files: Sequence[FileCodes]) -> list[dict[str, Any]]:
    """Pixels of each class and the number of files that have it."""
    pixels, holders = Counter[int](), Counter[int]()
    for file in files:
        table = found.table(file.palette)
        indices = {code: table.get(class_code(code), IGNORE) for code in file.counts}
        for code, index in indices.items():
            pixels[index] += file.counts[code]
        holders.update(set(indices.values()))
    total = sum(pixels[i] for i in range(len(found.classes)))
    return [
        {
            "index": i,
            "name": c.name,
            "value": c.value,
            "pixels": pixels[i],
            "share": pixels[i] / total if total else 0.0,
            "files": holders[i],
        }
        for i, c in enumerate(found.classes)
    ]


def _several(counts: Counter[str]) -> str | None:
    """ "values 0, 255 (30 files)", the commonest first."""
    said = [f"{coding} ({n} file{'s' if n > 1 else ''})" for coding, n in counts.most_common(3)]
    more = f"; {len(counts) - 3} other codings" if len(counts) > 3 else ""
    return "; ".join(said) + more if said else None
