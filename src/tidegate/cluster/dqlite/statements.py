"""Which statements libdqlite 1.11 can be trusted with.

Decides, before a statement is sent, whether the server would do what SQLite does with it. What is
refused here was seen to end the server's process, or to give another answer without a word:

* more than 255 parameters: a query runs with NULL in their place, anything else fails oddly;
* ``VACUUM``, ``PRAGMA`` of the journal, of ``synchronous`` and of the page size: an assertion fails
  and the process is gone, now or at the next write; ``ATTACH`` and temporary tables live on one
  member only;
``RETURNING`` outside of a transaction ends the process, too. Here every statement is inside one.

And columns declared as a boolean, a date or a time come back converted, a NULL boolean as false. To
SQLite all these are ``NUMERIC``, so that is what they are declared as here; the values stay.
"""

from __future__ import annotations

import re
from typing import Final

MAX_PARAMETERS: Final = 255

_PRAGMAS: Final = frozenset(
    {
        "database_list",
        "foreign_key_check",
        "foreign_key_list",
        "foreign_keys",
        "index_info",
        "index_list",
        "index_xinfo",
        "integrity_check",
        "quick_check",
        "table_info",
        "table_list",
        "table_xinfo",
    }
)
_PRAGMA: Final = re.compile(r"PRAGMA\s+(?:\w+\.|\"\w+\"\.)?(\w+)\s*(=?)", re.IGNORECASE)
_REFUSED: Final = re.compile(
    r"(VACUUM|ATTACH|DETACH|CREATE\s+(?:TEMP|TEMPORARY)|(?:BEGIN|COMMIT|END|ROLLBACK)"
    r"(?!\s+TO)(?!\s+TRANSACTION\s+TO))\b",
    re.IGNORECASE,
)
_DEFINES: Final = re.compile(r"\s*(?:CREATE\s+TABLE|ALTER\s+TABLE)\b", re.IGNORECASE)
_CONVERTED: Final = frozenset({"BOOLEAN", "DATE", "DATETIME", "TIMESTAMP"})
_TOKEN: Final = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|\w+|\s+|.", re.DOTALL)
_NO_COLUMNS: Final = frozenset(
    {"ADD", "AS", "BY", "CHECK", "COLUMN", "CONSTRAINT", "DEFAULT", "EXISTS", "KEY", "NOT", "TABLE"}
    | {"REFERENCES", "TO", "UNIQUE", "CREATE", "AND", "OR", "SELECT", "FROM", "COLLATE"}
)
"""Words after which a name follows, not the type of a column."""


def refusal(statement: str, parameters: int) -> str | None:
    """Why a statement may not be sent; None if it may.

    Args:
        statement: its text, placeholders and all.
        parameters: how many values go with it.
    """
    text = statement.strip()
    if parameters > MAX_PARAMETERS:
        return f"it has {parameters} parameters, and {MAX_PARAMETERS} can be sent"
    if match := _PRAGMA.match(text):
        name, assigns = match[1].lower(), bool(match[2])
        if name not in _PRAGMAS or (assigns and name == "foreign_keys"):
            return f"PRAGMA {name} is not safe on a replicated database"
    if match := _REFUSED.match(text):
        return f"{' '.join(match[1].upper().split())} is not safe on a replicated database"
    return None


def as_declared(statement: str) -> str:
    """The statement with its columns declared so that their values come back as they are."""
    if not _DEFINES.match(statement):
        return statement

    parts: list[str] = []
    before = ""
    for token in _TOKEN.findall(statement):
        word = token.upper()
        is_named = before.isidentifier() or before.startswith('"')
        if word in _CONVERTED and is_named and before not in _NO_COLUMNS:
            parts.append("NUMERIC")
        else:
            parts.append(token)
        if not word.isspace():
            before = word
    return "".join(parts)
