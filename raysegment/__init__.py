"""Train U-Nets on a Ray cluster and segment images too big for any one machine's memory.

    import raysegment as rs

    rs.train("DATA", out="run")
    rs.infer("scene.tif", model="run/model.safetensors", out="mask.zarr")
    rs.evaluate("mask.zarr", "truth.tif").mean_iou

The commands of the command line are functions here, with the same names and the same options; those of `jobs` are
`rs.jobs.list()`, `status`, `logs` and `stop`. A name is imported when it is first used: `import raysegment` alone loads
neither torch nor ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from raysegment.errors import (
    AnswerError,
    InputError,
    JobError,
    LockedError,
    NotBuiltError,
    OutputExistsError,
    RaysegmentError,
    ReadError,
    UsageError,
    WorkError,
)
from raysegment.geometry import Size, Window

if TYPE_CHECKING:
    from raysegment.evaluation import EvaluateResult, evaluate
    from raysegment.inference.estimate import plan
    from raysegment.inference.results import InferResult, InferResults, PlanResult
    from raysegment.inference.run import infer
    from raysegment.inspection import InspectResult, inspect
    from raysegment.mask.preview import PreviewResult, preview
    from raysegment.model import Class, Model, ModelSpec, load_model
    from raysegment.model.export import ExportResult, export
    from raysegment.nightly.result import BatchResult
    from raysegment.nightly.run import batch
    from raysegment.raster import Raster, open_raster
    from raysegment.runtime import jobs
    from raysegment.runtime.dashboard import JobState
    from raysegment.runtime.doctor import DoctorResult, doctor
    from raysegment.scene.synth import SynthResult, synth
    from raysegment.scheduling.write import ScheduleResult, schedule
    from raysegment.training import TrainResult, train

__all__ = [
    "AnswerError",
    "BatchResult",
    "Class",
    "DoctorResult",
    "EvaluateResult",
    "ExportResult",
    "InferResult",
    "InferResults",
    "InputError",
    "InspectResult",
    "JobError",
    "JobState",
    "LockedError",
    "Model",
    "ModelSpec",
    "NotBuiltError",
    "OutputExistsError",
    "PlanResult",
    "PreviewResult",
    "Raster",
    "RaysegmentError",
    "ReadError",
    "ScheduleResult",
    "Size",
    "SynthResult",
    "TrainResult",
    "UsageError",
    "Window",
    "WorkError",
    "__version__",
    "batch",
    "doctor",
    "evaluate",
    "export",
    "infer",
    "inspect",
    "jobs",
    "load_model",
    "open_raster",
    "plan",
    "preview",
    "schedule",
    "synth",
    "train",
]

#: Where each name lives. No key may be the name of a submodule here: importing that would take the name's place.
_HOME = {
    "evaluate": "raysegment.evaluation",
    "EvaluateResult": "raysegment.evaluation",
    "infer": "raysegment.inference.run",
    "plan": "raysegment.inference.estimate",
    "InferResult": "raysegment.inference.results",
    "InferResults": "raysegment.inference.results",
    "PlanResult": "raysegment.inference.results",
    "inspect": "raysegment.inspection",
    "InspectResult": "raysegment.inspection",
    "preview": "raysegment.mask.preview",
    "PreviewResult": "raysegment.mask.preview",
    "Class": "raysegment.model",
    "Model": "raysegment.model",
    "ModelSpec": "raysegment.model",
    "load_model": "raysegment.model",
    "export": "raysegment.model.export",
    "ExportResult": "raysegment.model.export",
    "batch": "raysegment.nightly.run",
    "BatchResult": "raysegment.nightly.result",
    "Raster": "raysegment.raster",
    "open_raster": "raysegment.raster",
    "jobs": "raysegment.runtime",
    "JobState": "raysegment.runtime.dashboard",
    "doctor": "raysegment.runtime.doctor",
    "DoctorResult": "raysegment.runtime.doctor",
    "synth": "raysegment.scene.synth",
    "SynthResult": "raysegment.scene.synth",
    "schedule": "raysegment.scheduling.write",
    "ScheduleResult": "raysegment.scheduling.write",
    "train": "raysegment.training",
    "TrainResult": "raysegment.training",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOME:
        home = importlib.import_module(_HOME[name])
        # `jobs` is a module of its home, which that does not import by itself
        value = getattr(home, name, None) or importlib.import_module(f"{_HOME[name]}.{name}")
    else:
        raise AttributeError(f"module 'raysegment' has no attribute {name!r}")
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The installed version. A checkout, or a copy that Ray shipped to a worker, has no metadata to ask."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("raysegment")
    except PackageNotFoundError:
        return "0.0.0+source"
