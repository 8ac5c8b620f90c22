"""Looks whether a server takes values of a type, and what it makes of them.

Decides which built-in types are not the same everywhere. A server that was built without libxml has
the type ``xml`` and takes no value of it; ``lc_monetary`` says how many digits of ``money`` are
behind the point. A table with such a column can be made; its rows cannot, or mean other amounts.
Nothing is changed by looking.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, LiteralString

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg import Connection
    from psycopg.rows import TupleRow

#: What a server answers of a type where it takes no value.
NO_VALUE: Final = ""

#: By type: a query whose answer is the same on servers that agree.
_PROBES: Final[dict[str, LiteralString]] = {
    "money": "SELECT encode(cash_send(1::money), 'hex')",
    "xml": "SELECT '<a/>'::xml::text",
}


def read_taken(connection: Connection[TupleRow], types: Iterable[str]) -> dict[str, str]:
    """What a server makes of a value of each of these types that servers may disagree about.

    Args:
        connection: an autocommit session, or one in a transaction.
        types: names of built-in types; most are left out of the answer.
    """
    found = {}
    for name in sorted(_PROBES.keys() & set(types)):
        try:
            with connection.transaction():
                row = connection.execute(_PROBES[name]).fetchone()
        except psycopg.errors.FeatureNotSupported:
            row = None
        found[name] = str(row[0]) if row else NO_VALUE
    return found
