"""Which run has a tenant, so that two never work on one, and what another run may do about it.

A run that is worked on has a *claim* on each tenant that it is going to touch; it ends with the
tenant, and all of them end when the run is paused, stopped or over. A paused or stopped run keeps
other runs of its own source away from the tenants that it has not finished, because it stopped for
a reason; runs of other sources go on, and it takes its tenants again when it is resumed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, Column, Table, Text, select

from tidegate.bootstrap.tenants.model import ItemState, RunState
from tidegate.bootstrap.tenants.store import META, slices
from tidegate.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Connection

CLAIM: Final = Table("tenant_claim", META, Column("tenant_id", Text), Column("run_id", BigInteger))
_RUN: Final = Table(
    "tenant_run", META, Column("id", BigInteger), Column("state", Text), Column("body", Text)
)
_ITEM: Final = Table(
    "tenant_run_item",
    META,
    Column("run_id", BigInteger),
    Column("tenant_id", Text),
    Column("state", Text),
)
_WAITING: Final = (RunState.PAUSED.value, RunState.STOPPED.value)
_UNTOUCHED: Final = (ItemState.PENDING.value, ItemState.RUNNING.value)
_UNFINISHED: Final = (*_UNTOUCHED, ItemState.FAILED.value)
SHOWN_MAX: Final = 20


def take(connection: Connection, run_id: int, source: str, tenants: Sequence[str]) -> None:
    """Claim tenants for a run that is worked on; those it has already stay its own.

    Raises:
        ConflictError: another run has one of them; the message says what can be done.
        IntegrityError: another run took one at the same moment.
    """
    taken: dict[str, int] = {}
    for ids in slices(tenants):
        query = select(CLAIM.c.tenant_id, CLAIM.c.run_id).where(CLAIM.c.tenant_id.in_(ids))
        taken |= dict(connection.execute(query).all())
    others = {tenant: other for tenant, other in taken.items() if other != run_id}
    _refuse_worked_on(connection, others)
    _refuse_waiting(connection, run_id, source, tenants)
    rows = [{"tenant_id": each, "run_id": run_id} for each in tenants if taken.get(each) != run_id]
    if rows:
        connection.execute(CLAIM.insert(), rows)


def _refuse_worked_on(connection: Connection, others: dict[str, int]) -> None:
    """Refuse tenants of runs that are worked on; what is left of others is taken away."""
    found = sorted(set(others.values()))
    query = select(_RUN.c.id).where(_RUN.c.id.in_(found) & (_RUN.c.state == RunState.RUNNING.value))
    worked_on = sorted(connection.execute(query).scalars()) if found else []
    theirs = sorted(tenant for tenant, run in others.items() if run in worked_on)
    if theirs:
        names = ", ".join(map(str, worked_on))
        raise ConflictError(
            f"{len(theirs)} of the tenants are being upgraded by run {names}",
            next_step=f"wait for it: tidegate tenant run {worked_on[0]} --wait; or end it:"
            f" tidegate tenant cancel {worked_on[0]}",
            runs=worked_on,
            tenants=theirs[:SHOWN_MAX],
        )
    release(connection, [*others])


def _refuse_waiting(
    connection: Connection, run_id: int, source: str, tenants: Sequence[str]
) -> None:
    """Refuse tenants that a paused or stopped run of the same source has not finished."""
    query = select(_RUN.c.id, _RUN.c.state, _RUN.c.body).where(_RUN.c.state.in_(_WAITING))
    for other, state, body in connection.execute(query.order_by(_RUN.c.id)).all():
        if other == run_id or json.loads(body)["source"]["name"] != source:
            continue
        theirs = sorted(set(tenants) & set(_items(connection, other, _UNFINISHED)))
        if theirs:
            goes_on = "resume" if state == RunState.PAUSED else "retry"
            raise ConflictError(
                f"{len(theirs)} of the tenants wait in run {other} of the same source, which is"
                f" {state}",
                next_step=f"go on with it: tidegate tenant {goes_on} {other}; or end it:"
                f" tidegate tenant cancel {other}; or leave them out with --without",
                runs=[other],
                tenants=theirs[:SHOWN_MAX],
            )


def _items(connection: Connection, run_id: int, states: Iterable[str]) -> list[str]:
    query = select(_ITEM.c.tenant_id).where(_ITEM.c.run_id == run_id)
    return list(connection.execute(query.where(_ITEM.c.state.in_(list(states)))).scalars())


def take_unfinished(connection: Connection, run_id: int, source: str) -> None:
    """Claim what a run that goes on is still going to touch.

    Raises:
        ConflictError: another run has one of the tenants.
    """
    take(connection, run_id, source, _items(connection, run_id, _UNTOUCHED))


def release(connection: Connection, tenants: Sequence[str]) -> None:
    """End the claims on tenants."""
    for ids in slices(tenants):
        connection.execute(CLAIM.delete().where(CLAIM.c.tenant_id.in_(ids)))


def release_run(connection: Connection, run_id: int) -> None:
    """End all claims of a run."""
    connection.execute(CLAIM.delete().where(CLAIM.c.run_id == run_id))


def finished(items: Iterable[Any]) -> list[str]:
    """The tenants that their run does not touch any more."""
    over = {ItemState.DONE, ItemState.SKIPPED}
    return [item.tenant_id for item in items if item.state in over]
