"""The model file: weights and spec in one ``.safetensors``; nothing in it can run code."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from raysegment.errors import InputError, NotBuiltError
from raysegment.model.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn

    from raysegment.model.model import Model

_KEY = "raysegment"


def save_model(module: nn.Module, spec: ModelSpec, path: str | os.PathLike[str]) -> None:
    """Write weights and spec as one file, by temp file and rename. `spec.architecture` must rebuild `module`."""
    from safetensors.torch import save

    path = Path(path)
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    weights = {name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()}
    # as bytes: safetensors' own writer makes files that nobody else may read
    temp.write_bytes(save(weights, metadata={_KEY: spec.model_dump_json()}))
    os.replace(temp, path)


def load_spec(path: str | os.PathLike[str]) -> ModelSpec:
    """The spec alone, without reading weights or importing torch. Raises InputError."""
    return _spec_of(_existing(path))


def load_model(path: str | os.PathLike[str]) -> Model:
    """Open a model file. Raises InputError when it is missing, not of ours, or its weights do not fit."""
    from safetensors.torch import load_file

    from raysegment.model.architectures import build
    from raysegment.model.model import Model

    path = _existing(path)
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
    return Model(module, spec)


def file_identity(path: str | os.PathLike[str]) -> str:
    """sha256 of a model file."""
    with open(_existing(path), "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _existing(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no model at {path}: give a .safetensors that `raysegment train` wrote")
    if path.suffix in (".pt2", ".onnx"):
        raise NotBuiltError(
            f"{path.suffix} models ({path}) are not built yet: give a .safetensors, or raysegment.Model in Python"
        )
    if path.suffix != ".safetensors":
        raise InputError(
            f"{path} is not a model that is loaded here: give .safetensors (a pickle such as .pt may run code; "
            "load it yourself and wrap the network with raysegment.Model)"
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
