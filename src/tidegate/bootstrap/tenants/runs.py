"""Keeps runs, their items and the claims on tenants in the cluster database.

Decides nothing about what comes next. A run's row is changed by compare-and-swap on ``version``; an
item by compare-and-swap on its state, under the run's lease, or by a person's verb for items that
nobody works on. A *claim* says which run a tenant belongs to: it is the reason why two runs never
work on one tenant; :mod:`.holds` decides about it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Integer,
    MetaData,
    Table,
    Text,
    bindparam,
    func,
    select,
)
from sqlalchemy.exc import IntegrityError

from tidegate.bootstrap.tenants import holds
from tidegate.bootstrap.tenants.model import (
    Item,
    ItemState,
    Run,
    RunOptions,
    RunState,
    Source,
    Wish,
)
from tidegate.bootstrap.tenants.store import (
    milliseconds,
    time_of,
    write_recorded,
    write_versions,
)
from tidegate.cluster.leases import Leases
from tidegate.cluster.ledger import Update
from tidegate.errors import ConflictError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, Row

    from tidegate.bootstrap.tenants.store import Complete
    from tidegate.cluster.database import ClusterDatabase
    from tidegate.cluster.leases import Lease

UPDATES: Final = (
    Update(
        "tenants.runs",
        (
            """
            CREATE TABLE tenant_run (
                id bigint NOT NULL PRIMARY KEY,
                version bigint NOT NULL,
                state text NOT NULL,
                wish text NOT NULL,
                message text NOT NULL,
                wave integer NOT NULL,
                waves integer NOT NULL,
                wave_opens_at_ms bigint,
                forgiven integer NOT NULL,
                created_at_ms bigint NOT NULL,
                ended_at_ms bigint,
                body text NOT NULL
            )
            """,
            """
            CREATE TABLE tenant_run_item (
                run_id bigint NOT NULL,
                tenant_id text NOT NULL,
                name text NOT NULL,
                wave integer NOT NULL,
                ordinal integer NOT NULL,
                state text NOT NULL,
                attempts integer NOT NULL,
                next_at_ms bigint,
                from_version text NOT NULL,
                to_version text NOT NULL,
                reason text NOT NULL,
                message text NOT NULL,
                took_ms double precision NOT NULL,
                PRIMARY KEY (run_id, tenant_id)
            )
            """,
            """
            CREATE TABLE tenant_claim (
                tenant_id text NOT NULL PRIMARY KEY,
                run_id bigint NOT NULL
            )
            """,
        ),
    ),
)
"""What runs add to the ledger of the cluster database."""

_META: Final = MetaData()
_RUN: Final = Table(
    "tenant_run",
    _META,
    Column("id", BigInteger),
    Column("version", BigInteger),
    Column("state", Text),
    Column("wish", Text),
    Column("message", Text),
    Column("wave", Integer),
    Column("waves", Integer),
    Column("wave_opens_at_ms", BigInteger),
    Column("forgiven", Integer),
    Column("created_at_ms", BigInteger),
    Column("ended_at_ms", BigInteger),
    Column("body", Text),
)
_ITEM: Final = Table(
    "tenant_run_item",
    _META,
    Column("run_id", BigInteger),
    Column("tenant_id", Text),
    Column("name", Text),
    Column("wave", Integer),
    Column("ordinal", Integer),
    Column("state", Text),
    Column("attempts", Integer),
    Column("next_at_ms", BigInteger),
    Column("from_version", Text),
    Column("to_version", Text),
    Column("reason", Text),
    Column("message", Text),
    Column("took_ms", Float),
)
#: One item, by compare-and-swap on its state; written once, because it runs for every tenant.
_SWAP_ITEM: Final = (
    _ITEM.update()
    .where(
        (_ITEM.c.run_id == bindparam("seen_run"))
        & (_ITEM.c.tenant_id == bindparam("seen_tenant"))
        & (_ITEM.c.state == bindparam("seen_state"))
    )
    .values(
        {
            column.name: bindparam(f"new_{column.name}")
            for column in _ITEM.c
            if column.name not in {"run_id", "tenant_id"}
        }
    )
)


@dataclass(frozen=True, slots=True)
class Progress:
    """What one step of the loop writes, all in one transaction."""

    items: tuple[tuple[ItemState, Item], ...] = ()
    """Each with the state it must have had."""
    versions: Mapping[str, str] | None = None
    """By tenant: its version after its commit."""
    hashes: Mapping[str, str] | None = None
    """By version: the text that a tenant got."""
    complete: Complete | None = None
    """Those of the tenants that have everything up to the target."""


class RunStore:
    """The runs of one cluster."""

    def __init__(self, database: ClusterDatabase) -> None:
        self._database = database
        self._leases = Leases(database)

    def create(self, run: Run, items: Sequence[Item]) -> Run:
        """Add a run and claim its tenants, all or nothing; the run with its id.

        Raises:
            ConflictError: another run has one of the tenants.
        """
        claimed = [item.tenant_id for item in items if not item.state.is_over]
        for _ in range(10):
            try:
                with self._database.transaction() as connection:
                    return self._insert(connection, run, items, claimed)
            except IntegrityError:
                continue  # another run got the id, or a tenant, at the same time
        raise ConflictError("other runs were created meanwhile", next_step="try again")

    def _insert(
        self, connection: Connection, run: Run, items: Sequence[Item], claimed: Sequence[str]
    ) -> Run:
        last = connection.execute(select(func.max(_RUN.c.id))).scalar()
        now = self._database.now(connection)
        made = replace(
            run,
            id=(last or 0) + 1,
            created_at=now,
            ended_at=now if run.state.is_over else None,
        )
        body = {
            "source": {"name": made.source.name, **made.source.to_json()},
            "target": made.target,
            "options": asdict(made.options),
            "selection": dict(made.selection),
            "at_target": made.at_target,
        }
        created_at = {"created_at_ms": milliseconds(now), "body": json.dumps(body, sort_keys=True)}
        connection.execute(_RUN.insert().values(id=made.id, **_run_values(made), **created_at))
        self.add_items(connection, made.id, items)
        if claimed and not made.state.is_over:
            holds.take(connection, made.id, made.source.name, claimed)
        return made

    def add_items(self, connection: Connection, run_id: int, items: Sequence[Item]) -> None:
        """Add items to a run, inside a transaction."""
        rows = [{"run_id": run_id, **_item_values(item)} for item in items]
        if rows:
            connection.execute(_ITEM.insert(), rows)

    def get(self, run_id: int | None) -> Run:
        """A run by its id, or the last one.

        Raises:
            NotFoundError: there is none.
        """
        query = select(_RUN)
        query = query.where(_RUN.c.id == run_id) if run_id is not None else query
        with self._database.read() as connection:
            row = connection.execute(query.order_by(_RUN.c.id.desc()).limit(1)).one_or_none()
        if row is None:
            raise NotFoundError(
                "no tenants have been upgraded yet" if run_id is None else f"no run {run_id}",
                next_step="tidegate tenant runs",
            )
        return _run(row)

    def observe(self, run_id: int) -> tuple[int, datetime]:
        """The version of a run's row, and the database's time; much cheaper than reading it."""
        query = select(_RUN.c.version).where(_RUN.c.id == run_id)
        with self._database.read() as connection:
            found: int = connection.execute(query).scalar_one()
            return found, self._database.now(connection)

    def all(self, *, states: Iterable[RunState] = (), limit: int = 100) -> list[Run]:
        """The newest runs, of some states or of any."""
        query = select(_RUN)
        wanted = [state.value for state in states]
        query = query.where(_RUN.c.state.in_(wanted)) if wanted else query
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(_RUN.c.id.desc()).limit(limit)).all()
        return [_run(row) for row in rows]

    def items(self, run_id: int) -> list[Item]:
        """All items of a run in order."""
        query = select(_ITEM).where(_ITEM.c.run_id == run_id)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(_ITEM.c.wave, _ITEM.c.ordinal)).all()
        return [_item(row) for row in rows]

    def some_items(
        self,
        run_id: int,
        state: ItemState,
        *,
        limit: int,
        slowest: bool = False,
        with_reason: bool = False,
    ) -> list[Item]:
        """The first items in a state: in order or the slowest ones, all or those with a reason."""
        query = select(_ITEM).where((_ITEM.c.run_id == run_id) & (_ITEM.c.state == state.value))
        query = query.where(_ITEM.c.reason != "") if with_reason else query
        order = (_ITEM.c.took_ms.desc(),) if slowest else (_ITEM.c.wave, _ITEM.c.ordinal)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(*order).limit(limit)).all()
        return [_item(row) for row in rows]

    def counts(self, run_id: int) -> dict[tuple[int, ItemState], int]:
        """How many items of each wave are in each state."""
        query = (
            select(_ITEM.c.wave, _ITEM.c.state, func.count())
            .where(_ITEM.c.run_id == run_id)
            .group_by(_ITEM.c.wave, _ITEM.c.state)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return {(wave, ItemState(state)): number for wave, state, number in rows}

    def swap(
        self,
        before: Run,
        after: Run,
        *,
        lease: Lease | None = None,
        items: Sequence[tuple[ItemState, Item]] = (),
        added: Sequence[Item] = (),
    ) -> Run:
        """Replace a run that was read, with some of its items.

        While it is running it has claims on what it is going to touch; otherwise none.

        Args:
            before: as read.
            after: what it shall be.
            lease: that the writer works under; None for a person's verb.
            items: changed ones, each with the state it must have.
            added: new ones.

        Raises:
            ConflictError: somebody changed the run or an item meanwhile, or has a tenant.
            LeaseLostError: the lease is another's.
        """
        try:
            with self._database.transaction() as connection:
                if lease is not None:
                    self._leases.check(connection, lease)
                now = self._database.now(connection)
                ended_at = (before.ended_at or now) if after.state.is_over else None
                made = replace(after, version=before.version + 1, ended_at=ended_at)
                self._swap_run(connection, before, made)
                self._swap_items(connection, before.id, items)
                self.add_items(connection, before.id, added)
                if made.state is not RunState.RUNNING:
                    holds.release_run(connection, made.id)
                elif items or added or before.state is not RunState.RUNNING:
                    holds.release(connection, holds.finished(item for _, item in items))
                    holds.take_unfinished(connection, made.id, made.source.name)
        except IntegrityError:
            raise _overtaken(before.id) from None
        return made

    def _swap_run(self, connection: Connection, before: Run, after: Run) -> None:
        seen = (_RUN.c.id == before.id) & (_RUN.c.version == before.version)
        statement = _RUN.update().where(seen).values(**_run_values(after))
        if connection.execute(statement).rowcount != 1:
            raise _overtaken(before.id)

    def _swap_items(
        self, connection: Connection, run_id: int, items: Iterable[tuple[ItemState, Item]]
    ) -> None:
        rows = [
            {
                "seen_run": run_id,
                "seen_tenant": item.tenant_id,
                "seen_state": state.value,
                **{
                    f"new_{name}": value
                    for name, value in _item_values(item).items()
                    if name != "tenant_id"
                },
            }
            for state, item in items
        ]
        if not rows:
            return
        if connection.dialect.supports_sane_multi_rowcount:
            changed = connection.execute(_SWAP_ITEM, rows).rowcount
        else:
            changed = sum(connection.execute(_SWAP_ITEM, row).rowcount for row in rows)
        if changed != len(rows):
            raise _overtaken(run_id)

    def progress(self, run: Run, lease: Lease, step: Progress) -> datetime:
        """Write what happened to tenants; the database's time.

        Raises:
            ConflictError: somebody changed an item meanwhile.
            LeaseLostError: the lease is another's; nothing was written.
        """
        try:
            with self._database.transaction() as connection:
                self._leases.check(connection, lease)
                now = self._database.now(connection)
                self._swap_items(connection, run.id, step.items)
                holds.release(connection, holds.finished(item for _, item in step.items))
                write_versions(
                    connection,
                    run.source.name,
                    step.versions or {},
                    milliseconds(now),
                    step.complete,
                )
                if step.hashes:
                    write_recorded(connection, run.source.name, step.hashes)
        except IntegrityError:
            raise _overtaken(run.id) from None
        return now


def _overtaken(run_id: int) -> ConflictError:
    return ConflictError(
        f"run {run_id} was changed meanwhile", next_step=f"tidegate tenant run {run_id}"
    )


def _run_values(run: Run) -> dict[str, Any]:
    opens_at, ended_at = run.wave_opens_at, run.ended_at
    return {
        "version": run.version,
        "state": run.state.value,
        "wish": run.wish.value,
        "message": run.message,
        "wave": run.wave,
        "waves": run.waves,
        "wave_opens_at_ms": None if opens_at is None else milliseconds(opens_at),
        "forgiven": run.forgiven,
        "ended_at_ms": None if ended_at is None else milliseconds(ended_at),
    }


def _run(row: Row[Any]) -> Run:
    body = json.loads(row.body)
    source = dict(body["source"])
    opens_at, ended_at = row.wave_opens_at_ms, row.ended_at_ms
    return Run(
        id=row.id,
        source=Source.from_json(source.pop("name"), source),
        target=body["target"],
        state=RunState(row.state),
        options=RunOptions(**body["options"]),
        selection=body["selection"],
        wish=Wish(row.wish),
        message=row.message,
        wave=row.wave,
        wave_opens_at=None if opens_at is None else time_of(opens_at),
        forgiven=row.forgiven,
        waves=row.waves,
        at_target=body["at_target"],
        created_at=time_of(row.created_at_ms),
        ended_at=None if ended_at is None else time_of(ended_at),
        version=row.version,
    )


def _item_values(item: Item) -> dict[str, Any]:
    return {
        "tenant_id": item.tenant_id,
        "name": item.name,
        "wave": item.wave,
        "ordinal": item.ordinal,
        "state": item.state.value,
        "attempts": item.attempts,
        "next_at_ms": None if item.next_at is None else milliseconds(item.next_at),
        "from_version": item.from_version,
        "to_version": item.to_version,
        "reason": item.reason,
        "message": item.message,
        "took_ms": item.took_ms,
    }


def _item(row: Row[Any]) -> Item:
    return Item(
        tenant_id=row.tenant_id,
        name=row.name,
        wave=row.wave,
        ordinal=row.ordinal,
        state=ItemState(row.state),
        attempts=row.attempts,
        next_at=None if row.next_at_ms is None else time_of(row.next_at_ms),
        from_version=row.from_version,
        to_version=row.to_version,
        reason=row.reason,
        message=row.message,
        took_ms=row.took_ms,
    )
