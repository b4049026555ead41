"""A network of the user's on its way to the workers: whole, with the code that they may not have.

Only for what this run itself has in memory: nothing here reads a user's file. Ray's own cloudpickle does the work, so
this module is imported where it is needed: a process that opens a model file needs no Ray.
"""

from __future__ import annotations

import functools
import io
import os
import pickle
import site
import sys
import sysconfig
import threading
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import torch
from ray import cloudpickle
from torch import nn
from torch.nn.utils import parametrize

import raysegment
from raysegment.errors import InputError
from raysegment.model.brought import first_line

if TYPE_CHECKING:
    from raysegment.model.model import Model

#: Which modules are pickled by value is kept by cloudpickle for the whole process.
_registering = threading.Lock()
SCRIPTS = (torch.jit.ScriptModule, torch.jit.ScriptFunction)


def ship(model: Model) -> bytes:
    """The model as bytes for this run's own workers, with the code of classes that they may not have installed.

    What that code imports is looked for where this process finds it: on this machine, or on a disk that nodes share.
    Raises InputError for a network that cannot travel.
    """
    from raysegment.model.model import evaluating

    out = io.BytesIO()
    with evaluating(model.module), _registering:
        strangers = _strangers(model.module)
        for home in strangers:
            cloudpickle.register_pickle_by_value(home)
        try:
            dump(Pickler(out), model)
        finally:
            for home in strangers:
                cloudpickle.unregister_pickle_by_value(home)
    return pickle.dumps(([os.path.abspath(place) for place in sys.path], out.getvalue()))


def unship(shipped: bytes) -> Model:
    """The model of :func:`ship`."""
    places, packed = pickle.loads(shipped)
    sys.path += [place for place in places if place not in sys.path and os.path.isdir(place)]
    model: Model = cloudpickle.loads(packed)
    return model


def copied(module: nn.Module) -> nn.Module:
    """The module in eval mode with state of its own, on the CPU, and the very classes and functions of the original.

    As it would arrive at a worker, where :func:`copy.deepcopy` refuses some (pruned ones, TorchScript within) and
    :func:`unship` would define the caller's classes anew. Raises InputError for a network that cannot travel.
    """
    from raysegment.model.model import evaluating

    out = io.BytesIO()
    copier = _Copier(out)
    with evaluating(module):
        dump(copier, module)
    out.seek(0)
    module = _Copy(out, copier.kept).load()
    try:
        return module.eval()
    except Exception as e:  # torch's quantised layers do not survive their own pickle
        raise _cannot_travel(e) from e


class Pickler(cloudpickle.CloudPickler):
    """Takes along what torch itself does not pickle, and nothing that only its own process or device can use."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, SCRIPTS):
            return _load_script, (saved_script(obj),)
        if isinstance(obj, nn.Module):
            # compiling, and spreading over devices, is the plan's business
            if isinstance(getattr(obj, "_orig_mod", None), nn.Module):  # of torch.compile
                return _itself, (obj._orig_mod,)
            if isinstance(obj, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
                return _itself, (obj.module,)
            if parametrize.is_parametrized(obj):
                return _itself, (_settled(obj),)
        if isinstance(obj, torch.Tensor) and obj.device.type not in ("cpu", "meta"):
            here = obj.detach().cpu()
            is_learnt = isinstance(obj, nn.Parameter)
            return (nn.Parameter(here, obj.requires_grad) if is_learnt else here).__reduce_ex__(4)
        return super().reducer_override(obj)


class _Copier(Pickler):
    """Leaves out what is shared, and tensors, whose copies need no second form in between."""

    def __init__(self, out: io.BytesIO) -> None:
        super().__init__(out)
        self.kept: list[Any] = []
        self._places: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, (torch.Tensor, type, FunctionType, ModuleType)):
            return None
        if id(obj) not in self._places:
            self._places[id(obj)] = len(self.kept)
            self.kept.append(obj)
        return self._places[id(obj)]


class _Copy(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, kept: list[Any]) -> None:
        super().__init__(file)
        self._kept = [_clone(obj) if isinstance(obj, torch.Tensor) else obj for obj in kept]

    def persistent_load(self, place: int) -> Any:
        return self._kept[place]


def _clone(tensor: torch.Tensor) -> torch.Tensor:
    clone = tensor.detach().to("cpu", copy=True)
    return nn.Parameter(clone, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else clone


def dump(pickler: Pickler, module: Any) -> None:
    """Let `pickler` write it. Raises InputError saying what to do instead."""
    try:
        pickler.dump(module)
    except Exception as e:  # the network's own code may refuse in any way
        raise _cannot_travel(e) from e


def _cannot_travel(error: Exception) -> InputError:
    return InputError(
        f"the network cannot be sent to the workers ({type(error).__name__}: {first_line(error)}): "
        "save it with torch.export.save and give its .pt2"
    )


def is_known(obj: type | FunctionType) -> bool:
    """Whether a worker of the same environment finds this class or function by its name."""
    module = sys.modules.get(obj.__module__ or "")
    if module is None or module.__name__ == "__main__" or not is_installed(module):
        return False
    found: Any = module
    for name in obj.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is obj


def is_installed(module: ModuleType) -> bool:
    """Whether a worker of the same environment can import it too."""
    file = getattr(module, "__file__", None)
    return file is None or any(Path(file).resolve().is_relative_to(home) for home in _homes())


@functools.cache
def _homes() -> frozenset[Path]:
    """Where what is installed lies."""
    homes = [*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages()]
    homes.append(str(Path(str(raysegment.__file__)).parent))
    return frozenset(Path(home).resolve() for home in homes)


def _strangers(module: nn.Module) -> list[ModuleType]:
    """Where the classes of the network's parts and their bases come from, as far as a worker may not have it."""
    kinds = {base for part in module.modules() for base in type(part).__mro__}
    modules = {name: sys.modules.get(name) for name in sorted({kind.__module__ for kind in kinds})}
    return [m for name, m in modules.items() if m is not None and name != "__main__" and not is_installed(m)]


def _settled(module: nn.Module) -> nn.Module:
    """The module with its parametrizations (spectral norm and the like) done once and for all, to be pickled.

    torch's own way to remove them would take them from the caller's module too, for a copy has the same class.
    """
    kind: Any = parametrize.type_before_parametrizations(module)
    settled: nn.Module = kind.__new__(kind)
    settled.__dict__.update(vars(module))
    parts = dict(module._modules)
    names = parts.pop("parametrizations")
    with torch.no_grad():
        done = {name: nn.Parameter(getattr(module, name), requires_grad=False) for name in names}  # type: ignore[union-attr]
    settled.__dict__.update(_modules=parts, _parameters={**module._parameters, **done})
    return settled


def saved_script(script: Any) -> bytes:
    """TorchScript as the archive that it is saved as."""
    out = io.BytesIO()
    torch.jit.save(script, out)
    return out.getvalue()


def _load_script(saved: bytes) -> Any:
    return torch.jit.load(io.BytesIO(saved), map_location="cpu")


def _itself(obj: Any) -> Any:
    return obj
