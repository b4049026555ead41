"""What every form of a training set comes to: pairs of an image and its mask, as things that can be opened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from raysegment.geometry import Size
from raysegment.raster import Raster, open_raster
from raysegment.storage import Location, is_url

Split = Literal["train", "val"]


@runtime_checkable
class Source(Protocol):
    """Where the pixels of an image or of a mask are: a frozen value that travels to workers and is opened there.

    ``str(source)`` names it in messages. Equal sources open to equal pixels.
    """

    def open(self) -> Raster:
        """Raises InputError and its kin when there is nothing that can be read."""
        ...


@dataclass(frozen=True, slots=True)
class File:
    """A file, a Zarr store or a URL, and the plane of it where it has several."""

    path: str
    """Absolute, or a URL."""
    plane: tuple[tuple[str, int], ...] = ()
    """Axis and index, as `select` of :func:`raysegment.open_raster`."""

    @classmethod
    def at(cls, path: str | os.PathLike[str], plane: Mapping[str, int] | None = None) -> File:
        text = os.fspath(path)
        return cls(text if is_url(text) else os.path.abspath(text), tuple((plane or {}).items()))

    def open(self) -> Raster:
        return open_raster(self.path, select=dict(self.plane))

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        where = ",".join(f"{axis}={index}" for axis, index in self.plane)
        return f"{self.path} at {where}" if where else self.path


@dataclass(frozen=True, slots=True)
class Scene:
    """One image with its mask, of one size; both are opened where they are read."""

    name: str
    image: Source
    mask: Source
    size: Size
    displacement: float = 0.0
    """Of the mask on the ground, in pixels; see :func:`~raysegment.training.forms.placed.displacement`."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One entry of a training set, not opened yet; what could not be found is None and stands in `Listing.problems`."""

    name: str
    image: Source | None
    mask: Source | None
    split: Split | None = None
    """What the set itself says the pair is for."""


@dataclass(frozen=True, slots=True)
class Listing:
    """All that a training set holds, by its names alone, and all that is wrong with them."""

    pairs: tuple[Pair, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    """What is left out on purpose, for people."""


class Form(Protocol):
    """One way in which a training set comes. A module of this package that has these is one: see find.py."""

    def recognises(self, place: Location) -> bool:
        """Whether `place` is of this form; looks at names and first bytes, never at pixels."""
        ...

    def listing(self, place: Location) -> Listing:
        """The pairs in the order of their names. Raises InputError when `place` itself cannot be read."""
        ...
