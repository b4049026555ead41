"""Data-parallel training of a U-Net on Ray Train.

Start with :func:`train` (fit.py), then loop.py: what every worker does from the first step to the last. Its parts, in
the order of the data: dataset.py (pairs, checks), coding.py and survey.py (what the masks mean, what the pixels are
like), windows.py and batches.py (samples by index), augment.py, losses.py, parallel.py (many workers, one batch),
learner.py (one step), validate.py, thresholds.py. prepare.py and run.py: what is resolved once, and where it is kept.
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
