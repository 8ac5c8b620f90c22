"""Which statements cannot run in a transaction, and which index a statement builds.

Decides from the text of one statement. The list is that of PostgreSQL's
``PreventInTransactionBlock``, for what a migration may hold. Patterns are compiled when they are
first used: a node that runs no migration never needs them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tidegate.engines.postgres.script import Statement

_NAME_BYTES: Final = 63
_NAME: Final = r'(?:"(?:[^"]|"")+"|[A-Za-z_\x80-\U0010ffff][\w$]*)'
_CREATE: Final = (
    r"CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?P<absent>IF\s+NOT\s+EXISTS\s+)?"
    rf"(?:(?!ON\s)(?P<name>{_NAME})\s+)?ON\s+(?:ONLY\s+)?"
    rf"(?P<table>{_NAME}(?:\s*\.\s*{_NAME})?)"
)
_DETACH: Final = r"\sDETACH\s+PARTITION\s.*\s(?:CONCURRENTLY|FINALIZE)\s*$"
_REINDEX: Final = (
    r"REINDEX\s*(?:\([^)]*\)\s*)?(?:(?:INDEX|TABLE|SCHEMA|DATABASE|SYSTEM)\s+)?CONCURRENTLY\b"
)
_PAIRS: Final = frozenset(
    {
        ("CREATE", "DATABASE"),
        ("DROP", "DATABASE"),
        ("CREATE", "TABLESPACE"),
        ("DROP", "TABLESPACE"),
        ("ALTER", "SYSTEM"),
        ("REINDEX", "DATABASE"),
        ("REINDEX", "SCHEMA"),
        ("REINDEX", "SYSTEM"),
    }
)


@dataclass(frozen=True, slots=True)
class Index:
    """The index that a ``CREATE INDEX CONCURRENTLY`` builds."""

    name: str
    """As the catalogue has it; empty when the server chooses one."""
    table: str
    """As written."""
    may_be_there: bool
    """It was written with ``IF NOT EXISTS``."""


def built_by(text: str) -> Index | None:
    """The index that a statement builds concurrently."""
    found = re.match(_CREATE, text, re.IGNORECASE)
    if found is None:
        return None
    return Index(_plain(found["name"] or ""), found["table"], bool(found["absent"]))


def _plain(name: str) -> str:
    """An identifier as the catalogue has it."""
    if name.startswith('"'):
        plain = name[1:-1].replace('""', '"')
    else:
        plain = "".join(each.lower() if each.isascii() else each for each in name)
    return plain.encode()[:_NAME_BYTES].decode(errors="ignore")


def rebuilds(text: str) -> bool:
    """Whether a statement is a ``REINDEX … CONCURRENTLY``."""
    return re.match(_REINDEX, text, re.IGNORECASE) is not None


def runs_alone(statement: Statement) -> str | None:
    """The words of a statement that cannot run in a transaction; None when it can."""
    words, text = statement.words, statement.text
    found = (
        (" ".join(words[:1]), words[:1] == ("VACUUM",) or words == ("CLUSTER",)),
        (" ".join(words[:2]), words[:2] in _PAIRS),
        ("CREATE INDEX CONCURRENTLY", built_by(text) is not None),
        ("DROP INDEX CONCURRENTLY", words[:3] == ("DROP", "INDEX", "CONCURRENTLY")),
        ("REINDEX CONCURRENTLY", rebuilds(text)),
        (
            "DETACH PARTITION CONCURRENTLY",
            words[:2] == ("ALTER", "TABLE")
            and re.search(_DETACH, text, re.IGNORECASE | re.DOTALL) is not None,
        ),
    )
    return next((name for name, holds in found if holds), None)
