"""--config and --show-config: values from a file, and where each value came from.

A file's values are handed to Typer as defaults, in the words one would type after the flag, so one
machinery checks and converts both, and a flag beats the file.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

from raysegment.errors import UsageError

_SOURCES = {"COMMANDLINE": "command line", "ENVIRONMENT": "environment", "DEFAULT_MAP": "file"}


def load_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Callback of --config, which is parsed before every other option: fill ``ctx.default_map``.

    Keys are option names, with - or _, and argument names. Raises UsageError naming the file and the key.
    """
    if path is None or ctx.resilient_parsing:
        return path
    known = {key_of(p): p for p in own_parameters(ctx)}
    values: dict[str, Any] = {}
    for raw, value in _read(path).items():
        key = raw.replace("_", "-")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0)
            hint = f"the nearest is {near[0]!r}" if near else f"`{ctx.command_path}` takes none"
            raise UsageError(f"--config {path}: unknown key {raw!r}; {hint}")
        values[known[key].name] = _typed(path, raw, value, known[key])
    ctx.default_map = values
    return path


def shown(ctx: typer.Context, values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What --show-config prints: TOML lines with each value's source, and the same as a JSON object."""
    data: dict[str, Any] = {}
    lines = []
    for p in own_parameters(ctx):
        value = _plain(values[p.name])
        source = _SOURCES.get(getattr(ctx.get_parameter_source(p.name), "name", ""), "default")
        data[key_of(p)] = {"value": value, "from": source}
        lines.append(
            (f"# {key_of(p)} is not set" if value is None else f"{key_of(p)} = {_toml(value)}", source)
        )
    width = min(max((len(text) for text, _ in lines), default=0), 60)
    return "\n".join(f"{text:<{width}}  # {source}" for text, source in lines), data


def own_parameters(ctx: typer.Context) -> list[Any]:
    """The command's parameters without those that every command shares."""
    shared = {"json_", "quiet", "verbose", "config", "show_config", "help"}
    shared |= {"address", "detach", "allow_insecure"}
    return [p for p in ctx.command.params if p.name not in shared]


def key_of(parameter: Any) -> str:
    """How a file spells a parameter: the long option without its dashes, or the argument's name."""
    return max(parameter.opts, key=len).lstrip("-").replace("_", "-")


def _read(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UsageError(f"cannot read --config {path}: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"--config {path} is not valid TOML: {e}") from e


def _typed(path: Path, key: str, value: Any, parameter: Any) -> Any:
    """A TOML value as the words one would type; a list for an option of one word is joined by commas."""
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, (dict, list)) for item in items):
        raise UsageError(
            f"--config {path}: {key} = {value!r} is nested: give a plain value or a list of them"
        )
    is_flag = getattr(parameter, "is_flag", False)
    if isinstance(value, bool) != is_flag:
        need = "true or false" if is_flag else "a value, not true or false"
        raise UsageError(f"--config {path}: {key} = {_toml(value)}: give {need}")
    if is_flag:
        return value
    if parameter.nargs != 1 or getattr(parameter, "multiple", False):
        return [str(item) for item in items]
    return ",".join(map(str, items))


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _toml(value: Any) -> str:
    if isinstance(value, Iterable) and not isinstance(value, str):
        return f"[{', '.join(_toml(v) for v in value)}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (str, bool)) else str(value)
