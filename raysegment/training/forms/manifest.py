"""A manifest: CSV, Parquet or JSON lines with the columns ``image``, ``mask`` and, where it says so, ``split``.

Paths are relative to the manifest's folder, or its URL; URLs are kept as they are, and a path may be written as Windows
does. ``split`` is train, val (also valid, validation, dev) or test, whose rows are left out; other columns are the
user's own. A CSV has commas, or a spreadsheet's semicolons or tabs.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from raysegment.errors import InputError
from raysegment.storage import Location, Url, is_url, location
from raysegment.training.forms.masks import mask_source
from raysegment.training.forms.scene import File, Listing, Pair, Split

SUFFIXES = (".csv", ".parquet", ".jsonl")
_COLUMNS = ("image", "mask")
_SPLITS: Mapping[str, Split | None] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), None),
}


def recognises(place: Location) -> bool:
    return place.suffix.lower() in SUFFIXES and place.is_file()


def listing(place: Location) -> Listing:
    rows = list(_rows(place))
    if not rows:
        raise InputError(f"{place} holds no rows: give one row per image, with the columns image,mask")
    problems: list[str] = []
    named = Counter(str(row["image"]) for _, row in rows)
    problems += [
        f"{place.name}: {n} rows name the image {name}" for name, n in named.items() if name and n > 1
    ]
    divided = any(row.get("split") for _, row in rows)
    left_out = 0
    pairs = []
    for number, row in rows:
        here = f"{place.name}, row {number}"
        said = str(row.get("split") or "").strip().lower()
        if divided and said not in _SPLITS:
            problems.append(f"{here}: split {row.get('split')!r} is unknown: give train, val or test")
        elif said and _SPLITS[said] is None:
            left_out += 1
            continue
        at = _located(place, row, "image", here, problems)
        image = None if at is None else File.at(at)
        at = _located(place, row, "mask", here, problems)
        mask = None if at is None else mask_source(at, image)
        pairs.append(Pair(str(row["image"] or here), image, mask, _SPLITS.get(said)))
    if left_out and not pairs and not problems:
        raise InputError(
            f"{place}: all rows are of the split test, which is left out: set some to train and val"
        )
    notes = (f"{place.name}: the rows of the split test are left out ({left_out})",) if left_out else ()
    return Listing(tuple(sorted(pairs, key=lambda p: p.name)), tuple(problems), notes)


def _located(
    place: Location, row: Mapping[str, Any], column: str, here: str, problems: list[str]
) -> Location | None:
    """A cell as an absolute path or a URL; None, and a problem, where there is nothing.

    What is at a URL is looked for when it is opened, and not twice.
    """
    text = str(row[column] or "").strip()
    if not text:
        problems.append(f"{here}: no {column} is given")
        return None
    if is_url(text):
        return Url(text)
    if "://" in text:
        text = str(location(text))
    if isinstance(place, Url) and not Path(text).is_absolute():
        return _below(place.parent, text)
    folder = Path(place).parent.absolute()
    if "\\" in text and not (folder / text).exists():
        text = PureWindowsPath(text).as_posix()
    if not (folder / text).exists():
        problems.append(f"{here}: the {column} {text} does not exist in {folder}")
        return None
    return folder / text


def _below(folder: Url, text: str) -> Url:
    """A relative path; object storage takes ".." for a name."""
    for part in PurePosixPath(text).parts:
        folder = folder.parent if part == ".." else folder / part
    return folder


def _rows(place: Location) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(number, row), counted as an editor counts lines (Parquet: from 1). Raises InputError."""
    read = {".csv": _csv, ".parquet": _parquet, ".jsonl": _jsonl}[place.suffix.lower()]
    try:
        yield from read(place)
    except UnicodeDecodeError as e:
        raise InputError(f"{place} is not UTF-8 ({e.reason} at byte {e.start}): save it as UTF-8") from e
    except (OSError, csv.Error) as e:
        raise InputError(f"cannot read {place}: {e}") from e


def _csv(place: Location) -> Iterator[tuple[int, Mapping[str, Any]]]:
    text = place.read_bytes().decode("utf-8-sig")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_separator(text), skipinitialspace=True)
    reader.fieldnames = [_column(name) for name in reader.fieldnames or ()]
    _check_columns(place, reader.fieldnames)
    for row in reader:
        if any(row.values()):
            yield reader.line_num, row


def _separator(text: str) -> str:
    """What stands between the columns: a comma, or what a spreadsheet writes where the first line has none."""
    first = text.partition("\n")[0]
    return next((mark for mark in ",;\t" if mark in first), ",")


def _parquet(place: Location) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(place.read_bytes()))
        columns = {name: _column(name) for name in file.schema_arrow.names}
        _check_columns(place, columns.values())
        table = file.read(columns=[n for n, known in columns.items() if known in (*_COLUMNS, "split")])
    except pyarrow.ArrowException as e:
        raise InputError(f"{place} is not a readable Parquet file: {e}") from e
    for number, row in enumerate(table.to_pylist(), start=1):
        yield number, {columns[name]: value for name, value in row.items()}


def _jsonl(place: Location) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(io.StringIO(place.read_bytes().decode("utf-8-sig")), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as e:
            raise InputError(f"{place}, line {number} is not JSON: {e}") from e
        if not isinstance(row, dict):
            raise InputError(f'{place}, line {number} is no JSON object: write {{"image": …, "mask": …}}')
        row = {_column(name): value for name, value in row.items()}
        _check_columns(place, row, f", line {number}")
        yield number, row


def _column(name: str) -> str:
    """A column's name, as people write it: " Split" is split."""
    return name.strip().lower() if name.strip().lower() in (*_COLUMNS, "split") else name


def _check_columns(place: Location, found: Any, where: str = "") -> None:
    for column in _COLUMNS:
        if column not in found:
            held = ", ".join(map(str, found)) or "nothing"
            raise InputError(
                f"{place}{where} has no column {column!r} (found: {held}): name the columns image,mask[,split]"
            )
