"""What the target shards say of VDiffs, and what must hold before one is made.

Decides which VDiff a request means and what it may ask for. It must not run anything.
"""

from __future__ import annotations

import uuid as uuids
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tidegate import steps
from tidegate.dataplane import streams
from tidegate.dataplane.model import StreamState
from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.sidecar import installation as sidecar
from tidegate.engines.postgres.sidecar import vdiff_tables
from tidegate.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from tidegate.topology.names import TableName
from tidegate.workflow.vdiff.links import targets_of
from tidegate.workflow.vdiff.model import ShardRecord, VDiffOptions, VDiffState, summary
from tidegate.workflow.vdiff.sides import canonical, spans_with

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tidegate.dataplane.model import SpanSpec
    from tidegate.workflow.vdiff.links import Session

CREATED = steps.declare(
    "vdiff.created", runs_in="node", plan="vdiff", description="a VDiff is recorded at one shard"
)


@contextmanager
def at_targets(spans: Sequence[SpanSpec]) -> Iterator[dict[str, Session]]:
    """A session at each target shard, by name; those still in it are closed at the end."""
    if not spans:
        raise InvalidArgumentError(
            "the workflow has no streams to compare", next_step="tidegate workflow list"
        )
    shards: dict[str, Session] = {}
    try:
        for shard, target in targets_of(spans).items():
            shards[shard] = connect(target.endpoint, purpose="vdiff")
        yield shards
    finally:
        for session in shards.values():
            session.close()


def checked_uuid(text: str) -> str:
    """A UUID in its usual form.

    Raises:
        InvalidArgumentError: it is none.
    """
    try:
        return str(uuids.UUID(text))
    except ValueError:
        raise InvalidArgumentError(
            f"{text!r} is not a UUID", next_step="leave it out, or give one as uuidgen prints it"
        ) from None


def checked_tables(spans: Sequence[SpanSpec], options: VDiffOptions) -> list[str]:
    """The tables a VDiff is asked to compare.

    Raises:
        NotFoundError: the workflow does not carry one.
    """
    known = {canonical(rule) for span in spans for rule in span.tables}
    asked = {str(TableName.parse(name)) for name in options.tables}
    unknown = sorted(asked - known)
    if unknown:
        raise NotFoundError(
            f"the workflow does not carry {', '.join(unknown)}",
            next_step=f"its tables are {', '.join(sorted(known))}",
        )
    return sorted(asked or known)


def insert_rows(
    spans: Sequence[SpanSpec],
    shards: dict[str, Session],
    uuid: str,
    tables: Sequence[str],
    options: VDiffOptions,
) -> None:
    """Record a VDiff at every shard, or at none.

    Raises:
        AlreadyExistsError: the UUID is taken.
    """
    made: list[str] = []
    for shard, session in shards.items():
        created = vdiff_tables.create(
            session,
            uuid=uuid,
            shard=shard,
            workflow_uuid=spans[0].workflow_uuid,
            workflow=spans[0].workflow,
            keyspace=spans[0].target_keyspace,
            direction=spans[0].direction,
            state=VDiffState.PENDING if options.auto_start else VDiffState.STOPPED,
            options=options.to_json(),
            tables=[t for t in tables if shard in targets_of(spans_with(spans, t))],
        )
        if not created:
            for undone in made:
                vdiff_tables.delete(shards[undone], spans[0].workflow_uuid, uuid)
            raise _taken(uuid)
        made.append(shard)
        steps.reached(CREATED)


def _taken(uuid: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"there is a VDiff {uuid} already", next_step=f"tidegate vdiff show {uuid}"
    )


def planned(
    spans: Sequence[SpanSpec], shards: dict[str, Session], uuid: str, tables: Sequence[str]
) -> dict[str, Any]:
    """What a VDiff would be: its name, tables and shards.

    Raises:
        AlreadyExistsError: the UUID is taken.
    """
    if any(
        sidecar.is_installed(session) and vdiff_tables.state_of(session, uuid, shard)
        for shard, session in shards.items()
    ):
        raise _taken(uuid)
    return {
        "Workflow": spans[0].workflow,
        "Keyspace": spans[0].target_keyspace,
        "UUID": uuid,
        "Tables": list(tables),
        "Shards": ",".join(shards),
    }


def wanted_shards(records: Sequence[ShardRecord], asked: Sequence[str]) -> list[str]:
    """The shards a verb is about.

    Raises:
        NotFoundError: the VDiff has no such shard.
    """
    known = [record.shard for record in records]
    if unknown := sorted(set(asked) - set(known)):
        raise NotFoundError(
            f"the VDiff has no target shard {', '.join(unknown)}",
            next_step=f"its shards are {', '.join(known)}",
        )
    return [shard for shard in known if shard in asked] if asked else known


def report_of(shards: dict[str, Session], spans: Sequence[SpanSpec], which: str) -> dict[str, Any]:
    """The report of one VDiff, from what every shard says.

    Raises:
        NotFoundError: there is none.
    """
    records = records_of(shards, spans, which)
    return summary(records[0].facts["uuid"], records, datetime.now(UTC))


def require_streams(
    spans: Sequence[SpanSpec], shards: dict[str, Session], *, install: bool
) -> None:
    """Every stream must be running.

    Raises:
        FailedPreconditionError: one is not, or is frozen.
    """
    for span in spans:
        for target in span.targets:
            session = shards[target.shard]
            if install:
                sidecar.install(session)
            row = streams.read_stream(session, target.stream_id)
            if row.frozen:
                raise FailedPreconditionError(
                    f"workflow {span.workflow} is frozen: its traffic has been switched",
                    next_step="compare the reverse workflow instead",
                )
            if row.state is not StreamState.RUNNING:
                raise FailedPreconditionError(
                    f"stream {row.id} of workflow {span.workflow} at shard {target.shard} is"
                    f" {row.state}: {row.message or 'nothing can be compared yet'}",
                    next_step=f"tidegate workflow show {span.workflow}; wait until it is Running",
                )


def records_of(
    shards: dict[str, Session], spans: Sequence[SpanSpec], which: str
) -> list[ShardRecord]:
    """What each shard says of one VDiff.

    Raises:
        NotFoundError: there is none.
    """
    uuid = None if which == "last" else checked_uuid(which)
    if uuid is None:
        rows = [
            row
            for session in shards.values()
            for row in vdiff_tables.listed(session, spans[0].workflow_uuid)
        ]
        if not rows:
            raise NotFoundError(
                f"workflow {spans[0].workflow} has no VDiff",
                next_step=f"tidegate vdiff create -w {spans[0].workflow}",
            )
        uuid = str(max(rows, key=lambda row: (row["created_at"], row["uuid"]))["uuid"])
    records = []
    for shard, session in shards.items():
        for row in vdiff_tables.listed(session, spans[0].workflow_uuid):
            if row["uuid"] == uuid and row["shard"] == shard:
                tables = [t for t in vdiff_tables.tables(session, uuid) if t["shard"] == shard]
                records.append(ShardRecord(shard, row, tables))
    if not records:
        raise not_found(uuid)
    return records


def not_found(uuid: str) -> NotFoundError:
    """The error of a UUID that no VDiff has."""
    return NotFoundError(
        f"there is no VDiff {uuid}", next_step="tidegate vdiff show all lists those there are"
    )
