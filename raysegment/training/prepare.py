"""From what the user said to what a worker is told: everything is checked and resolved here, once.

The outcome is written to run.json before the first step, and a resume reads it from there: what was found
about the data and the machine cannot change under a run.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysegment import console
from raysegment.classes import ClassMap
from raysegment.console import counted
from raysegment.errors import InputError, UsageError
from raysegment.hardware import available_cores
from raysegment.model.architectures import margin, multiple
from raysegment.model.spec import ModelSpec
from raysegment.raster import PixelSize
from raysegment.runtime.device import traits
from raysegment.training.balance import ClassIndex, rarer
from raysegment.training.blank import refuse_blank
from raysegment.training.class_index import class_index
from raysegment.training.dataset import Format, Scene, common_format, identities, identity
from raysegment.training.division import divide
from raysegment.training.encoders import check_encoder, say_licence
from raysegment.training.fingerprint import Fingerprint, advice, fingerprint
from raysegment.training.forms import listing_of
from raysegment.training.forms.leaks import named, overlaps, same_pictures
from raysegment.training.forms.placed import displaced_note
from raysegment.training.loop import Job
from raysegment.training.losses import Loss
from raysegment.training.metric import Metric
from raysegment.training.normalisation import normalisation
from raysegment.training.resolution import at_pixel_size
from raysegment.training.run import RunFolder
from raysegment.training.settings import Resolved, Settings, check_network, network, resolve
from raysegment.training.survey import Survey, survey
from raysegment.training.windows import WindowReader

#: "balanced" weighs no class more than this many times the average.
_HEAVIEST = 20.0


@dataclass(frozen=True)
class Request:
    """What the user asked for, checked as far as the file names go."""

    settings: Settings
    train: tuple[Scene, ...]
    val: tuple[Scene, ...]
    classes: str | None
    fingerprint: str
    identity: str
    """Of the training scenes' contents."""
    pixel_size: PixelSize | None = None
    """The one that was asked for, as the model says it."""
    contents: tuple[str, ...] = ()
    """Digests of the images, training first."""


def request(
    settings: Settings, data: str | os.PathLike[str], val: str | float, classes: str | None
) -> Request:
    """Find and fingerprint the data. Raises UsageError and InputError for what cannot be right, StorageError."""
    check_network(settings)
    check_encoder(settings)
    if settings.loss != "auto":
        Loss.parse(settings.loss)
    Metric.parse(settings.metric)
    listing, fraction = listing_of(data), _fraction(val)
    train, held = divide(listing, data, str(val) if fraction is None else fraction)
    for note in listing.notes:
        console.say(note)
    contents = identities(train), identities(held)
    given = None if classes is None else ClassMap.load(classes)
    content = identity(train, contents[0])
    told = {
        "settings": settings.model_dump(),
        "classes": None if given is None else [given.names, sorted(given.codes.items())],
        "train": content,
        "val": identity(held, contents[1]),
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    images = tuple(image for part in contents for image, _ in part)
    pixel_size = None
    if settings.pixel_size is not None:
        both, pixel_size = at_pixel_size([*train, *held], settings.pixel_size)
        train, held = both[: len(train)], both[len(train) :]
    return Request(settings, train, held, classes, digest, content, pixel_size, images)


def prepare(asked: Request, gpus: int = 0) -> dict[str, Any]:
    """Look at the pixels, resolve what is open, and return the run's record: plain JSON.

    `gpus`: how many the workers have, at least; 0: they train on CPUs.
    """
    fmt = common_format([*asked.train, *asked.val])
    leaks = _leaks(asked)
    with console.overheard() as warned:
        _warn_of_displaced([*asked.train, *asked.val])
        seen = survey(asked.train, asked.val, fmt, asked.classes, asked.settings.ignore_index)
        refuse_blank(asked.train, asked.val, fmt.channels, seen.classes)
    names, count = seen.classes.names, len(seen.classes.classes)
    membrane = Metric.of(asked.settings.metric, names, seen.frequencies).membrane(names)
    device = traits("cuda" if gpus else "cpu")
    found = fingerprint(asked.train, fmt, seen.classes, memory=device.memory * max(1, gpus))
    settings = resolve(
        asked.settings, found, fast_bf16=device.fast_bf16, membrane=membrane if count == 2 else None
    )
    architecture = network(settings, len(fmt.channels), 1 if count == 2 else count)
    spec = ModelSpec(
        classes=seen.classes.classes,
        channels=len(fmt.channels),
        **normalisation(settings.normalisation, seen, fmt),
        activation=Loss.parse(settings.loss).activation(count),
        tile=settings.tile,
        multiple=multiple(architecture),
        margin=margin(architecture),
        pixel_size=asked.pixel_size or fmt.pixel_size,
        licence=say_licence(settings),
        architecture=architecture,
        provenance={"data": asked.fingerprint, **_versions()},
    )
    return {
        "fingerprint": asked.fingerprint,
        "settings": settings.model_dump(),
        "spec": spec.model_dump(mode="json"),
        "codes": {str(code): index for code, index in seen.classes.codes.items()},
        "channels": list(fmt.channels),
        "prior": list(seen.frequencies[1:] if count == 2 else seen.frequencies),
        "class_weights": _class_weights(settings.class_weights, seen),
        "data": {**_data(asked, fmt, seen), "fingerprint": found.to_json(), "leaks": leaks},
        "warnings": [f"{text[:1].upper()}{text[1:]}." for text in warned],
        "auto": _auto_text(asked.settings, settings, found),
        "versions": _versions(),
        "hardware": _hardware([device.name] * gpus),
        "git": _git(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def job_of(record: dict[str, Any], asked: Request, run: RunFolder) -> Job:
    """What the workers are told, from a run's record."""
    spec = ModelSpec.model_validate(record["spec"])
    codes = {int(code): index for code, index in record["codes"].items()}
    weights = record["class_weights"]
    classes = ClassMap(tuple(spec.classes), codes, source="the training masks")
    return Job(
        settings=Resolved.model_validate(record["settings"]),
        spec=spec,
        classes=classes,
        channels=tuple(record["channels"]),
        train=asked.train,
        val=asked.val,
        prior=tuple(record["prior"]),
        weights=None if weights is None else tuple(weights),
        run=run,
        index=_index(record, asked, run, classes),
    )


def _index(record: dict[str, Any], asked: Request, run: RunFolder, classes: ClassMap) -> ClassIndex | None:
    if asked.settings.sampling == "uniform":
        return None
    shares = record["data"]["class_shares"]
    reader = WindowReader(asked.train, tuple(record["channels"]), classes)
    index = class_index(run.class_index, reader, rarer(tuple(shares.values())), asked.identity)
    if not len(index.groups):
        console.warn("--sampling balanced: no class is rarer than others, so windows are drawn uniformly")
    return index


def _auto_text(asked: Settings, settings: Resolved, found: Fingerprint) -> str:
    """What was left open and what it came to, for people."""
    left_open = (
        f"{key.replace('_', '-')} {value}"
        for key, value in settings.model_dump().items()
        if getattr(asked, key) in (None, "auto") and value is not None
    )
    hint = advice(found, settings.tile)
    return f"auto: {', '.join([*left_open, f'from {found}'])}" + (f"; {hint}" if hint else "")


def _fraction(val: str | float) -> float | None:
    """A share of the images, or None when `val` is a path. Raises UsageError for a number that is no share."""
    try:
        number = float(val)
    except ValueError:
        return None
    if not 0 < number < 1:
        raise UsageError(f"--val {val}: give a share between 0 and 1, or a training set to validate on")
    return number


def _leaks(asked: Request) -> list[dict[str, Any]]:
    """Pairs of training and validation images that show the same ground. Raises InputError for the same picture."""
    if same := same_pictures(asked.train, asked.val, asked.contents):
        raise InputError(
            f"the same picture is in training and in validation: {named(same)}; "
            "take it out of one of them, or name other images with --val"
        )
    found = overlaps(asked.train, asked.val)
    if found:
        console.warn(
            f"training and validation images overlap on the ground ({named(found)}), by up to "
            f"{max(leak.share for leak in found):.1%}: the scores will flatter; name other images with --val"
        )
    return [{"train": leak.train, "val": leak.val, "share": leak.share} for leak in found]


def _warn_of_displaced(scenes: Sequence[Scene]) -> None:
    """Of masks that lie elsewhere than their images."""
    note = displaced_note([s.name for s in scenes], [s.displacement for s in scenes])
    if note is not None:
        console.warn(note)


def _class_weights(text: str, seen: Survey) -> list[float] | None:
    names = seen.classes.names
    if text == "none":
        return None
    if text == "balanced":
        return [min(1 / (len(names) * f), _HEAVIEST) if f else _HEAVIEST for f in seen.frequencies]
    weights = [float(part) for part in text.split(",")]
    if len(weights) != len(names):
        raise UsageError(
            f"--class-weights {text} has {counted(len(weights), 'number')}, the data "
            f"{counted(len(names), 'class')} ({', '.join(names)})"
        )
    return weights


def _data(asked: Request, fmt: Format, seen: Survey) -> dict[str, Any]:
    return {
        "train": [s.name for s in asked.train],
        "val": [s.name for s in asked.val],
        "pixels": sum(s.size.area for s in asked.train),
        "val_pixels": sum(s.size.area for s in asked.val),
        "dtype": fmt.dtype,
        "mean": list(seen.mean),
        "std": list(seen.std),
        "class_shares": dict(zip(seen.classes.names, seen.frequencies, strict=True)),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    from raysegment import __version__

    found = {name: version(name) for name in ("torch", "ray", "numpy")}
    return {"raysegment": __version__, "python": platform.python_version(), **found}


def _hardware(gpus: list[str]) -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cores": available_cores(),
        "gpus": gpus,
    }


def _git() -> str | None:
    """The commit of the code that runs, if it runs from a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
