"""How answers are printed: table, wide, json, yaml, name. Data goes to standard output, alone.

Decides the forms only. JSON is what the API answered, unchanged; a table is for eyes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

type Json = Mapping[str, Any]

FORMS: Final = ("table", "wide", "json", "yaml", "name")


@dataclass(frozen=True)
class Column:
    """A column of a table: a key of each item, or a function of it; ``wide`` ones only there."""

    title: str
    value: str | Callable[[Json], Any]
    wide: bool = False

    def of(self, item: Json) -> str:
        """The cell."""
        found = self.value(item) if callable(self.value) else item.get(self.value)
        return text_of(found)


def text_of(value: Any) -> str:
    """A value as a cell of a table."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(text_of(item) for item in value) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{key}={text_of(item)}" for key, item in value.items()) or "-"
    return str(value)


def size(count: float | None) -> str:
    """Bytes for eyes."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float | None) -> str:
    """Seconds for eyes."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def wait_text(wait: Json) -> str:
    """A wait, who is in the way, and what ends it, for eyes."""
    text = f"waits for {wait['what']}"
    text += f" at {wait['where']}" if wait["where"] else ""
    text += f" since {wait['since'][11:19]}" if wait["since"] else ""
    text += f": {wait['in_the_way']}" if wait["in_the_way"] else ""
    return f"{text}; {wait['next_step']}" if wait["next_step"] else text


def out(text: str) -> None:
    """Write one line of data."""
    sys.stdout.write(f"{text}\n")


def note(text: str) -> None:
    """Write one line that is not data."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def emit_items(
    form: str, answer: Json, columns: Sequence[Column], name: str | Callable[[Json], str]
) -> None:
    """Print a list answer."""
    if _emit_data(form, answer):
        return
    items = answer["items"]
    if form == "name":
        for item in items:
            out(name(item) if callable(name) else str(item[name]))
        return
    table(items, columns, wide=form == "wide")


def emit_one(
    form: str, answer: Json, rows: Iterable[tuple[str, Any]], name: str, *, more: str = ""
) -> None:
    """Print an object answer: names and values below each other, then ``more`` as it is."""
    if _emit_data(form, answer):
        return
    if form == "name":
        out(name)
        return
    pairs = [(key, text_of(value)) for key, value in rows]
    width = max((len(key) for key, _ in pairs), default=0)
    for key, value in pairs:
        out(f"{key:<{width}}  {value}")
    if more:
        out(more.rstrip("\n"))


def _emit_data(form: str, answer: Json) -> bool:
    if form == "json":
        out(json.dumps(answer, indent=2, ensure_ascii=False))
    elif form == "yaml":
        out("\n".join(yaml_lines(answer)))
    else:
        return False
    return True


def table(items: Iterable[Json], columns: Sequence[Column], *, wide: bool = False) -> None:
    """Print a table."""
    text = table_text(items, columns, wide=wide)
    if text:
        out(text)


def table_text(items: Iterable[Json], columns: Sequence[Column], *, wide: bool = False) -> str:
    """A table: aligned, without borders, titles in capitals."""
    shown = [column for column in columns if wide or not column.wide]
    rows = [[column.title for column in shown]]
    rows += [[column.of(item) for column in shown] for item in items]
    widths = [max(len(row[i]) for row in rows) for i in range(len(shown))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def yaml_lines(value: Any, indent: int = 0) -> list[str]:
    """A JSON value as YAML, block style; strings are quoted as JSON, which YAML reads."""
    pad = "  " * indent
    if isinstance(value, Mapping) and value:
        lines = []
        for key, item in value.items():
            nested = yaml_lines(item, indent + 1)
            if _is_block(item):
                lines += [f"{pad}{_key(key)}:", *nested]
            else:
                lines.append(f"{pad}{_key(key)}: {nested[0].strip()}")
        return lines
    if isinstance(value, list) and value:
        lines = []
        for item in value:
            nested = yaml_lines(item, indent + 1)
            lines.append(f"{pad}- {nested[0].strip()}")
            lines += nested[1:]
        return lines
    return [pad + json.dumps(value, ensure_ascii=False)]


def _is_block(value: Any) -> bool:
    return isinstance(value, Mapping | list) and bool(value)


def _key(key: str) -> str:
    return key if key.replace("_", "").isalnum() and not key[0].isdigit() else json.dumps(key)
