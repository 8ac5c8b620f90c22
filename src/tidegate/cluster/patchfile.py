"""A patch: a file of SQL that an operator leaves for the next start of a node.

Decides what such a file may hold, where one statement ends, and that each text is run once. It is
read and checked before anything changes; :class:`tidegate.cluster.schema.Schema` runs it at the
very start of its transaction.

The text's hash is written in that transaction, and the file is renamed after it: a transaction that
is undone keeps the file for the next start, and a node that dies between the two finds the hash and
only renames. A text that was run is not run again, in whichever file of whichever node it comes; to
run it again, add a comment to it.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import BigInteger, Column, MetaData, Table, Text, inspect, select

from tidegate.errors import InvalidArgumentError

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from sqlalchemy import Connection

    from tidegate.cluster.files import FileSystem

FILE_NAME: Final = "patch.global.sql"
MAX_BYTES: Final = 1 << 20
TABLE: Final = "schema_patch"

_CREATE: Final = """
CREATE TABLE schema_patch (
    sha256 text NOT NULL PRIMARY KEY,
    file text NOT NULL,
    applied_at_ms bigint NOT NULL
)
"""
_PATCHES: Final = Table(
    TABLE,
    MetaData(),
    Column("sha256", Text),
    Column("file", Text),
    Column("applied_at_ms", BigInteger),
)
_COMMENTS: Final = re.compile(r"\A(?:\s+|--[^\n]*(?:\n|\Z)|/\*.*?\*/)+", re.DOTALL)
_NOT_IN_A_TRANSACTION: Final = re.compile(
    r"(?:ABORT|ATTACH|BEGIN|COMMIT|DETACH|END|PRAGMA|RELEASE|ROLLBACK|SAVEPOINT|START|VACUUM)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch file as it was read."""

    path: Path
    sha256: str
    statements: tuple[str, ...]

    @property
    def done_path(self) -> Path:
        """What the file is called once it has been run."""
        return self.path.with_name(f"{self.path.name}.applied-{self.sha256[:12]}")


def statements_of(text: str) -> tuple[str, ...]:
    """Cut a text of SQL into its statements.

    A semicolon ends one unless it stands in quotes, a comment, or the body of a trigger.

    Raises:
        InvalidArgumentError: the last statement has no end, or one would end the transaction.
    """
    found: list[str] = []
    begun = ""
    for piece in re.split(r"(?<=;)", text):
        begun += piece
        if sqlite3.complete_statement(begun):
            found.append(begun)
            begun = ""
    if _COMMENTS.sub("", begun):
        found.append(begun + "\n;")
        if not sqlite3.complete_statement(found[-1]):
            raise InvalidArgumentError(
                f"a statement has no end: {begun.strip()[:80]!r}",
                next_step="close its quotes and comments, and end it with a semicolon",
            )
    bare = [_COMMENTS.sub("", statement).strip().removesuffix(";").strip() for statement in found]
    for statement in bare:
        if _NOT_IN_A_TRANSACTION.match(statement):
            raise InvalidArgumentError(
                f"a patch may not hold the statement {statement[:80]!r}",
                next_step="take it out; the whole patch is one transaction already",
            )
    return tuple(statement for statement in bare if statement)


def read(files: FileSystem, path: Path) -> Patch | None:
    """The patch in a file; None when there is no file.

    Raises:
        InvalidArgumentError: it is too large, no text, or holds what a patch may not hold.
        ClusterDatabaseError: it cannot be read.
    """
    content = files.read(path, MAX_BYTES + 1)
    if content is None:
        return None
    if len(content) > MAX_BYTES:
        raise InvalidArgumentError(
            f"the patch {path} is larger than {MAX_BYTES} bytes",
            next_step="run the rest of it as a patch of its own afterwards",
        )
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidArgumentError(
            f"the patch {path} is no text in UTF-8", next_step="write it in UTF-8"
        ) from None
    try:
        return Patch(path, hashlib.sha256(content).hexdigest(), statements_of(text))
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            f"failed to execute queries from {path}: {error.message}", next_step=error.next_step
        ) from None


def was_run(connection: Connection, patch: Patch) -> bool:
    """Whether the database has had this text already."""
    if not inspect(connection).has_table(TABLE):
        return False
    query = select(_PATCHES.c.file).where(_PATCHES.c.sha256 == patch.sha256)
    return connection.execute(query).one_or_none() is not None


def record(connection: Connection, patch: Patch, now: datetime) -> None:
    """Note that the database has had this text."""
    if not inspect(connection).has_table(TABLE):
        connection.exec_driver_sql(_CREATE)
    connection.execute(
        _PATCHES.insert().values(
            sha256=patch.sha256,
            file=str(patch.path),
            applied_at_ms=round(now.timestamp() * 1000),
        )
    )
