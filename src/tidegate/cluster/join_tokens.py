"""Tokens by which one new member may join: used once, within a time, for one name.

Decides what a token carries and when it is good: for one node, until that has joined. A token names
the members to ask and the fingerprint of the cluster's authority, so that the joining node knows
whom it speaks to before it says the secret. The cluster database keeps a hash of the secret only,
and the row of a used token stays, so that a second use is told from an unknown one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, Column, MetaData, Table, Text, inspect, select
from sqlalchemy.exc import IntegrityError

from tidegate.cluster.ledger import Update
from tidegate.errors import AlreadyExistsError, InvalidArgumentError, JoinTokenError, NotFoundError

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection

    from tidegate.cluster.database import ClusterDatabase

PREFIX: Final = "tgjoin_"
SECRET_BYTES: Final = 32
MIN_TTL_S: Final = 60.0
MAX_TTL_S: Final = 7 * 86400.0

_CREATE: Final = """
CREATE TABLE join_token (
    name text NOT NULL PRIMARY KEY,
    secret_sha256 text NOT NULL,
    created_at_ms bigint NOT NULL,
    expires_at_ms bigint NOT NULL,
    used_at_ms bigint
)
"""
UPDATES: Final = (Update("cluster.join_tokens", (_CREATE,)),)

_TOKENS: Final = Table(
    "join_token",
    MetaData(),
    Column("name", Text),
    Column("secret_sha256", Text),
    Column("created_at_ms", BigInteger),
    Column("expires_at_ms", BigInteger),
    Column("used_at_ms", BigInteger),
)


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What a person carries to the new node.

    Attributes:
        name: the member it is for.
        secret: hex; not shown in ``repr``.
        addresses: HOST:PORT of members to ask.
        authority: SHA-256 fingerprint of the cluster's authority.
    """

    name: str
    secret: str
    addresses: tuple[str, ...]
    authority: str

    def __repr__(self) -> str:
        return f"JoinToken({self.name!r})"

    def encode(self) -> str:
        """One word."""
        told = {"n": self.name, "s": self.secret, "a": self.addresses, "f": self.authority}
        text = json.dumps(told, separators=(",", ":")).encode()
        return PREFIX + base64.urlsafe_b64encode(text).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> JoinToken:
        """Read one word.

        Raises:
            InvalidArgumentError: it is no token, or was cut short.
        """
        found = cls._decoded(text.strip())
        if found is None or not found.addresses:
            raise InvalidArgumentError(
                "this is not a whole join token",
                next_step="copy it again, or make another: tidegate cluster token create NAME",
            )
        return found

    @classmethod
    def _decoded(cls, text: str) -> JoinToken | None:
        if not text.startswith(PREFIX):
            return None
        raw = text.removeprefix(PREFIX)
        try:
            told = json.loads(base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4)))
            return cls(
                name=str(told["n"]),
                secret=bytes.fromhex(told["s"]).hex(),
                addresses=tuple(map(str, told["a"])),
                authority=bytes.fromhex(told["f"]).hex(),
            )
        except (ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token as the database has it; times in the database's clock, milliseconds."""

    name: str
    secret_sha256: str
    created_at_ms: int
    expires_at_ms: int
    used_at_ms: int | None

    def refusal(self, secret: str, now_ms: int, *, is_joining: bool = False) -> str | None:
        """Why the token is no good now; None when it is.

        Args:
            secret: that is shown.
            now_ms: the database's time.
            is_joining: the member that used it has not joined yet.
        """
        given = hashlib.sha256(secret.encode()).hexdigest()
        if not hmac.compare_digest(given, self.secret_sha256):
            return "its secret is wrong"
        if self.used_at_ms is not None and not is_joining:
            return "it has been used"
        if now_ms >= self.expires_at_ms:
            return f"it expired {(now_ms - self.expires_at_ms) / 1000:.0f} s ago"
        return None


def forget_all(connection: Connection) -> int:
    """Take every token away: they were made by a cluster that this database is not of any more."""
    if not inspect(connection).has_table(_TOKENS.name):
        return 0
    return connection.execute(_TOKENS.delete()).rowcount


class JoinTokens:
    """All join tokens of a cluster."""

    def __init__(self, database: ClusterDatabase) -> None:
        self._database = database

    def create(self, name: str, secret: str, ttl_s: float) -> TokenRow:
        """Note a token for ``name``; one that is used or expired is replaced.

        Raises:
            AlreadyExistsError: there is one that is still good.
            InvalidArgumentError: the time is out of bounds.
        """
        if not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
            raise InvalidArgumentError(
                f"a join token of {ttl_s:g} s is out of bounds",
                next_step=f"choose between {MIN_TTL_S:g} and {MAX_TTL_S:g} s",
            )
        try:
            with self._database.transaction() as connection:
                now = _milliseconds(self._database.now(connection))
                row = TokenRow(
                    name,
                    hashlib.sha256(secret.encode()).hexdigest(),
                    now,
                    now + round(ttl_s * 1000),
                    None,
                )
                gone = _TOKENS.delete().where(
                    (_TOKENS.c.name == name)
                    & (_TOKENS.c.used_at_ms.is_not(None) | (_TOKENS.c.expires_at_ms <= now))
                )
                connection.execute(gone)
                connection.execute(_TOKENS.insert().values(**_values(row)))
        except IntegrityError:
            raise AlreadyExistsError(
                f"there is a join token for {name} already",
                next_step=f"use it, or `tidegate cluster token revoke {name}` first",
            ) from None
        return row

    def list(self) -> list[TokenRow]:
        """All tokens, by name."""
        with self._database.read() as connection:
            rows = connection.execute(select(_TOKENS).order_by(_TOKENS.c.name))
            return [TokenRow(*row) for row in rows]

    def revoke(self, name: str) -> None:
        """Forget a token.

        Raises:
            NotFoundError: there is none.
        """
        with self._database.transaction() as connection:
            found = connection.execute(_TOKENS.delete().where(_TOKENS.c.name == name))
            if found.rowcount == 0:
                raise NotFoundError(
                    f"there is no join token for {name}",
                    next_step="tidegate cluster token list",
                )

    def redeem(
        self, connection: Connection, name: str, secret: str, *, is_joining: bool = False
    ) -> None:
        """Use a token, in the transaction that lets the member in.

        Args:
            connection: of that transaction.
            name: of the member.
            secret: that the node shows.
            is_joining: the node was let in before and has not joined yet. Only a join that came to
                its end spends a token; until then the same node may try again.

        Raises:
            JoinTokenError: it is unknown, wrong, used or expired, or was used just now.
        """
        row = connection.execute(select(_TOKENS).where(_TOKENS.c.name == name)).one_or_none()
        now = _milliseconds(self._database.now(connection))
        if row is None:
            reason: str | None = "there is none"
        else:
            reason = TokenRow(*row).refusal(secret, now, is_joining=is_joining)
        if reason is None:
            was = None if row is None else row.used_at_ms
            unused = (_TOKENS.c.name == name) & _TOKENS.c.used_at_ms.is_not_distinct_from(was)
            done = connection.execute(_TOKENS.update().where(unused).values(used_at_ms=now))
            reason = None if done.rowcount == 1 else "it has been used just now"
        if reason is not None:
            raise JoinTokenError(
                f"the join token for {name} is refused: {reason}",
                next_step=f"make another: tidegate cluster token create {name}",
                name=name,
            )


def _values(row: TokenRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in TokenRow.__slots__}


def _milliseconds(time: datetime) -> int:
    return round(time.timestamp() * 1000)
