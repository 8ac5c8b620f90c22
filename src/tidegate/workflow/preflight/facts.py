"""Everything a preflight looks at, as frozen values, and what is asked for.

Decides what a request means for the tables there are (:func:`selected_tables`), and adds what is
the workflow's to what the engine's own checks look at. It must not read anything:
:mod:`tidegate.workflow.preflight.gather` fills these values, so that every check is a pure function
of them and one preflight sees one moment.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, override

from tidegate.dataplane.model import Direction
from tidegate.engines.postgres.facts import Sides
from tidegate.workflow.catalogue import drift
from tidegate.workflow.preflight.overlaps import Overlaps
from tidegate.workflow.state import WorkflowType

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tidegate.topology.keyrange import KeyRange
    from tidegate.topology.names import TableName
    from tidegate.workflow.catalogue import Catalogue, Drift
    from tidegate.workflow.preflight.check import Verb

#: A transaction open for longer than this is worth a warning: slot and fence would wait for it.
LONG_TRANSACTION_S = 60.0


@dataclass(frozen=True)
class PreflightRequest:
    """What somebody wants to start.

    Attributes:
        tables: those named; empty means all tables of the source.
        source_shards, target_shards: by name; for MoveTables usually all of each keyspace.
        skip_schema_copy: the tables are expected at the target already.
        leave_out_triggers: ``table.trigger`` of triggers that do not come along.
        accepted: ids of waivable checks whose errors the user takes as warnings.
        log_budget_bytes: how much log the operator allows a source to keep; None: no such bound.
    """

    workflow: str
    workflow_type: WorkflowType
    source_keyspace: str
    target_keyspace: str
    source_shards: tuple[str, ...]
    target_shards: tuple[str, ...]
    tables: tuple[TableName, ...] = ()
    exclude_tables: tuple[TableName, ...] = ()
    skip_schema_copy: bool = False
    leave_out_triggers: tuple[str, ...] = ()
    accepted: frozenset[str] = frozenset()
    log_budget_bytes: int | None = None

    @property
    def reshards(self) -> bool:
        """Source and target are shards of one keyspace."""
        return self.workflow_type is WorkflowType.RESHARD


@dataclass(frozen=True)
class ActiveWorkflow:
    """A workflow that exists: enough of it to see that another would clash."""

    name: str
    source_keyspace: str
    target_keyspace: str
    tables: tuple[TableName, ...]
    reshards: bool = False


@dataclass(frozen=True)
class Since:
    """What the look at a workflow that runs knows beside the facts of now.

    Attributes:
        verb: what is about to be done.
        direction: where traffic goes, or, for a start, rows.
        then: the catalogue of when it was created; None: it was not kept then.
        now: the catalogue of now.
        apart: tables whose routing rules disagree with those of the others, and how.
        unfinished: shards where indexes or constraints still wait for the copy.
        keeps_source, keeps_target: the verb keeps that side's tables where they are.
    """

    verb: Verb
    direction: Direction
    then: Catalogue | None
    now: Catalogue
    apart: Mapping[str, str] = field(default_factory=dict)
    unfinished: frozenset[str] = frozenset()
    keeps_source: bool = False
    keeps_target: bool = False
    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()

    def drift(self) -> list[Drift]:
        """What the sides no longer share, seen from the side that traffic goes to."""
        if self.then is None:
            return []
        forward = self.direction is Direction.FORWARD
        leaving, entering = (self.sources, self.targets)[:: 1 if forward else -1]
        return drift(
            self.then,
            self.now,
            leaving=leaving,
            entering=entering,
            unfinished=self.unfinished,
        )


@dataclass(frozen=True)
class Facts(Sides):
    """The whole picture of one preflight.

    Attributes:
        unknown: tables that were named, to be moved or left out, and do not exist at the source.
        workflows: those that exist and touch either keyspace.
        overlaps: rows of several source shards that would meet, or lie on the wrong one.
        since: of a workflow that runs, what was when it was created; None when one is created.
    """

    unknown: tuple[TableName, ...] = ()
    workflows: tuple[ActiveWorkflow, ...] = ()
    overlaps: Overlaps = field(default_factory=Overlaps)
    since: Since | None = None

    @property
    @override
    def is_running(self) -> bool:
        return self.since is not None

    def exchanged(self) -> Facts:
        """The same facts with the sides exchanged: the tables of the target as of a source."""
        return replace(self, sources=self.targets, targets=self.sources)

    def ranges(self, keyspace: str, shards: Iterable[str]) -> dict[str, KeyRange]:
        """The key range of each shard, by name."""
        return {name: self.snapshot.shard(keyspace, name).key_range for name in shards}


def selected_tables(
    request: PreflightRequest, available: Iterable[TableName]
) -> tuple[tuple[TableName, ...], tuple[TableName, ...]]:
    """The tables a request means, and those it names that are not available; both sorted."""
    there = set(available)
    named = set(request.tables) | set(request.exclude_tables)
    meant = (set(request.tables) or there) - set(request.exclude_tables)
    return tuple(sorted(meant & there)), tuple(sorted(named - there))
