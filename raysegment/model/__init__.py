"""A network and what is needed to use it right.

Start with `spec.py` (what travels with a network), then `model.py` (use it), `file.py` (read and write it).
Networks of other formats: `sidecar.py`, `brought.py` (made to fit), `pt2.py`, `onnx.py`; the other way: `export.py`.
A name is imported when it is first used: reading a spec loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysegment.model.file import load_model, load_spec, save_model
    from raysegment.model.model import Model
    from raysegment.model.spec import Class, ModelSpec

__all__ = ["Class", "Model", "ModelSpec", "load_model", "load_spec", "save_model"]

_HOME = {
    "Class": "spec",
    "Model": "model",
    "ModelSpec": "spec",
    "load_model": "file",
    "load_spec": "file",
    "save_model": "file",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'raysegment.model' has no attribute {name!r}")
    return getattr(importlib.import_module(f"raysegment.model.{_HOME[name]}"), name)
