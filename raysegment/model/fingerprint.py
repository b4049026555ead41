"""What tells one network in memory from another: weights, state and code; the same in every process.

A plain pickle would not do: it holds the ids of storages, names that cloudpickle makes up for classes, sets in an order
of their own and the paths of notebook cells, and of a class in the user's files its name alone, whatever its code is.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

from raysegment.model.shipping import SCRIPTS, Pickler, dump, is_installed, is_known, saved_script

_CODE = (
    FunctionType,
    MethodType,
    type,
    ModuleType,
    *SCRIPTS,
    staticmethod,
    classmethod,
    property,
    functools.partial,
)


def fingerprint(module: nn.Module) -> bytes:
    """The module, every tensor as its content, and code that is not installed as what it does.

    Notes, line numbers and names of files do not count. Raises InputError for a network that cannot be described.
    """
    out = io.BytesIO()
    dump(_Describer(out), module)
    return out.getvalue()


class _Describer(Pickler):
    """Writes what is only compared, never read."""

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) is str:
            # whole each time: which of the equal ones are one object may vary
            return obj.encode(errors="surrogatepass")
        if isinstance(obj, torch.Tensor):
            raw = obj.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            return str(obj.dtype), tuple(obj.shape), hashlib.sha256(raw.data).hexdigest()
        if isinstance(obj, (set, frozenset)) and all(
            isinstance(one, (str, bytes, int, float)) for one in obj
        ):
            return type(obj).__name__, sorted(map(repr, obj))
        return None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, CodeType):
            return _described, ("code", obj.co_name), _code(obj)
        if isinstance(obj, ModuleType) and not is_installed(obj) and obj.__name__ != "__main__":
            content = hashlib.sha256(Path(str(obj.__file__)).read_bytes()).digest()
            return _described, ("module", obj.__name__, content)
        if isinstance(obj, (type, FunctionType)) and obj.__module__ != "builtins" and not is_known(obj):
            contents = _class(obj) if isinstance(obj, type) else _function(obj)
            return _described, (type(obj).__name__, obj.__qualname__), contents
        if isinstance(obj, SCRIPTS):
            return _described, ("script", type(obj).__name__), list(_script(saved_script(obj)))
        reduced = super().reducer_override(obj)
        if reduced is NotImplemented and not isinstance(obj, (type, FunctionType)):
            return self._reduced(obj)
        return reduced

    def _reduced(self, obj: Any) -> Any:
        """As pickle would have it; by its type alone what cannot be pickled, such as a lock that some code uses."""
        try:
            reduce = self.dispatch_table.get(type(obj))
            reduced = obj.__reduce_ex__(4) if reduce is None else reduce(obj)
            if not isinstance(reduced, str):
                return reduced
            return _described, ("named", reduced), getattr(obj, "__wrapped__", None)  # a cached function, say
        except Exception:  # the object's own code
            return _described, ("object", type(obj).__qualname__)


def _code(code: CodeType) -> tuple[Any, ...]:
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    return code.co_code, code.co_consts, code.co_exceptiontable, counts, names


def _function(function: FunctionType) -> tuple[Any, ...]:
    """Its code, and everything outside of it that this refers to."""
    there = function.__globals__
    used = {name: _told(there[name]) for name in sorted(set(_globals(function.__code__))) if name in there}
    cells = [_told(_cell(cell)) for cell in function.__closure__ or ()]
    return function.__code__, function.__defaults__, function.__kwdefaults__, cells, used


def _class(kind: type) -> tuple[Any, ...]:
    """Its bases and what it defines; not what Python keeps in it for itself."""
    defined = {
        name: _told(value)
        for name, value in vars(kind).items()
        if isinstance(value, FunctionType) or not (name.startswith("__") or name == "_abc_impl")
    }
    return kind.__bases__, defined


def _script(archive: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Its files but for notes and an id; by lines, since it declares constants in any order."""
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        for name in sorted(files.namelist()):
            if ".data/" not in name and not name.endswith(".debug_pkl"):
                yield name, sorted(files.read(name).split(b"\n"))


def _told(value: Any) -> Any:
    """A value that code refers to: code, networks, tensors and plain data as they are. Of another its type and name: it
    may be a cache that fills while the network answers."""
    if isinstance(value, functools._lru_cache_wrapper):
        value = value.__wrapped__
    if isinstance(value, (*_CODE, nn.Module, torch.Tensor)) or _is_plain(value):
        return value
    return type(value).__qualname__, str(getattr(value, "__name__", ""))


def _is_plain(value: Any) -> bool:
    """Whether it is data such as settings; what is empty may yet be filled."""
    if isinstance(value, dict):
        return bool(value) and all(_is_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, (list, set)):
        return bool(value) and all(map(_is_plain, value))
    if isinstance(value, (tuple, frozenset)):
        return all(map(_is_plain, value))
    return isinstance(value, (str, bytes, int, float, complex, type(None)))


def _globals(code: CodeType) -> Iterator[str]:
    for step in dis.get_instructions(code):
        if step.opname == "LOAD_GLOBAL":
            yield step.argval
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _globals(const)


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _described(*words: Any) -> None:
    """Stands where pickle wants something to call."""
