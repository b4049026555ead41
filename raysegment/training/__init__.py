"""Data-parallel training of a U-Net on Ray Train.

Start with :func:`train` (fit.py), then loop.py: what every worker does from the first step to the last. Its parts, in
the order of the data: forms/ (what a training set comes in), division.py (what is held back), dataset.py (what its
scenes have in common), resolution.py (at which pixel size), codes.py, doubt.py, coding.py, survey.py (what the masks
mean, what the pixels are like), fingerprint.py and settings.py (what follows from that), windows.py and batches.py
(samples by index), balance.py and class_index.py (rarer classes more often), augment.py, losses/, parallel.py (many
workers, one batch), learner.py (one step), validate.py (stitched.py, metric.py, thresholds.py). prepare.py and run.py:
what is resolved once, and where it is kept. report.py, exhibits.py and events.py: what people look at.
team.py and launch.py: who trains, and the loop on Ray Train's workers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysegment.training.fit import train
    from raysegment.training.result import TrainResult

__all__ = ["TrainResult", "train"]

_HOME = {"train": "fit", "TrainResult": "result"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'raysegment.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"raysegment.training.{_HOME[name]}"), name)
