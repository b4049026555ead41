"""Everything that one image's run writes: the mask, and beside it what else was asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysegment.geometry import Size, Window
from raysegment.mask.field import FieldStore
from raysegment.mask.store import MaskHeader, MaskStore
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
    ) -> Outputs:
        fields = {
            name: FieldStore(side_path(out, name), shape, classes if name == "probabilities" else None, shard)
            for name in sides
        }
        return cls(MaskStore(out, shape, dtype, shard), fields)

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
