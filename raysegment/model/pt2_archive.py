"""What may stand in a `.pt2`: torch's own loader runs whatever the file says, so the file is read here first.

`torch.export.load` unpickles sample inputs and tensor subclasses, evaluates symbolic expressions and guards as
Python, resolves any name under `torch`, and loads compiled libraries. :func:`clean` lets through a graph of
arithmetic operators and plain tensors and writes them into a fresh archive; the rest is left out, or refused.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from typing import Any

from raysegment.errors import InputError

_KEPT = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
)
#: Not needed to run the network: pickled sample inputs, and notes.
_LEFT_OUT = re.compile(r"data/sample_inputs/model\.pt|extra/.*|\.format_version|\.storage_alignment")
_GRAPH = "models/model.json"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")

_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims)\.(?!save\b|from_file\b)\w+\.\w+"  # these two touch files
    r"|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
    r"|torch\.(sym_(not|int|float|max|min|sum|ite)|_sym_sqrt)"
    r"|math\.(ceil|floor|trunc)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pos|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
)
#: Sums and products of whole numbers and symbols, as sympy writes them.
_EXPRESSION = re.compile(
    r"(?:\b(?:Symbol|Integer|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|Identity)\("
    r"|'[a-z]+\d+'|\b[su]\d+\b|\b(?:positive|nonnegative|integer)=True\b|\d+|[-+*/(), ])*"
)
_NAME = re.compile(r"[\w.]*")
_SPEC_TYPES = {None, "builtins.tuple", "builtins.list", "builtins.dict"}


def clean(raw: bytes, name: str) -> bytes:
    """The archive with nothing in it that could run code. Raises InputError naming what stands in the way."""
    members = _members(raw, name)
    missing = [part for part in (_GRAPH, *_CONFIGS) if part not in members]
    if missing:
        raise InputError(
            f"{name} is no archive of torch.export.save of torch 2.9 or later: it lacks {missing[0]}"
        )
    for part in _CONFIGS:
        _check_config(_json(members[part], name), name)
    program = _json(members[_GRAPH], name)
    members[_GRAPH] = json.dumps(_clean_program(program, name)).encode()
    members["data/sample_inputs/model.pt"] = b""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for part, content in members.items():
            undated = zipfile.ZipInfo(f"model/{part}")  # the same bytes in every process
            archive.writestr(undated, content)
    return out.getvalue()


def parameters(raw: bytes, name: str) -> tuple[int, int]:
    """How many tensors the weights are, and how many numbers are parameters. Raises InputError."""
    config = _json(_members(raw, name).get(_CONFIGS[0], b"{}"), name).get("config", {})
    count = 0
    for entry in config.values():
        if entry["is_param"]:
            size = 1
            for edge in entry["tensor_meta"]["sizes"]:
                size *= edge["as_int"]
            count += size
    return len(config), count


def _members(raw: bytes, name: str) -> dict[str, bytes]:
    """The files that the network is made of, without the folder that they lie in."""
    members: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            for info in archive.infolist():
                part = info.filename.partition("/")[2]
                if _LEFT_OUT.fullmatch(part):
                    continue
                if not _KEPT.fullmatch(part):
                    raise InputError(
                        f"{name} holds {info.filename!r}, which may run code and is not loaded: "
                        "save a plain network with torch.export.save of torch 2.9 or later"
                    )
                if part in members or info.compress_type != zipfile.ZIP_STORED:
                    raise InputError(f"{name}: {info.filename!r} is not as torch.export.save writes it")
                members[part] = archive.read(info)
    except (zipfile.BadZipFile, OSError, EOFError) as e:
        raise InputError(f"{name} is not a .pt2 archive, or it is damaged: {e}") from e
    return members


def _json(raw: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except ValueError as e:
        raise InputError(f"{name} is damaged: {e}") from e
    if not isinstance(found, dict):
        raise InputError(f"{name} is damaged: its description is a {type(found).__name__}")
    return found


def _check_config(found: Mapping[str, Any], name: str) -> None:
    """All tensors lie as plain numbers."""
    for tensor, entry in found.get("config", {}).items():
        if entry.get("use_pickle") is not False or not re.fullmatch(
            r"(weight|tensor)_\d+", str(entry.get("path_name"))
        ):
            raise InputError(
                f"{name}: {tensor!r} is pickled, which may run code: export a network of plain tensors"
            )


def _clean_program(program: dict[str, Any], name: str) -> dict[str, Any]:
    """Without guards, notes and traces, every string one that cannot be code. Raises InputError."""
    graph_module = program.get("graph_module")
    if not isinstance(graph_module, dict):
        raise InputError(f"{name} is damaged: it holds no graph")
    kept = {key: value for key, value in program.items() if key not in ("guards_code", "torch_version")}
    kept["graph_module"] = {**graph_module, "metadata": {}, "treespec_namedtuple_fields": {}}
    return {**_checked(kept, "", name), "guards_code": [], "torch_version": program.get("torch_version", "")}


def _checked(value: Any, key: str, name: str) -> Any:
    """`value`, found under `key`, or what is kept of it."""
    if isinstance(value, dict):
        kept = {k: _checked(v, k, name) for k, v in value.items() if k != "metadata"}
        return kept if "metadata" not in value else {**kept, "metadata": {}}
    if isinstance(value, list):
        return [_checked(v, key, name) for v in value]
    if isinstance(value, str):
        _check_text(value, key, name)
    return value


def _check_text(text: str, key: str, name: str) -> None:
    if key in ("target", "as_operator"):
        if not _OPERATOR.fullmatch(text):
            raise InputError(
                f"{name} calls {text!r}, which is not among the operators that are run here: export a network of "
                "torch's own tensor operators, or wrap it with raysegment.Model"
            )
    elif key == "expr_str":
        if not _EXPRESSION.fullmatch(text):
            raise InputError(
                f"{name} holds the expression {text[:80]!r}, which may run code and is not evaluated"
            )
    elif key in ("in_spec", "out_spec"):
        _check_structure(text, name)
    elif key != "as_string" and not _NAME.fullmatch(text):  # an operator's text arguments are quoted by torch
        raise InputError(
            f"{name}: {key} = {text[:80]!r} is no name: it is not as torch.export.save writes it"
        )


def _check_structure(text: str, name: str) -> None:
    """Arguments and answers are made of plain containers."""
    if not text:
        return
    try:
        pending = [json.loads(text)[1]]
        while pending:
            node = pending.pop()
            if node["type"] not in _SPEC_TYPES:
                raise InputError(
                    f"{name} answers or takes a {node['type']}: export it with one tensor in and out"
                )
            pending += node["children_spec"]
    except (ValueError, LookupError, TypeError) as e:
        raise InputError(f"{name} is damaged: it describes its arguments as {text[:80]!r}") from e
