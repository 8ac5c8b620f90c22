"""Variables in SQL files: ``${schema}``, ``${tenant}``, ``${role}`` and those of the source.

Decides where variables are in a text and how a value is written in each place, so that it stays one
value whatever characters it has:

* outside quotes, ``${name}`` becomes an identifier in double quotes, ``${name:literal}`` a literal,
  ``${name:raw}`` the value as it is;
* inside ``'…'``, ``E'…'`` and ``"…"`` it becomes the value, escaped as that quote needs;
* inside a dollar quote, the body of a function, the same rules hold for the text between.

Comments and the rows of a COPY are left as they are. The text is read by the rules of
:mod:`.script`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tidegate.engines.postgres import script

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_VARIABLE: Final = re.compile(r"\$\{(?P<name>[^{}:\s]*)(?::(?P<form>[^{}\s]*))?\}")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_FORMS: Final = ("literal", "raw")
_JOINS: Final = r"[A-Za-z0-9_$\"'\x80-\U0010ffff]"
#: What a raw value may be: anything that cannot end the statement or begin a quote or comment.
_RAW: Final = r"(?!.*(?:--|/\*))[^'\"$;\\\x00-\x1f]*"


class PlaceholderError(ValueError):
    """A variable cannot be used as it is written."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")
        self.line = line
        self.what = what


@dataclass(frozen=True, slots=True)
class Slot:
    """One use of a variable."""

    start: int
    end: int
    name: str
    form: str
    """``literal`` or ``raw``; empty where the place decides."""
    quote: str
    """What it is inside of: empty, ``'``, ``e'`` or ``"``."""
    line: int
    dollars: tuple[str, ...] = ()
    """The dollar quotes around it, which its value must not contain."""


def is_name(name: str) -> bool:
    """Whether a variable may be called so."""
    return _NAME.fullmatch(name) is not None


def slots(text: str, line: int = 1) -> tuple[Slot, ...]:
    """The variables of a text, in order.

    Args:
        text: that :func:`.script.cut` accepts, without rows of a COPY.
        line: of its first character.

    Raises:
        PlaceholderError: one is written in a way that means nothing.
    """
    return tuple(_slots(text, 0, line, ())) if "${" in text else ()


def _slots(text: str, offset: int, first_line: int, dollars: tuple[str, ...]) -> Iterator[Slot]:
    """The variables of a part that begins at ``offset`` of the whole text."""
    taken = 0
    try:
        for kind, at, end in script.tokens(text):
            piece = text[at:end]
            if at < taken or "$" not in piece:
                continue
            line = first_line + text.count("\n", 0, at)
            if kind == "word" and piece.endswith("$") and text.startswith("{", end):
                raise PlaceholderError(line, f"{piece}{{…}}: {_JOINED}")
            if kind == "other" and text.startswith("${", at):
                slot = _slot(text, at, "", line)
                taken = slot.end
                around = text[max(0, at - 1) : at] + text[taken : taken + 1]
                if any(re.match(_JOINS, each) for each in around):
                    raise PlaceholderError(line, f"{text[at:taken]}: {_JOINED}")
                yield _moved(slot, offset, dollars)
            elif kind == "dollar" and "${" in piece:
                mark = piece[: piece.index("$", 1) + 1]
                body = piece[len(mark) : -len(mark)]
                yield from _slots(body, offset + at + len(mark), line, (*dollars, mark))
            elif kind in {"escaped", "quoted", "named"}:
                for slot in _quoted(text, at, end, first_line):
                    yield _moved(slot, offset, dollars)
    except script.UnreadableError as error:
        raise PlaceholderError(first_line + error.line - 1, error.what) from None


def _moved(slot: Slot, offset: int, dollars: tuple[str, ...]) -> Slot:
    start, end = slot.start + offset, slot.end + offset
    return replace(slot, start=start, end=end, dollars=dollars)


_JOINED: Final = (
    "outside quotes, a variable is a name of its own and cannot be part of one;"
    ' write "app_${tenant}" with double quotes'
)


def _quoted(text: str, start: int, end: int, first_line: int) -> Iterator[Slot]:
    mark = text[start : start + 1].lower()
    quote = "e'" if mark == "e" else '"' if '"' in text[start : start + 3] else "'"
    found_at = start
    while (found_at := text.find("${", found_at, end)) >= 0:
        line = first_line + text.count("\n", 0, found_at)
        if text[start : start + 2].lower() == "u&":
            raise PlaceholderError(line, "variables cannot be used in a U&'…' string")
        slot = _slot(text, found_at, quote, line)
        if slot.form:
            raise PlaceholderError(
                line,
                f"{text[found_at : slot.end]}: inside quotes the quotes decide; leave"
                f" :{slot.form} away",
            )
        yield slot
        found_at = slot.end


def _slot(text: str, at: int, quote: str, line: int) -> Slot:
    found = _VARIABLE.match(text, at)
    if found is None or not is_name(found["name"]):
        raise PlaceholderError(
            line,
            "${ begins a variable: ${name}; a file without variables says so in a comment"
            " before its first statement: tidegate: no-variables",
        )
    form = found["form"] or ""
    if form not in {"", *_FORMS} or (found["form"] == ""):
        raise PlaceholderError(line, f"{found[0]}: after the colon comes {' or '.join(_FORMS)}")
    return Slot(at, found.end(), found["name"], form, quote, line)


def bind(text: str, found: tuple[Slot, ...], values: Mapping[str, str]) -> str:
    """The text with its variables replaced.

    Raises:
        PlaceholderError: a variable is unknown, or its value cannot stand where it would.
    """
    parts, at = [], 0
    for slot in found:
        if slot.name not in values:
            raise PlaceholderError(slot.line, f"the variable ${{{slot.name}}} is not known")
        parts += [text[at : slot.start], _written(slot, values[slot.name])]
        at = slot.end
    return "".join([*parts, text[at:]])


def _written(slot: Slot, value: str) -> str:
    if slot.quote == '"':
        written = value.replace('"', '""')
    elif slot.quote == "'":
        written = value.replace("'", "''")
    elif slot.quote == "e'":
        written = value.replace("\\", "\\\\").replace("'", "''")
    elif slot.form == "literal":
        written = "'" + value.replace("'", "''") + "'"
    elif slot.form == "raw":
        if not re.fullmatch(_RAW, value, re.DOTALL):
            raise PlaceholderError(
                slot.line,
                f"${{{slot.name}:raw}}: the value has a quote, a semicolon, a backslash, $ or a"
                " comment; use it without :raw",
            )
        written = value
    else:
        written = '"' + value.replace('"', '""') + '"'
    if any("$" in written for _ in slot.dollars):
        raise PlaceholderError(
            slot.line, f"${{{slot.name}}} is inside a dollar quote, and its value has a $"
        )
    return written
