"""Tokens of the API, kept in the cluster database, so that every member knows the same ones.

Decides what a token is: a name, a role, a time after which it is no good. Only a hash of it is
kept. A token has 256 random bits, so a plain SHA-256 cannot be reversed by guessing. It knows no
HTTP, and not what a role may do.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import BigInteger, Column, MetaData, Table, Text, func, select
from sqlalchemy.exc import IntegrityError

from tidegate.cluster.ledger import Update
from tidegate.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)

if TYPE_CHECKING:
    from tidegate.cluster.database import ClusterDatabase

ROWS_MAX: Final = 1000
TTL_MIN_S: Final = 60.0
TTL_MAX_S: Final = 10 * 365 * 86400.0

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_CREATE: Final = """
CREATE TABLE access_token (
    name text NOT NULL PRIMARY KEY,
    sha256 text NOT NULL,
    role text NOT NULL,
    created_at_ms bigint NOT NULL,
    expires_at_ms bigint,
    created_by text NOT NULL
)
"""
UPDATES: Final = (Update("cluster.access_tokens", (_CREATE,)),)
"""What this adds to the ledger of the cluster database."""

_TOKENS: Final = Table(
    "access_token",
    MetaData(),
    Column("name", Text),
    Column("sha256", Text),
    Column("role", Text),
    Column("created_at_ms", BigInteger),
    Column("expires_at_ms", BigInteger),
    Column("created_by", Text),
)


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A token as the database has it; times in the database's clock, milliseconds.

    Attributes:
        sha256: of the token, hex.
        expires_at_ms: None: it does not expire.
        created_by: the name of the token that made it.
    """

    name: str
    sha256: str
    role: str
    created_at_ms: int
    expires_at_ms: int | None
    created_by: str

    def is_good(self, now_ms: int) -> bool:
        """Whether it has not expired."""
        return self.expires_at_ms is None or now_ms < self.expires_at_ms


def hash_of(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


class AccessTokens:
    """All API tokens of a cluster."""

    def __init__(self, database: ClusterDatabase) -> None:
        self._database = database

    def create(
        self, name: str, token: str, role: str, *, ttl_s: float | None, created_by: str
    ) -> AccessToken:
        """Keep a token; an expired one of the same name is replaced.

        Raises:
            AlreadyExistsError: there is a good one of that name.
            InvalidArgumentError: the name or the time is out of bounds.
            FailedPreconditionError: there are too many.
        """
        check(name, ttl_s)
        try:
            with self._database.transaction() as connection:
                now = round(self._database.now(connection).timestamp() * 1000)
                connection.execute(
                    _TOKENS.delete().where(
                        (_TOKENS.c.name == name) & (_TOKENS.c.expires_at_ms <= now)
                    )
                )
                count = connection.execute(select(func.count()).select_from(_TOKENS)).scalar_one()
                if count >= ROWS_MAX:
                    raise FailedPreconditionError(
                        f"there are {count} tokens already",
                        next_step="revoke some: tidegate token list",
                    )
                expires = None if ttl_s is None else now + round(ttl_s * 1000)
                made = AccessToken(name, hash_of(token), role, now, expires, created_by)
                values = {field: getattr(made, field) for field in AccessToken.__slots__}
                connection.execute(_TOKENS.insert().values(**values))
        except IntegrityError:
            raise AlreadyExistsError(
                f"there is a token {name} already",
                next_step=f"choose another name, or `tidegate token revoke {name}` first",
            ) from None
        return made

    def list(self) -> list[AccessToken]:
        """All tokens, by name."""
        with self._database.read() as connection:
            rows = connection.execute(select(_TOKENS).order_by(_TOKENS.c.name))
            return [AccessToken(*row) for row in rows]

    def revoke(self, name: str, *, dry_run: bool = False) -> None:
        """Forget a token.

        Raises:
            NotFoundError: there is none.
        """
        with self._database.transaction() as connection:
            found = connection.execute(
                select(_TOKENS.c.name).where(_TOKENS.c.name == name)
            ).one_or_none()
            if found is None:
                raise NotFoundError(f"there is no token {name}", next_step="tidegate token list")
            if not dry_run:
                connection.execute(_TOKENS.delete().where(_TOKENS.c.name == name))


def check(name: str, ttl_s: float | None) -> None:
    """Refuse a name or a time that no token may have.

    Raises:
        InvalidArgumentError: naming it.
    """
    if not _NAME.fullmatch(name):
        raise InvalidArgumentError(
            f"{name!r} is not a name for a token", next_step="use letters, digits, _ . and -"
        )
    if ttl_s is not None and not TTL_MIN_S <= ttl_s <= TTL_MAX_S:
        raise InvalidArgumentError(
            f"a token of {ttl_s:g} s is out of bounds",
            next_step=f"choose between {TTL_MIN_S:g} s and {TTL_MAX_S:g} s, or let it not expire",
        )
