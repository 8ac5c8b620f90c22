"""Opens the cluster database as one member: the gate, the updates and the own row together.

Decides in which order they happen, and what is tried again. One transaction holds all of it: patch
file, ledger, own row, gate, updates, first member. What the gate says is in
:mod:`tidegate.cluster.gate`, what is missing in :mod:`tidegate.cluster.ledger`.

The own row is recorded always. When the node waits, what its check wrote is committed and nothing
else runs; when it is refused, or an update fails, the transaction is undone and the row is recorded
in one of its own. Thus the others see what runs here, and wait for it or are waited for; but nobody
waits for a program that the database itself refuses.

A locked database is tried again, a bounded number of times, and so is an unknown COMMIT: every
attempt begins by looking at what is there. A permanent error is never tried again.

A database that is one file of this machine, with one member, is copied before its first update.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from tidegate import __version__, steps
from tidegate.cluster import gate, ledger, member_store
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.members import FIRST_NAME, PLACEHOLDER, Member, MemberState, Role
from tidegate.cluster.patchfile import FILE_NAME
from tidegate.cluster.schema import Schema
from tidegate.errors import (
    ConflictError,
    InvalidArgumentError,
    MemberEvictedError,
    MembershipError,
    SchemaVersionError,
    SomeNodesAreBehindError,
    TidegateError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from sqlalchemy import Connection

    from tidegate.cluster.extensions import Extensions
    from tidegate.cluster.files import FileSystem
    from tidegate.cluster.gate import Decision
    from tidegate.cluster.ledger import Update
    from tidegate.cluster.servers import ServerStore

ATTEMPTS: Final = 10
PAUSE_S: Final = 0.25
"""Between two attempts; each also waits for the database's own bound."""

RECORDED = steps.declare(
    "cluster.schema.own_row_recorded",
    runs_in="node",
    plan="schema",
    description="the refused node's own row says what it runs, in a transaction of its own",
)
COPIED = steps.declare(
    "cluster.schema.copied",
    runs_in="node",
    plan="schema",
    description="the database file was copied; no update has run",
)


class SchemaProvider(Protocol):
    """Where the schema of the cluster database comes from."""

    def schema(self) -> Schema:
        """A new schema with all updates."""

    def updates(self) -> Sequence[Update]:
        """The updates, in their order."""


class NewSchema:
    """A schema of a list of updates."""

    def __init__(self, updates: Iterable[Update], *, files: FileSystem | None = None) -> None:
        self._updates = tuple(updates)
        self._files = files

    def schema(self) -> Schema:
        """A new schema with all updates."""
        return Schema(self._updates, files=self._files)

    def updates(self) -> Sequence[Update]:
        """The updates, in their order."""
        return self._updates


class DatabaseDriver(Protocol):
    """How a list of servers becomes an open database."""

    def __call__(self, servers: ServerStore, /) -> ClusterDatabase:
        """Open it."""


def url_driver(servers: ServerStore) -> ClusterDatabase:
    """Open the database whose URL is the address of the first server.

    Raises:
        InvalidArgumentError: there is no server, or its address is no URL.
        ClusterDatabaseError: it cannot be opened.
    """
    known = servers.get()
    if not known:
        raise InvalidArgumentError(
            "no server of the cluster database is known",
            next_step="name one, for example sqlite:////absolute/path/cluster.db",
        )
    return ClusterDatabase.open(known[0].address)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this node is among the members.

    A name says which row is its own. Without that, a row at the placeholder address is: it belongs
    to the only member there is, whatever its address. Then the address counts.
    """

    address: str
    name: str = FIRST_NAME
    fingerprint: str = ""

    def own_row(self, members: Sequence[Member]) -> Member | None:
        """The row of this node; None when it has none.

        Raises:
            MembershipError: more than one row claims to be the only member.
            MemberEvictedError: this node was a member, and is none any more.
        """
        present = [each for each in members if each.state is not MemberState.EVICTED]
        alone = [each for each in present if each.is_placeholder]
        if len(alone) > 1:
            raise MembershipError(
                f"found more than one unclustered nodes: {', '.join(each.name for each in alone)}",
                next_step="evict all but one of them: tidegate cluster evict",
            )
        named = [each for each in present if each.name == self.name != FIRST_NAME]
        if named and self._is_anothers(named[0]):
            raise MemberEvictedError(
                f"this machine was evicted: the member {self.name} is another one now, at"
                f" {named[0].address}",
                next_step="join the cluster again, under a state directory of its own",
            )
        if named:
            return named[0]
        if alone and FIRST_NAME in (self.name, alone[0].name):
            return alone[0]
        for member in present:
            if self._is(member):
                return member
        for member in members:
            if self._is(member):
                raise MemberEvictedError(
                    f"the member {member.name} at {member.address} left or was evicted",
                    next_step="join the cluster again, under a state directory of its own",
                )
        return None

    def _is_anothers(self, member: Member) -> bool:
        """Whether a row of this name was made for another certificate."""
        return self.fingerprint != "" and member.fingerprint not in ("", self.fingerprint)

    def _is(self, member: Member) -> bool:
        if self.name != FIRST_NAME:
            return member.name == self.name
        return member.address == self.address


class Cluster:
    """The cluster database as one member has it.

    Args:
        extensions: what this program's API can do.
        schema_provider: which schema updates this program knows.
        database: an open one, instead of :meth:`open`.
        driver: how :meth:`open` makes one of a list of servers.
        sleep: waits between two attempts.
        binary_version: of this program, for people.
    """

    def __init__(
        self,
        extensions: Extensions,
        schema_provider: SchemaProvider,
        *,
        database: ClusterDatabase | None = None,
        driver: DatabaseDriver = url_driver,
        sleep: Callable[[float], object] = time.sleep,
        binary_version: str = __version__,
    ) -> None:
        self._extensions = extensions
        self._provider = schema_provider
        self._database = database
        self._driver = driver
        self._sleep = sleep
        self._binary_version = binary_version

    @property
    def schema_version(self) -> int:
        """How many schema updates this program knows."""
        return len(self._provider.updates())

    @property
    def versions(self) -> gate.Versions:
        """What this program knows."""
        return gate.Versions(self.schema_version, self._extensions)

    @property
    def database(self) -> ClusterDatabase:
        """The open database."""
        assert self._database is not None, "the cluster was not opened"
        return self._database

    def open(self, servers: ServerStore) -> None:
        """Open the database that these servers have.

        Raises:
            InvalidArgumentError: the list says nothing that can be opened.
            ClusterDatabaseError: it cannot be opened.
        """
        assert self._database is None, "the cluster is open"
        self._database = self._driver(servers)

    def close(self) -> None:
        """Close the database."""
        if self._database is not None:
            self._database.close()

    def ensure_schema(
        self,
        address: str,
        folder: Path | None = None,
        *,
        name: str = FIRST_NAME,
        fingerprint: str = "",
    ) -> Decision:
        """Bring the database up to date, if all members agree; note what runs here in any case.

        Args:
            address: on which other members reach this node; any text for a cluster of one.
            folder: where a patch file may lie.
            name: of this node; left out, the address says which row is its own.
            fingerprint: of its certificate, if it has one; a row of its name must have the same.

        Returns:
            Ready, or for whom this node waits. It is ready only after a call that said so.

        Raises:
            NodeBehindError: a member's program is newer; this one must be upgraded.
            InconsistentVersionsError: neither this program nor a member's is the newer one.
            SchemaVersionError: the database itself has what this program does not know.
            MembershipError: this node is no member, or was evicted.
            SchemaUpdateError: an update or the patch failed; the schema is as it was.
            ClusterDatabaseError: the database failed, or was locked in every attempt.
        """
        identity = Identity(address, name, fingerprint)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._ensure_once(identity, folder)
            except TidegateError as error:
                passing = error.retryable or error.outcome_unknown
                if not passing or attempt == ATTEMPTS:
                    raise
            self._sleep(PAUSE_S)
        raise AssertionError("unreachable")

    def _ensure_once(self, identity: Identity, folder: Path | None) -> Decision:
        run = _Run(self.database, self._provider.schema(), identity, self.versions)
        run.binary_version = self._binary_version
        try:
            run.ensure(folder)
        except SomeNodesAreBehindError:
            assert run.decision is not None
            return run.decision
        except TidegateError as error:
            if not (error.retryable or error.outcome_unknown):
                # The refusal is what counts; that it could not be noted is not.
                with suppress(TidegateError):
                    run.record_alone()
            raise
        return gate.Decision(gate.Verdict.READY, self.versions)


class _Run:
    """One attempt to bring the database up to date."""

    def __init__(
        self, database: ClusterDatabase, schema: Schema, identity: Identity, own: gate.Versions
    ) -> None:
        self.binary_version = ""
        self.decision: Decision | None = None
        self._database = database
        self._schema = schema
        self._identity = identity
        self._own = own
        self._found = 0
        self._copied_at = 0  # the version that this node has a copy of
        schema.check(self._check)
        schema.hook(self._hook)

    def ensure(self, folder: Path | None) -> None:
        if folder is not None:
            self._schema.file(folder / FILE_NAME)
        self._copy_if_needed()
        self._schema.ensure(self._database, then=self._enter_first)

    def record_alone(self) -> None:
        """Note what runs here in a transaction of its own."""
        with self._database.transaction() as connection:
            if not member_store.has_table(connection):
                return
            me = self._identity.own_row(member_store.read(connection))
            if me is None:
                return
            self._record(connection, me)
        steps.reached(RECORDED)

    def _check(self, found: int, connection: Connection) -> None:
        """Note what runs here, then ask the gate."""
        self._found = found
        if found == 0 or not member_store.has_table(connection):
            return
        members = member_store.read(connection)
        if not any(member.state is not MemberState.EVICTED for member in members):
            self._identity.own_row(members)
            return
        me = self._identity.own_row(members)
        self._record(connection, me)
        self.decision = gate.decide_for(self._own, me, members, ledger.read(connection))
        if not self.decision.is_ready:
            raise self.decision.error()

    def _record(self, connection: Connection, me: Member | None) -> None:
        count = member_store.record_versions(
            connection,
            self._identity.address if me is None else me.address,
            schema_version=self._own.schema,
            extensions=self._own.extensions,
            binary_version=self.binary_version,
            now=self._database.now(connection),
        )
        if count != 1:
            raise MembershipError(
                f"updated {count} rows instead of 1: the members do not list"
                f" {self._identity.address} as one of them",
                next_step="join the cluster with this node, or give it a database of its own",
            )

    def _hook(self, version: int, connection: Connection) -> None:
        """Let no update run on a file that was not copied."""
        is_needed = version > 0 and self._found > 0
        if not is_needed or self._copied_at == self._found or not self._is_to_be_copied(connection):
            return
        raise ConflictError(
            "the cluster database was changed while it was looked at, and is to be copied first",
            next_step="try again",
        )

    def _is_to_be_copied(self, connection: Connection) -> bool:
        if self._database.abilities.is_shared or self._database.abilities.is_replicated:
            return False
        if not member_store.has_table(connection):
            return True
        members = member_store.read(connection)
        self._identity.own_row(members)
        return len([each for each in members if each.is_active]) <= 1

    def _copy_if_needed(self) -> None:
        with self._database.read() as connection:
            applied = ledger.read(connection)
            try:
                missing = self._schema.missing(applied)
            except SchemaVersionError:
                return  # the transaction says so
            if not (applied and missing and self._is_to_be_copied(connection)):
                return
        found = applied[-1].version

        def is_right(copy: Connection) -> bool:
            held = ledger.read(copy)
            return bool(held) and held[-1].version == found

        # Another node may update the database between the look at it and the copy: what is copied
        # then is no copy of this version, and is dropped.
        if self._database.copied(f"v{found}", is_right) is not None:
            self._copied_at = found
        steps.reached(COPIED)

    def _enter_first(self, connection: Connection) -> None:
        """Make this node the first member of a database that has none."""
        members = member_store.read(connection)
        if any(member.state is not MemberState.EVICTED for member in members):
            return
        member_store.insert(
            connection,
            name=self._identity.name,
            address=PLACEHOLDER,
            schema_version=self._own.schema,
            extensions=self._own.extensions,
            binary_version=self.binary_version,
            now=self._database.now(connection),
            role=Role.VOTER,
            state=MemberState.ACTIVE,
            fingerprint=self._identity.fingerprint,
        )
