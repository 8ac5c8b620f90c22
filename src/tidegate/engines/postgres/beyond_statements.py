"""Which statements reach beyond the database they run in: into the server, its roles, or its files.

Decides from the words of one statement. What a statement calls is not seen: a function, or the text
that a DO block executes, may reach anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidegate.engines.postgres import script

if TYPE_CHECKING:
    from tidegate.engines.postgres.script import Statement

_MAKES: Final = frozenset({"CREATE", "ALTER", "DROP", "COMMENT"})
_SHARED: Final = frozenset({"DATABASE", "ROLE", "USER", "GROUP", "TABLESPACE", "SUBSCRIPTION"})
_PAIRS: Final = frozenset(
    {("ALTER", "SYSTEM"), ("REASSIGN", "OWNED"), ("DROP", "OWNED"), ("SECURITY", "LABEL")}
)


def reaches_beyond(statement: Statement) -> str | None:
    """The words of a statement that changes more than its database; None when it does not."""
    words = _words(statement.text)
    if words[:2] in _PAIRS:
        return " ".join(words[:2])
    if words[:1] and words[0] in _MAKES:
        kind = words[2:4] if words[0] == "COMMENT" else words[1:3]
        is_shared = kind[:1] and kind[0] in _SHARED and kind != ("USER", "MAPPING")
        return f"{words[0]} {kind[0]}" if is_shared else None
    if words[:1] in {("GRANT",), ("REVOKE",)}:
        return _granted(words)
    if words[:1] == ("COPY",) and statement.rows is None:
        if "PROGRAM" in words:
            return "COPY … PROGRAM"
        return "COPY … TO" if "TO" in words and "FROM" not in words else None
    return None


def _words(text: str) -> tuple[str, ...]:
    """The words outside of quotes, comments and brackets, in capitals."""
    found, depth = [], 0
    for kind, at, end in script.tokens(text):
        if kind == "open":
            depth += 1
        elif kind == "close":
            depth -= 1
        elif kind == "word" and not depth:
            found.append(text[at:end].upper())
    return tuple(found)


def _granted(words: tuple[str, ...]) -> str | None:
    """Membership in a role, or a right to what the whole server shares."""
    if "ON" not in words:
        return f"{words[0]} of a role"
    what = words[words.index("ON") + 1 :][:1]
    shared = {"DATABASE", "TABLESPACE", "PARAMETER"}
    return f"{words[0]} … ON {what[0]}" if what and what[0] in shared else None
