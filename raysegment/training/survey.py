"""What the training pixels are like, found in one pass: the mask coding, class balance, mean and spread.

The pass streams block by block. Of a set beyond `AFFORDABLE_PX` pixels, some blocks stand for the rest;
a mask value that was not seen here and turns up later is an error that names it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from raysegment import console
from raysegment.classes import NO_CLASS, ClassMap, class_code
from raysegment.errors import InputError
from raysegment.geometry import Window
from raysegment.raster import Raster
from raysegment.raster.validity import unusable
from raysegment.raster.walk import windows
from raysegment.threads import READERS, in_order
from raysegment.training.codes import Code, FileCodes, count_codes, kind_of, labels_of, sorted_codes
from raysegment.training.coding import infer, told
from raysegment.training.dataset import Format, Scene
from raysegment.training.forms import Source
from raysegment.training.tagged import as_classes, tagged_notes
from raysegment.training.thin import Origin, warn_of_thin_masks, why_not_learned

#: About a minute of decoding.
AFFORDABLE_PX = 1 << 30
#: Values that are taken as float64 together: a window of a picture is 16 megapixels, and several threads have one each.
_EXACT_AT_ONCE = 1 << 18
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class Survey:
    """What the network is told about its data before it sees any."""

    classes: ClassMap
    frequencies: tuple[float, ...]
    """Share of each class among the pixels of the training masks that count."""
    mean: tuple[float, ...]
    """Per channel, over the valid training pixels, in stored units."""
    std: tuple[float, ...]


def survey(
    train: Sequence[Scene],
    val: Sequence[Scene],
    fmt: Format,
    classes_file: str | None = None,
    ignore: int | None = None,
) -> Survey:
    """Read training images once and all masks once. Raises InputError when the coding is in doubt, a mask
    holds what the classes file does not name, a class of that file never occurs, or an image holds inf."""
    scenes = (*train, *val)
    given = told([s.mask for s in scenes]) if classes_file is None else ClassMap.load(classes_file)
    if given is not None and ignore is not None:
        given = given.ignoring(ignore)
    moments = [_Moments() for _ in fmt.channels]
    found: list[FileCodes] = []
    every = math.ceil(sum(s.size.area for s in scenes) / AFFORDABLE_PX)

    def look(index: int) -> tuple[FileCodes, list[_Moments]]:
        codes = mask_codes(scenes[index].mask, given, every)
        if given is not None:
            refuse_unknown(given, codes)
        return codes, _measured(scenes[index], fmt, every) if index < len(train) else []

    with (
        console.progress("check", len(scenes), "images") as bar,
        closing(in_order(look, range(len(scenes)), READERS)) as looked,
    ):
        for codes, measured in looked:
            found.append(codes)
            for moment, more in zip(moments, measured, strict=False):
                moment.join(more)
            bar.advance()
    classes = given or _inferred(found, ignore)
    mean, std = zip(*(m.summary() for m in moments), strict=True)
    counts = [class_pixels(classes, file) for file in as_classes(classes, found)]
    for note in tagged_notes(classes, found):
        console.say(note)
    origin: Origin = "file" if classes_file is not None else "seen" if given is None else "told"
    shares = _frequencies(classes, counts[: len(train)], counts[len(train) :], origin)
    warn_of_thin_masks(classes, [s.name for s in scenes], counts, len(train), origin)
    return Survey(classes, shares, mean, std)


def _inferred(found: Sequence[FileCodes], ignore: int | None) -> ClassMap:
    if ignore is None:
        return infer(found)
    kept = [file.without(ignore) for file in found]
    if all(file.counts == other.counts for file, other in zip(found, kept, strict=True)):
        console.warn(f"--ignore-index {ignore}: no mask holds that value")
    return infer(kept).ignoring(ignore)


def mask_valid(
    mask: Raster, window: Window, pixels: np.ndarray, classes: ClassMap | None
) -> np.ndarray | None:
    """Where a mask's pixels count, by the file: its nodata value and alpha. A nodata value that the classes
    file names is a class (0 is often tagged as nodata and meant as background)."""
    valid = mask.valid(window, pixels)
    if valid is None or classes is None or mask.nodata is None or not math.isfinite(mask.nodata):
        return valid
    named = classes.codes.get(int(mask.nodata), NO_CLASS) != NO_CLASS
    return valid | (pixels == mask.nodata).all(axis=2) if named else valid


def mask_codes(source: Source, given: ClassMap | None, every: int = 1) -> FileCodes:
    """The pixels of every code in a mask, of one block in `every`. `given`: says which nodata values are classes."""
    mask = source.open()
    try:
        kind, labels = kind_of(mask), labels_of(mask)
        counts, hidden, missing = Counter[Code](), 0, 0
        nodata = int(mask.nodata) if mask.nodata is not None and float(mask.nodata).is_integer() else None
        for window in _some(mask, every):
            pixels = mask.read(window)
            valid = mask_valid(mask, window, pixels, given)
            try:
                counts += count_codes(kind, pixels, valid, labels)
            except InputError as e:
                raise InputError(f"{source}: {e}") from e
            if valid is not None:
                missing += int(np.count_nonzero(~valid))
                if nodata is not None:
                    hidden += int(np.count_nonzero(~valid & (pixels == nodata).all(axis=2)))
        has_alpha = mask.alpha is not None
        return FileCodes(str(source), kind, counts, mask.palette, has_alpha, nodata, hidden, missing - hidden)
    finally:
        mask.close()


def class_pixels(classes: ClassMap, file: FileCodes) -> np.ndarray:
    """Pixels of each class in a mask: int64 (classes,)."""
    table, counts = classes.table(file.palette), np.zeros(len(classes.classes), np.int64)
    for code, pixels in file.counts.items():
        index = table.get(class_code(code), NO_CLASS)
        if index != NO_CLASS:
            counts[index] += pixels
    return counts


def refuse_unknown(classes: ClassMap, file: FileCodes) -> None:
    """Raise InputError, with the mask's name, for codes of it that belong to no class."""
    table = classes.table(file.palette)
    unknown = [code for code in sorted_codes(file.counts) if class_code(code) not in table]
    if not unknown:
        return
    if isinstance(unknown[-1], str):
        names = ", ".join(repr(code) for code in unknown if isinstance(code, str))
        raise InputError(
            f"{file.path}: the label {names} belongs to no class of {classes.source}: add label = … to a class of it"
        )
    try:
        classes.refuse([class_code(code) for code in unknown])
    except InputError as e:
        raise InputError(f"{file.path}: {e}") from e


def _measured(scene: Scene, fmt: Format, every: int) -> list[_Moments]:
    """Of each channel."""
    image = scene.image.open()
    moments = [_Moments() for _ in fmt.channels]
    for window in _some(image, every):
        pixels = image.read(window)
        valid = image.valid(window, pixels)
        for channel, moment in zip(fmt.channels, moments, strict=True):
            values = pixels[:, :, channel] if valid is None else pixels[:, :, channel][valid]
            if wrong := unusable(values):
                raise InputError(
                    f"{scene.image} holds {wrong} ({window}): mend those pixels, or make them nodata"
                )
            moment.add(values.ravel())
    image.close()
    return moments


def _frequencies(
    classes: ClassMap, train: Sequence[np.ndarray], val: Sequence[np.ndarray], origin: Origin
) -> tuple[float, ...]:
    counts, held = (
        np.sum([np.zeros(len(classes.classes), np.int64), *part], axis=0) for part in (train, val)
    )
    if why := why_not_learned(classes, counts, held, origin):
        raise InputError(why)
    if len(val) and not held.any():
        raise InputError("every pixel of the validation masks is ignored: there is nothing to score")
    return tuple(float(c) for c in counts / counts.sum())


def _some(raster: Raster, every: int) -> Iterator[Window]:
    """One block in `every`, the first among them, by a sequence that no row of blocks is in step with."""
    whole = Window(y=0, x=0, height=raster.shape[0], width=raster.shape[1])
    for i, window in enumerate(windows(whole, raster.chunk)):
        if i * _GOLDEN % 1 < 1 / every:
            yield window


class _Moments:
    """Mean and variance of values that come in parts (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        """Those of a window's (n,); NaN is none."""
        for start in range(0, values.size, _EXACT_AT_ONCE):
            exact = values[start : start + _EXACT_AT_ONCE].astype(np.float64)
            exact = exact[~np.isnan(exact)]
            if not exact.size:
                continue
            part = _Moments()
            part.count, part.mean = exact.size, float(exact.mean())
            part.squares = float(np.square(exact - part.mean).sum())
            self.join(part)

    def join(self, other: _Moments) -> None:
        """Those of both together."""
        if not other.count:
            return
        shift, total = other.mean - self.mean, self.count + other.count
        self.squares += other.squares + shift * shift * self.count * other.count / total
        self.mean += shift * other.count / total
        self.count = total

    def summary(self) -> tuple[float, float]:
        """(mean, standard deviation); a channel without spread or data is left as it is."""
        std = math.sqrt(self.squares / self.count) if self.count else 0.0
        return self.mean, std if std > 0 else 1.0
