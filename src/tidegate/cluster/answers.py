"""Answers that were given to requests with a key: the same request gets the same answer again.

Decides what a key means: it belongs to the first request that used it, for :data:`KEPT_S`. While
that one is worked on others wait; once it was answered they get its answer; another request with
the key is refused. A request that failed changed nothing, so its key is free again.

Rows are bounded in number and size, and expired ones are removed by whoever comes next. A request
whose process died is taken over by the next one with its key: what it asks for is guarded by its
own names and locks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text, delete, func, select
from sqlalchemy.exc import IntegrityError

from tidegate.cluster.ledger import Update
from tidegate.errors import IdempotencyKeyError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tidegate.cluster.database import ClusterDatabase

KEPT_S: Final = 24 * 3600
ROWS_MAX: Final = 10_000
REMOVED_AT_ONCE: Final = 100
BODY_MAX_CHARS: Final = 256 * 1024
"""A larger answer is not kept; a repeated request is told so by what it finds."""

_CREATE: Final = """
CREATE TABLE request_answer (
    name text NOT NULL PRIMARY KEY,
    request text NOT NULL,
    holder text NOT NULL,
    status integer NOT NULL,
    body text NOT NULL,
    created_at_ms bigint NOT NULL,
    expires_at_ms bigint NOT NULL
)
"""  # status 0: worked on
UPDATES: Final = (Update("cluster.request_answers", (_CREATE,)),)
"""What this adds to the ledger of the cluster database."""

_ANSWERS: Final = Table(
    "request_answer",
    MetaData(),
    Column("name", Text),
    Column("request", Text),
    Column("holder", Text),
    Column("status", Integer),
    Column("body", Text),
    Column("created_at_ms", BigInteger),
    Column("expires_at_ms", BigInteger),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered; ``status`` 0: somebody works on it."""

    status: int
    body: str


WORKED_ON: Final = Answer(0, "")


class Answers:
    """The answers of one cluster; ``holder`` names this process among all that ever ran."""

    def __init__(self, database: ClusterDatabase, holder: str) -> None:
        self._database = database
        self._holder = holder

    def begin(self, key: str, request: str) -> Answer | None:
        """Take a key for a request; None: it is the caller's to answer.

        Args:
            key: as the client chose it.
            request: a hash of everything the request says.

        Raises:
            IdempotencyKeyError: the key belongs to another request.
        """
        try:
            with self._database.transaction() as connection:
                return self._begin(connection, key, request)
        except IntegrityError:  # somebody else took it at the same moment
            return WORKED_ON

    def _begin(self, connection: Connection, key: str, request: str) -> Answer | None:
        now_ms = int(self._database.now(connection).timestamp() * 1000)
        self._make_room(connection, now_ms)
        found = connection.execute(select(_ANSWERS).where(_ANSWERS.c.name == key)).one_or_none()
        if found is not None:
            if found.request != request:
                raise IdempotencyKeyError(
                    f"the idempotency key {key} was used for another request",
                    next_step="use a new key for each request; only repetitions share one",
                )
            if found.status or found.holder == self._holder:
                return Answer(found.status, found.body)
            connection.execute(
                _ANSWERS.update().where(_ANSWERS.c.name == key).values(holder=self._holder)
            )
            return None
        connection.execute(
            _ANSWERS.insert().values(
                name=key,
                request=request,
                holder=self._holder,
                status=0,
                body="",
                created_at_ms=now_ms,
                expires_at_ms=now_ms + KEPT_S * 1000,
            )
        )
        return None

    def _make_room(self, connection: Connection, now_ms: int) -> None:
        connection.execute(delete(_ANSWERS).where(_ANSWERS.c.expires_at_ms <= now_ms))
        count = connection.execute(select(func.count()).select_from(_ANSWERS)).scalar_one()
        if count >= ROWS_MAX:
            oldest = (
                select(_ANSWERS.c.name)
                .where(_ANSWERS.c.status != 0)
                .order_by(_ANSWERS.c.created_at_ms)
                .limit(REMOVED_AT_ONCE)
            )
            names = connection.execute(oldest).scalars().all()
            connection.execute(delete(_ANSWERS).where(_ANSWERS.c.name.in_(names)))

    def finish(self, key: str, answer: Answer) -> None:
        """Keep the answer to a request that :meth:`begin` gave to this process."""
        if len(answer.body) > BODY_MAX_CHARS:
            self.forget(key)
            return
        with self._database.transaction() as connection:
            connection.execute(
                _ANSWERS.update()
                .where(_ANSWERS.c.name == key, _ANSWERS.c.holder == self._holder)
                .values(status=answer.status, body=answer.body)
            )

    def forget(self, key: str) -> None:
        """Free the key of a request that changed nothing."""
        with self._database.transaction() as connection:
            connection.execute(
                delete(_ANSWERS).where(
                    _ANSWERS.c.name == key,
                    _ANSWERS.c.holder == self._holder,
                    _ANSWERS.c.status == 0,
                )
            )
