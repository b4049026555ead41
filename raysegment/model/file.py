"""Model files: our own ``.safetensors``, weights and spec in one; ``.pt2`` and ``.onnx`` with a sidecar beside them.

Nothing in them can run code. This module says which reader a file gets; `pt2.py` and `onnx.py` are the others.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from raysegment.errors import InputError
from raysegment.model.sidecar import read_sidecar, sidecar_path
from raysegment.model.spec import ModelSpec
from raysegment.storage import Url, location
from raysegment.storage.objects import before_work, fetched, put

if TYPE_CHECKING:
    from torch import nn

    from raysegment.model.model import Model

_KEY = "raysegment"
_READ = (".safetensors", ".pt2", ".onnx")


def save_model(module: nn.Module, spec: ModelSpec, path: str | os.PathLike[str]) -> None:
    """Write weights and spec as one file, whole or not at all. `spec.architecture` must rebuild `module`.

    Raises OSError naming the file; StorageError for a URL.
    """
    from safetensors.torch import save

    weights = {name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()}
    # as bytes: safetensors' own writer makes files that nobody else may read
    put(location(path), save(weights, metadata={_KEY: spec.model_dump_json()}))


def load_spec(path: str | os.PathLike[str]) -> ModelSpec:
    """The spec alone, without reading weights or importing torch. Raises InputError."""
    path = _existing(path)
    return _spec_of(path) if path.suffix == ".safetensors" else read_sidecar(path)


def load_model(path: str | os.PathLike[str]) -> Model:
    """Open a model file: ``.safetensors`` of ours, ``.pt2`` (torch.export) or ``.onnx`` with a sidecar `NAME.toml`.

    Raises InputError when it is missing, damaged, or its parts do not fit; UsageError for ``.onnx`` without the
    extra `onnx`.
    """
    path = _existing(path)
    if path.suffix == ".pt2":
        from raysegment.model.pt2 import open_pt2

        return open_pt2(path, read_sidecar(path))
    if path.suffix == ".onnx":
        from raysegment.model.onnx import open_onnx

        return open_onnx(path, read_sidecar(path))
    return _open_safetensors(path)


def file_identity(path: str | os.PathLike[str]) -> str:
    """sha256 of a model: of the file, or of all files that a network with a sidecar is made of."""
    path = _existing(path)
    if path.suffix == ".safetensors":
        return file_sha256(path)
    files = [path, sidecar_path(path)]
    read_sidecar(path)  # says what to write when it is missing
    if path.suffix == ".onnx":
        from raysegment.model.onnx import external_files

        files += external_files(path)
    return hashlib.sha256("\n".join(map(file_sha256, files)).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _open_safetensors(path: Path) -> Model:
    from safetensors.torch import load_file

    from raysegment.model.architectures import build
    from raysegment.model.model import Model

    spec = _spec_of(path)
    if spec.architecture is None:
        raise InputError(
            f"{path} holds weights but no architecture: wrap the network with raysegment.Model instead"
        )
    module = build(spec.architecture)
    try:
        module.load_state_dict(load_file(path))
    except RuntimeError as e:
        raise InputError(f"{path}: the weights do not fit the architecture {spec.architecture}: {e}") from e
    return Model(module.eval(), spec)


def _existing(path: str | os.PathLike[str]) -> Path:
    place = location(path)
    if isinstance(place, Url):
        if place.suffix != ".safetensors":
            raise InputError(
                f"{place}: of models at a URL only .safetensors are loaded: copy the others here"
            )
        with before_work():
            return fetched(place)
    path = Path(path)
    if not os.path.isfile(path):
        raise InputError(f"no model at {path}: give a {', '.join(_READ[:-1])} or {_READ[-1]} file")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} may not be read: mend its rights, or name another model")
    if path.suffix not in _READ:
        raise InputError(
            f"{path} is not a model that is loaded here: give {', '.join(_READ[:-1])} or {_READ[-1]} (a pickle such as "
            ".pt may run code: save the network with torch.export.save, or load it yourself and wrap it with "
            "raysegment.Model)"
        )
    return path


def _spec_of(path: Path) -> ModelSpec:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as f:
            meta = f.metadata() or {}
    except SafetensorError as e:
        raise InputError(f"{path} is not a safetensors file: {e}") from e
    if _KEY not in meta:
        raise InputError(
            f"{path} has no raysegment spec in its header: it was not written by `raysegment train`"
        )
    try:
        return ModelSpec.model_validate(json.loads(meta[_KEY]))
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: the spec in its header is not valid at {where!r}: {first['msg']}") from e
