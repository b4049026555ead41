"""Facts as a person reads them: one per line, lists of like things as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Rows of a table that are shown; --json has them all.
MOST_ROWS = 20
#: Lists of lines, and what each line begins with.
_LISTED = {"problems": "- ", "notes": "- ", "suggested_classes_file": ""}
#: Names of keys that would leave a reader in doubt.
_LABELS = {"size": "height, width"}


def as_text(facts: Mapping[str, Any]) -> str:
    """Aligned "name  value" lines; a list of mappings becomes an indented table, a list of texts a list."""
    width = max((len(_label(key)) for key in facts), default=0)
    lines: list[str] = []
    for key, value in facts.items():
        if value is None or value == [] or value == {}:
            continue
        if _is_table(value):
            lines += [f"  {_label(key)}", *(f"    {row}" for row in _table(value))]
        elif key in _LISTED:
            lines += [f"  {_label(key)}", *(f"    {_LISTED[key]}{v}" for v in value)]
        else:
            lines.append(f"  {_label(key):<{width}}  {_plain(value)}")
    return "\n".join(lines)


def _label(key: str) -> str:
    return _LABELS.get(key, key.replace("_", " "))


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    shown = [[_plain(row.get(c), digits=4) for c in columns] for row in rows[:MOST_ROWS]]
    widths = [max(len(_label(c)), *(len(r[i]) for r in shown)) for i, c in enumerate(columns)]
    lines = ["  ".join(f"{_label(c):<{w}}" for c, w in zip(columns, widths, strict=True)).rstrip()]
    lines += ["  ".join(f"{v:<{w}}" for v, w in zip(row, widths, strict=True)).rstrip() for row in shown]
    if len(rows) > MOST_ROWS:
        lines.append(f"and {len(rows) - MOST_ROWS} more (--json lists them all)")
    return lines


def _plain(value: Any, digits: int = 10) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_label(str(k))} {_plain(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(v, (list, tuple)) for v in value):
            return ", ".join("×".join(map(_plain, v)) for v in value)
        return ", ".join(map(_plain, value))
    return str(value)
