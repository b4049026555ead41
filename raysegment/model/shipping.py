"""A network of the user's on its way to the workers: the same digest in every process, and code that travels along.

Only for what this run itself has in memory: nothing here reads a user's file. Ray's own cloudpickle does the work,
imported when it is needed: a process that opens a model file needs no Ray.
"""

from __future__ import annotations

import hashlib
import io
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import raysegment

if TYPE_CHECKING:
    from raysegment.model.model import Model


def fingerprint(module: nn.Module) -> bytes:
    """The module pickled with every tensor replaced by its content: storage ids differ between processes."""
    from ray import cloudpickle

    class Pickler(cloudpickle.CloudPickler):
        def persistent_id(self, obj: Any) -> Any:
            if not isinstance(obj, torch.Tensor):
                return None
            raw = obj.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            return str(obj.dtype), tuple(obj.shape), hashlib.sha256(raw.data).hexdigest()

    out = io.BytesIO()
    Pickler(out).dump(module)
    return out.getvalue()


def ship(model: Model) -> bytes:
    """The model as bytes for this run's own workers, with the code of classes that they may not have installed."""
    from ray import cloudpickle

    homes = {sys.modules[type(m).__module__] for m in model.module.modules()}
    strangers = [home for home in homes if home.__name__ != "__main__" and not _is_installed(home)]
    for home in strangers:
        cloudpickle.register_pickle_by_value(home)
    try:
        return cloudpickle.dumps(model)
    finally:
        for home in strangers:
            cloudpickle.unregister_pickle_by_value(home)


def unship(shipped: bytes) -> Model:
    """The model of :func:`ship`."""
    from ray import cloudpickle

    return cloudpickle.loads(shipped)


def _is_installed(module: ModuleType) -> bool:
    """Whether a worker of the same environment can import it too."""
    file = Path(getattr(module, "__file__", None) or sys.prefix).resolve()
    homes = {Path(p).resolve() for p in sysconfig.get_paths().values()}
    homes.add(Path(raysegment.__file__).resolve().parent)
    return any(file.is_relative_to(home) for home in homes)
