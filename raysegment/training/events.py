"""What TensorBoard shows of a run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

from raysegment.report.pictures import side_by_side
from raysegment.storage import Location, Url
from raysegment.storage.objects import put


class Events:
    """Scalars and pictures by step, in a folder that TensorBoard reads.

    What lies at a URL cannot grow: there each :meth:`publish` makes a file of its own.
    """

    def __init__(self, place: Location, step: int) -> None:
        """Go on from `step`; what an earlier attempt wrote beyond it is dropped."""
        self._place = place
        self._own = tempfile.TemporaryDirectory(prefix="raysegment-") if isinstance(place, Url) else None
        self._folder = str(place) if self._own is None else self._own.name
        self._writer = SummaryWriter(self._folder, purge_step=step + 1 if step else None)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def pictures(self, title: str, rows: Sequence[Sequence[np.ndarray]], step: int) -> None:
        """Rows of panels as one picture."""
        self._writer.add_image(title, side_by_side(rows), step, dataformats="HWC")

    def publish(self, step: int) -> None:
        """Make all of it, up to `step`, visible. Raises StorageError."""
        if self._own is None:
            self._writer.flush()
            return
        self._writer.close()
        for file in Path(self._folder).iterdir():
            put(self._place / file.name, file.read_bytes())
            file.unlink()
        self._writer = SummaryWriter(self._folder, filename_suffix=f".after-{step:08}")  # read by name

    def close(self) -> None:
        self._writer.close()
        if self._own is not None:
            self._own.cleanup()
