"""Takes tenants back to an older version, file by file, each in a transaction with its record.

Decides whether a source can be taken back at all, before anything runs. For each version that is
undone, what undoes it runs and its row is deleted in one transaction, under the tenant's lock: a
tenant is always at a version of the source, wherever it was interrupted. The rows of repeatable
files are deleted with it, because what they made may be gone: they run again after the last one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg

from tidegate import steps
from tidegate.bootstrap.tenants.hands import COMMITTED, SqlHand, values_of
from tidegate.bootstrap.tenants.model import SourceKind
from tidegate.bootstrap.tenants.outcomes import Cause, Outcome, Result, refusal
from tidegate.bootstrap.tenants.repeatables import split
from tidegate.bootstrap.tenants.versions import Standing, look_at
from tidegate.bootstrap.tenants.worker.tidegate_records import Asker, Row, own
from tidegate.engines.postgres import tenants
from tidegate.engines.postgres.placeholders import PlaceholderError
from tidegate.errors import FailedPreconditionError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.bootstrap.tenants.folder import Folder
    from tidegate.bootstrap.tenants.hands import Job
    from tidegate.bootstrap.tenants.model import RunOptions, Source
    from tidegate.bootstrap.tenants.versions import Chain, Look


def undone(chain: Chain, version: str, target: str) -> tuple[str, ...]:
    """What is undone to come from a version to an older one, the newest first."""
    have, want = chain.position(version), chain.position(target)
    if have is None or want is None:
        return ()
    return tuple(reversed(chain.ids[want + 1 : have + 1]))


def refuse_irreversible(
    source: Source, chain: Chain, folder: Folder | None, versions: Iterable[str], target: str
) -> None:
    """Refuse a downgrade that the source cannot make, before anything runs.

    Args:
        source: of the run.
        chain: its versions.
        folder: its files, if it has some.
        versions: that tenants are at.
        target: to which they are taken back.

    Raises:
        InvalidArgumentError: sources of that kind cannot be taken back.
        FailedPreconditionError: files are missing; they are named.
    """
    if source.kind is SourceKind.ALEMBIC:
        return
    if folder is None:
        raise InvalidArgumentError(
            f"a source of kind {source.kind} cannot be taken back by Tidegate",
            next_step="undo it by another migration"
            if source.kind is SourceKind.PYTHON
            else "undo it by another migration, or with manage.py migrate APP NAME in each tenant",
        )
    needed = {each for version in versions for each in undone(chain, version, target)}
    scripts = [folder.of(each) for each in chain.ids if each in needed]
    lacking = [script.file for script in scripts if script.down is None]
    alone = [s.down.file for s in scripts if s.down and not s.down.version.is_transactional]
    if lacking:
        raise FailedPreconditionError(
            f"nothing undoes {', '.join(lacking[:10])}; nothing was run",
            next_step="add NNN_name.down.sql for each, or choose a later --to",
        )
    if alone:
        raise FailedPreconditionError(
            f"{', '.join(alone[:10])} would run outside a transaction, which a downgrade does not"
            " support; nothing was run",
            next_step="undo it by another migration, or choose a later --to",
        )


class UndoingHand(SqlHand):
    """Runs what undoes the files of a folder."""

    def __init__(
        self, folder: Folder, source: Source, options: RunOptions, others: tuple[str, ...]
    ) -> None:
        super().__init__(folder, source, options, others)
        self._undoes = {script.version.id: script.down for script in folder.scripts}

    def _upgrade(self, job: Job) -> Outcome:
        connection = self._connection(job)
        first: str | None = None
        current = ""
        try:
            while True:
                look, refused, repeated = self._stand(connection, job)
                current = look.current
                first = current if first is None else first
                if refused:
                    tenants.rollback(connection)
                    failed = Outcome.failed(Cause.VERSION, refused)
                    return replace(failed, from_version=first, to_version=current)
                if look.standing is Standing.AT_TARGET:
                    tenants.rollback(connection)
                    return Outcome(Result.DONE, first, job.target)
                self._undo(connection, job, current, repeated)
                steps.reached(COMMITTED)
                self._clean(job, connection)
                connection = self._connection(job)
        except tenants.TenantMissingError:
            return Outcome(Result.MISSING, message=f"{job.place} is not there")
        except (psycopg.Error, tenants.ScriptError) as error:
            failed = self._failed(connection, job, error)
            return replace(failed, from_version=first or "", to_version=current)
        finally:
            self._clean(job, connection)

    def _stand(
        self, connection: Connection[TupleRow], job: Job
    ) -> tuple[Look, str, tuple[str, ...]]:
        """How the tenant stands, in its transaction, and why it must not be taken back.

        Last, the repeatable files that it has.
        """
        rows = tenants.begin(connection, self._settings(job))
        asker = Asker(self._source.name, self._hashes, self._names, self._others, job.stored)
        found = own([Row(*row) for row in rows], asker)
        versions, repeated = split(found.rows)
        look = look_at(self._chain, [(row.version, row.sha256) for row in versions], job.target)
        half = next((row.version for row in versions if row.begun is not None), "")
        refused = found.refusal or self._refusal(look, half, job.target)
        return look, refused, tuple(repeated)

    def _refusal(self, look: Look, half: str, target: str) -> str:
        if half:
            return f"version {half} was begun and is not complete; upgrade the tenant first"
        if look.standing is Standing.AT_TARGET:
            return ""
        if look.standing is Standing.BEHIND:
            return f"the tenant is at version {look.current}, behind {target}"
        is_known = look.standing is Standing.AHEAD and look.offender == look.current
        if is_known and self._chain.position(look.current) is not None:
            has_undo = self._undoes.get(look.current) is not None
            return "" if has_undo else f"nothing undoes version {look.current}"
        return refusal(look, target) or ""

    def _undo(
        self,
        connection: Connection[TupleRow],
        job: Job,
        version: str,
        repeated: tuple[str, ...],
    ) -> None:
        """Undo one version in the open transaction, delete its row, and commit."""
        settings, down = self._settings(job), self._undoes[version]
        assert down is not None, "looked at before"
        try:
            script = down.bound(values_of(self._source, job))
        except PlaceholderError as error:
            raise tenants.ScriptError("22023", f"{down.file} {error}", None) from None
        # First, because the script may leave the session as another role.
        tenants.forget(connection, settings, [version, *repeated])
        try:
            tenants.run_pieces(connection, script.pieces)
        except tenants.ScriptError as error:
            line = "" if error.line is None else f" line {error.line}"
            message = f"{script.file}{line}: {error.message}"
            raise tenants.ScriptError(error.sqlstate, message, None) from None
        tenants.commit(connection)
