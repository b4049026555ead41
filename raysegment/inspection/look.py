"""`inspect`: find out what a path holds, and say it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raysegment.errors import InputError, UsageError
from raysegment.inspection.text import as_text
from raysegment.storage import Location, Url, location
from raysegment.storage.objects import before_work, fetched

Kind = Literal["image", "dataset", "model", "mask"]

_MODELS = (".safetensors", ".pt2", ".onnx", ".pt", ".pth", ".ckpt")
_ZARR_METADATA = ("zarr.json", ".zgroup", ".zarray")


@dataclass(frozen=True, slots=True)
class InspectResult:
    """What a path holds."""

    kind: Kind
    path: str
    facts: Mapping[str, Any]
    """JSON-ready; the keys depend on `kind`. A training set's `problems` lists all that `train` would refuse."""

    @property
    def exit_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "path": self.path, **self.facts}

    def summary(self) -> str:
        return f"{self.path}: {self.kind}\n{as_text(self.facts)}"


def inspect(
    path: str | os.PathLike[str],
    *,
    classes: str | os.PathLike[str] | None = None,
    select: Mapping[str, int] | None = None,
) -> InspectResult:
    """Look at an image, a training set in any of its forms, a model or a mask.

    Of an image a few windows are read, of a mask every pixel, of a training set every mask. `classes`: a classes file
    by which the masks of a training set are read; `select`: the plane of an image with further axes, {"z": 0}. Raises
    InputError when there is nothing that can be understood, UsageError for `classes` beside anything but a training
    set, and for a `select` that does not fit.
    """
    place = location(path)
    with before_work():
        kind, facts = _looked_at(place, None if classes is None else os.fspath(classes), select)
    if classes is not None and kind != "dataset":
        raise UsageError(f"--classes {classes} is for training sets, and {path} is a {kind}: leave it out")
    if select and kind in ("dataset", "model"):
        raise UsageError(f"--select is for images, and {path} is a {kind}: leave it out")
    return InspectResult(kind, str(path), facts)


def _looked_at(
    path: Location, classes: str | None, select: Mapping[str, int] | None
) -> tuple[Kind, Mapping[str, Any]]:
    if path.suffix.lower() in _MODELS and not path.is_dir():
        from raysegment.inspection.model import model_facts

        return "model", model_facts(fetched(path) if isinstance(path, Url) else path)
    from raysegment.training.forms.find import EXPECTED, form_of

    # a label image makes a training set with its parent, but was asked for by itself
    if path.parent.name != "labels" and form_of(path) is not None:
        from raysegment.inspection.dataset import dataset_facts

        return "dataset", dataset_facts(path, classes)
    if (
        isinstance(path, Path)
        and path.is_dir()
        and not any((path / name).is_file() for name in _ZARR_METADATA)
    ):
        raise InputError(f"{path} is neither a Zarr store nor a training set: give {EXPECTED}")

    from raysegment.inspection.image import image_facts, mask_facts
    from raysegment.mask.coding import read_coding, read_field
    from raysegment.raster import open_raster

    raster = open_raster(path, select=select)
    try:
        coding = read_coding(path)
        if coding is None:
            return "image", image_facts(raster, read_field(path))
        return "mask", mask_facts(raster, coding)
    finally:
        raster.close()
