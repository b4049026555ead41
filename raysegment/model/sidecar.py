"""The sidecar: what a network of another format is used with, as TOML beside it.

`roads.onnx` (or `roads.pt2`) is read with `roads.toml`:

    classes = ["background", "road"]       # or tables: {name = "road", colour = "#ff8800"}
    channels = 3
    scale = 0.00392157                     # per channel x' = (x · scale − mean) / std
    mean = [0.485, 0.456, 0.406]           # one per channel, or one for all
    std = [0.229, 0.224, 0.225]
    tile = 512                             # edge of the network's output, in pixels
    multiple = 32                          # its input's edges must be multiples of this
    activation = "softmax"                 # of its answer: "softmax" or "sigmoid" of logits, "none" = probabilities
    margin = 0                             # pixels that the output lacks on each side
    pixel_size = [0.5, 0.5, "m"]           # (y, x, unit) it was trained at
    thresholds = [0.5, 0.4]
    nodata = 0                             # of images that have no nodata value of their own
    licence = "CC-BY-4.0"

Only `classes` and `channels` must be there.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raysegment.errors import InputError, first_complaint
from raysegment.model.spec import Class, Colour, ModelSpec, default_classes

#: Keys of a sidecar: the spec's own, but for what only our own networks have.
KEYS = tuple(name for name in ModelSpec.model_fields if name != "architecture")
_CLASS_KEYS = ("name", "colour", "value")
_EXAMPLE = (
    'classes = ["background", "road"], channels = 3, scale = 0.00392157, tile = 512, multiple = 32, '
    'activation = "softmax"'
)


def sidecar_path(network: Path) -> Path:
    """Where the sidecar of a network lies: the same stem, `.toml`."""
    return network.with_suffix(".toml")


def read_sidecar(network: Path) -> ModelSpec:
    """The spec of a network, from the sidecar beside it. Raises InputError naming the file and the key."""
    path = sidecar_path(network)
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise InputError(
            f"{network} has no sidecar: write {path.name} beside it, one key per line, such as {_EXAMPLE}"
        ) from e
    except OSError as e:
        raise InputError(f"cannot read the sidecar {path}: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise InputError(f"{path} is not valid TOML: {e}") from e
    _refuse_unknown(found, KEYS, f"{path}: ")
    values = dict(found)
    if "classes" in values:
        values["classes"] = _classes(values["classes"], path)
    for key in ("mean", "std"):
        if isinstance(values.get(key), (int, float)):
            values[key] = [values[key]]
    if "pixel_size" in values:
        values["pixel_size"] = _pixel_size(values["pixel_size"], path)
    try:
        return ModelSpec.model_validate(values)
    except ValidationError as e:
        raise InputError(f"{path}: {first_complaint(e)}") from e


def sidecar_text(spec: ModelSpec) -> str:
    """The sidecar that :func:`read_sidecar` reads `spec` from, without its architecture."""
    values = spec.model_dump(exclude={"architecture", "classes"}, exclude_defaults=True)
    values = {"channels": spec.channels, "activation": spec.activation, "tile": spec.tile, **values}
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]
    for one in spec.classes:
        lines += ["", "[[classes]]", f"name = {_toml(one.name)}"]
        lines.append(f'colour = "{"#{:02x}{:02x}{:02x}".format(*one.colour)}"')
        if one.value is not None:
            lines.append(f"value = {_toml(one.value)}")
    return "\n".join([*lines, ""])


def _refuse_unknown(found: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0)[0]
            raise InputError(f"{where}unknown key {key!r}; the nearest is {near!r}")


def _classes(found: Any, path: Path) -> list[Class]:
    """Names, or tables of name, colour and value; who has no colour gets the palette's."""
    if not isinstance(found, list) or not found:
        raise InputError(f'{path}: classes = {found!r}: give a list of names, such as ["background", "road"]')
    classes = []
    for i, (entry, default) in enumerate(zip(found, default_classes(len(found)), strict=True), start=1):
        table = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(table, dict):
            raise InputError(f"{path}: class {i} is {entry!r}: give a name, or a table of name and colour")
        _refuse_unknown(table, _CLASS_KEYS, f"{path}: class {i}: ")
        colour = table.get("colour", default.colour)
        try:
            classes.append(
                Class.model_validate(
                    {**table, "colour": _colour(colour) if isinstance(colour, str) else colour}
                )
            )
        except (ValidationError, ValueError) as e:
            complaint = first_complaint(e) if isinstance(e, ValidationError) else str(e)
            raise InputError(f"{path}: class {i}: {complaint}") from e
    return classes


def _colour(text: str) -> Colour:
    digits = text.removeprefix("#")
    if len(text) != 7 or len(digits) != 6 or not all(c in "0123456789abcdefABCDEF" for c in digits):
        raise ValueError(f'colour {text!r}: write it like "#808000"')
    return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16)


def _pixel_size(found: Any, path: Path) -> tuple[float, float, str | None]:
    """(y, x, unit) of [y, x, "unit"] or [y, x]."""
    numbers = found[:2] if isinstance(found, list) else []
    unit = found[2] if isinstance(found, list) and len(found) == 3 else None
    if (
        len(numbers) != 2
        or len(found) > 3
        or not all(isinstance(n, (int, float)) and n > 0 for n in numbers)
        or not isinstance(unit, (str, type(None)))
    ):
        raise InputError(f'{path}: pixel_size = {found!r}: give [y, x, "unit"], such as [0.5, 0.5, "um"]')
    return float(numbers[0]), float(numbers[1]), unit


def _toml(value: Any) -> str:
    """A plain value in TOML, which has no null: keys without a value are left out."""
    if isinstance(value, Mapping):
        pairs = (f"{_text(str(k))} = {_toml(v)}" for k, v in value.items() if v is not None)
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(v) for v in value if v is not None)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, (int, float)) else _text(str(value))


def _text(text: str) -> str:
    # JSON's escapes are TOML's, but for the one control character that JSON lets through
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
