"""Everything that one image's run writes: the mask, and beside it what else was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from raysegment.geometry import Size, Window
from raysegment.mask.field import FieldStore
from raysegment.mask.header import MaskHeader
from raysegment.mask.store import MaskStore, is_ours
from raysegment.storage import Location

SIDE_OUTPUTS = ("probabilities", "uncertainty")


def side_path(out: Location, name: str) -> Location:
    """Where a side output of the mask `out` lies: ``mask.zarr`` → ``mask.probabilities.zarr``."""
    return out.with_name(f"{out.stem}.{name}.zarr")


@dataclass(frozen=True)
class Outputs:
    """The stores of one image; the mask is written and finished last."""

    mask: MaskStore
    fields: dict[str, FieldStore]
    """By the names of SIDE_OUTPUTS."""

    @classmethod
    def at(
        cls,
        out: Location,
        shape: Size,
        dtype: np.dtype,
        classes: int,
        shard: int,
        sides: tuple[str, ...],
        recipe: dict[str, Any] | None = None,
    ) -> Outputs:
        """`recipe`: what decides the values; `shard`: the edge of a shard; `sides`: of SIDE_OUTPUTS."""
        fields = {
            name: FieldStore(side_path(out, name), shape, classes if name == "probabilities" else None, shard)
            for name in sides
        }
        begun = {"recipe": recipe, "beside": list(sides)}
        return cls(MaskStore(out, shape, dtype, shard, begun), fields)

    def may_go_on(self) -> bool:
        """Whether what lies there, if anything does, was begun as it would be here: shards of it may then be kept."""
        beside = [field.path for field in self.fields.values()]
        if not any(path.exists() for path in (self.mask.path, *beside)):
            return True
        return self.mask.is_begun_so() and all(map(is_ours, beside))

    def create(self) -> None:
        """Make every array, empty."""
        for field in self.fields.values():
            field.create()
        self.mask.create()

    def write(self, window: Window, found: dict[str, np.ndarray]) -> None:
        """Write one shard of each: "labels" and the side outputs."""
        for name, field in self.fields.items():
            field.write(window, found[name])
        self.mask.write(0, window, found["labels"])

    def finish(self, header: MaskHeader) -> None:
        """Write the root metadata, the mask's last."""
        about = {
            "probabilities": {"scale": 1 / 255, "classes": [c.name for c in header.classes]},
            "uncertainty": {
                "scale": 1 / 255,
                "meaning": "min(1, 4 · weighted variance of the tiles, over classes)",
            },
        }
        for name, field in self.fields.items():
            field.finish(header, about[name])
        self.mask.finish(header)
