"""Brings the schema of a cluster database up to date, or leaves it as it was.

Decides the order of one transaction: patch file, ledger, check, updates, whatever the caller adds
at the end. What is missing is decided by :mod:`tidegate.cluster.ledger`. Two processes that start
together take turns, and the second finds nothing to do.

A check may stop the updates with :class:`~tidegate.errors.GracefulAbortError`: then what it wrote
is committed, and no update runs. Any other error undoes everything. Errors of hooks, checks and
updates that are of the product's own tree come through as they are.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import DBAPIError, IntegrityError

from tidegate import steps
from tidegate.cluster import dump, ledger, patchfile
from tidegate.cluster.files import LocalFiles
from tidegate.errors import GracefulAbortError, SchemaUpdateError, TidegateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from sqlalchemy import Connection

    from tidegate.cluster.database import ClusterDatabase
    from tidegate.cluster.files import FileSystem
    from tidegate.cluster.ledger import Applied, Update
    from tidegate.cluster.patchfile import Patch

    type Check = Callable[[int, Connection], None]
    type Hook = Callable[[int, Connection], None]

BEFORE_PATCH: Final = -1
"""The version that a hook is called with before the patch file runs."""

PATCHED = steps.declare(
    "cluster.schema.patched",
    runs_in="node",
    plan="schema",
    description="the statements of the patch file ran; not committed",
)
UPDATED = steps.declare(
    "cluster.schema.updated",
    runs_in="node",
    plan="schema",
    description="one schema update ran; not committed",
)
BEFORE_COMMIT = steps.declare(
    "cluster.schema.before_commit",
    runs_in="node",
    plan="schema",
    description="all updates, the own row and the first member are about to be committed",
)
COMMITTED = steps.declare(
    "cluster.schema.committed",
    runs_in="node",
    plan="schema",
    description="all updates are committed; the patch file still has its name",
)
PATCH_RENAMED = steps.declare(
    "cluster.schema.patch_renamed",
    runs_in="node",
    plan="schema",
    description="the patch file has the name of one that was run",
)


class Schema:
    """The ordered list of all updates a program knows, and what goes with applying them.

    Args:
        updates: the first one has version 1.
        files: where the patch file lies.
    """

    def __init__(self, updates: Iterable[Update] = (), *, files: FileSystem | None = None) -> None:
        self.updates: Sequence[Update] = ()
        self._files = files or LocalFiles()
        self._fresh: str | None = None
        self._file: Path | None = None
        self._check: Check | None = None
        self._hook: Hook | None = None
        self.add(*updates)

    def __len__(self) -> int:
        return len(self.updates)

    @property
    def version(self) -> int:
        """The version of a database that has all updates."""
        return len(self.updates)

    def add(self, *updates: Update) -> None:
        """Put updates at the end of the list."""
        self.updates = (*self.updates, *updates)
        names = [update.name for update in self.updates]
        assert len(names) == len(set(names)), "two updates of one name"

    def trim(self, version: int) -> Sequence[Update]:
        """Forget the updates after a version, and the fresh text, which has them; returns them."""
        kept, dropped = self.updates[:version], self.updates[version:]
        self.updates, self._fresh = kept, None
        return dropped

    def fresh(self, text: str) -> None:
        """Make a new database from this text, which :meth:`dump` wrote, instead of by updates.

        Updates that came after it was written are applied on top.
        """
        self._fresh = text

    def file(self, path: Path) -> None:
        """Run the patch in this file, if it is there, before anything else."""
        self._file = path

    def check(self, check: Check) -> None:
        """Call this before the updates, also when none is missing.

        It gets the version that the database has, and the running transaction.
        """
        self._check = check

    def hook(self, hook: Hook) -> None:
        """Call this before each update, and with :data:`BEFORE_PATCH` before the patch file.

        It gets the version that the database has at that moment, and the running transaction. The
        hook given last counts.
        """
        self._hook = hook

    def applied(self, connection: Connection) -> list[Applied]:
        """What the database has, by version; empty when it is fresh."""
        return ledger.read(connection)

    def missing(self, applied: Sequence[Applied]) -> tuple[Update, ...]:
        """The updates that a database lacks; see :func:`tidegate.cluster.ledger.missing`."""
        return ledger.missing(self.updates, applied)

    def ensure(
        self, database: ClusterDatabase, *, then: Callable[[Connection], None] | None = None
    ) -> int:
        """Bring the database up to date.

        Safe to call at every start, from several processes at once. After an error the database is
        as it was, except that after :class:`GracefulAbortError` it has what the check wrote, and
        after :class:`OutcomeUnknownError` nobody knows: calling again finds out.

        Args:
            database: to bring up to date.
            then: called at the end of the transaction, with it.

        Returns:
            The version found: 0 for a fresh database, :attr:`version` when there was nothing to do.

        Raises:
            SchemaVersionError: the database has gaps, other updates than these, or newer ones.
            SchemaUpdateError: the patch, the fresh text, a hook or an update failed.
            InvalidArgumentError: the patch file holds what it may not hold.
            GracefulAbortError: the check stopped the updates; the same error it raised.
            ClusterDatabaseError: the database failed.
        """
        patch = None if self._file is None else patchfile.read(self._files, self._file)
        if not (patch or self._check or then):
            with database.read() as connection:
                applied = ledger.read(connection)
            if applied and not self.missing(applied):
                return self.version
        try:
            found, stopped = self._in_one_transaction(database, patch, then)
        except IntegrityError as error:
            raise _failed("commit the updates", error.orig or error) from error
        steps.reached(COMMITTED)
        if patch is not None:
            self._files.rename(patch.path, patch.done_path)
            steps.reached(PATCH_RENAMED)
        if stopped is not None:
            raise stopped
        return found

    def dump(self, database: ClusterDatabase) -> str:
        """The text of a database that has all updates; a database made from it has them too.

        Raises:
            SchemaVersionError: the database lacks updates.
        """
        with database.read() as connection:
            return dump.text_of(connection, self.updates)

    def _in_one_transaction(
        self,
        database: ClusterDatabase,
        patch: Patch | None,
        then: Callable[[Connection], None] | None,
    ) -> tuple[int, GracefulAbortError | None]:
        found, stopped = 0, None
        with database.transaction() as connection:
            try:
                found = self._bring_up(database, connection, patch)
                if then is not None:
                    then(connection)
            except GracefulAbortError as error:
                stopped = error
            steps.reached(BEFORE_COMMIT)
        return found, stopped

    def _bring_up(
        self, database: ClusterDatabase, connection: Connection, patch: Patch | None
    ) -> int:
        if patch is not None and not patchfile.was_run(connection, patch):
            self._call_hook(BEFORE_PATCH, connection)
            for statement in patch.statements:
                self._run(database, connection, statement, f"execute queries from {patch.path}")
            patchfile.record(connection, patch, database.now(connection))
            steps.reached(PATCHED)
        ledger.create(connection)
        applied = ledger.read(connection)
        ledger.check_gaps(applied)
        found = applied[-1].version if applied else 0
        if self._check is not None:
            self._check(found, connection)
        missing: Sequence[Update] = self.missing(applied)
        if missing:  # the way back leads to the program before, no further
            ledger.close_way_back(connection)
        if not applied and self._fresh is not None:
            missing = self._apply_fresh(database, connection, self._fresh)
        for version, update in enumerate(missing, start=self.version - len(missing)):
            self._call_hook(version, connection)
            what = f"apply update {version} -> {version + 1} ({update.name})"
            for statement in update.statements:
                self._run(database, connection, statement, what)
            if update.run is not None:
                self._call(partial(update.run, connection), database, what)
            now = database.now(connection)
            ledger.record(connection, version + 1, update, update.sha256, now)
            steps.reached(UPDATED)
        if not applied:  # no program before this one has seen the database
            ledger.close_way_back(connection)
        return found

    def _apply_fresh(
        self, database: ClusterDatabase, connection: Connection, text: str
    ) -> Sequence[Update]:
        """Make everything from one text; returns the updates that are newer than it."""
        version = dump.version_of(text, self.updates)
        for statement in patchfile.statements_of(text):
            self._run(database, connection, statement, "apply fresh schema", "cannot")
        if version:
            covered = self.updates[:version]
            sha256 = ledger.fresh_sha256(covered)
            ledger.record(connection, version, covered[-1], sha256, database.now(connection))
        steps.reached(UPDATED)
        return self.updates[version:]

    def _call_hook(self, version: int, connection: Connection) -> None:
        hook = self._hook
        if hook is None:
            return
        try:
            hook(version, connection)
        except (TidegateError, DBAPIError):
            raise
        except Exception as error:
            raise _failed(f"execute hook (version {version})", error) from error

    def _run(
        self,
        database: ClusterDatabase,
        connection: Connection,
        statement: str,
        what: str,
        verb: str = "failed to",
    ) -> None:
        # Without parameters, a percent sign is a percent sign to every driver.
        plain = {"no_parameters": True}
        act = partial(connection.exec_driver_sql, statement, execution_options=plain)
        self._call(act, database, what, verb)

    def _call(
        self,
        act: Callable[[], object],
        database: ClusterDatabase,
        what: str,
        verb: str = "failed to",
    ) -> None:
        try:
            act()
        except TidegateError:
            raise
        except DBAPIError as error:
            meaning = database.translated(error)
            if meaning.retryable:
                raise meaning from error
            raise _failed(what, error.orig or error, verb) from error
        except Exception as error:
            raise _failed(what, error, verb) from error


def _failed(what: str, error: BaseException, verb: str = "failed to") -> SchemaUpdateError:
    return SchemaUpdateError(
        f"{verb} {what}: {error}",
        next_step="nothing was changed; mend the cause and start again, or run the previous version"
        " of tidegate",
    )
