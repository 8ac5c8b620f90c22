"""Opens migration sources: by name or as written, checked, with their versions.

Decides which sources may be run at all. SQL files may lie in any folder that the node's account can
read. Sources that are programs run as the node's account, so they must lie below a folder that the
node was told (``--migrations-from``): a token of the API is no account on the machine.
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tidegate.bootstrap.tenants import freshness
from tidegate.bootstrap.tenants.folder import Folder, check_unedited, read_folder
from tidegate.bootstrap.tenants.hands import SqlHand
from tidegate.bootstrap.tenants.model import (
    Source,
    SourceKind,
    check_name,
    is_written_source,
    parse_source,
)
from tidegate.bootstrap.tenants.programs import ProgramHand, describe
from tidegate.bootstrap.tenants.undoing import UndoingHand
from tidegate.bootstrap.tenants.versions import HEAD, target_of
from tidegate.bootstrap.tenants.worker.tidegate_records import Asker, Own, Row, own
from tidegate.errors import (
    InvalidArgumentError,
    NotFoundError,
    TidegateError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from tidegate.bootstrap.tenants.hands import Hand
    from tidegate.bootstrap.tenants.model import RunOptions, Tenant
    from tidegate.bootstrap.tenants.store import TenantStore
    from tidegate.bootstrap.tenants.versions import Chain
    from tidegate.engines.postgres.tenants import FoundRow

SQL_BACKLOG: Final = 16
DESCRIBED_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Opened:
    """A source that was read and may be run."""

    source: Source
    chain: Chain
    folder: Folder | None = None
    others: tuple[str, ...] = ()
    """Names of the registered sources that keep their versions in the same table."""

    @property
    def ignored(self) -> tuple[str, ...]:
        """What lies in the folder and is not run, each with the reason."""
        return () if self.folder is None else self.folder.ignored

    @property
    def backlog(self) -> int:
        """Jobs that may wait for each thread: many when a tenant takes milliseconds."""
        return SQL_BACKLOG if self.folder is not None else 1

    def target(self, wanted: str) -> str:
        """The version that ``wanted`` means."""
        return target_of(self.chain, wanted)

    def own(self, rows: Iterable[FoundRow], stored: Sequence[str]) -> Own:
        """The rows of a tenant's version table that are the source's own.

        Args:
            rows: of the table.
            stored: sources of which the cluster database has a version for the tenant.
        """
        versions = self.chain.versions
        asker = Asker(
            self.source.name,
            {version.id: version.sha256 for version in versions},
            {version.id: version.name for version in versions},
            self.others,
            stored,
        )
        return own([Row(*row) for row in rows], asker)

    def as_of(self, version: str, repeatable: Collection[str]) -> Opened:
        """The same as if it ended with a version; of repeatable files, it has only these."""
        if self.folder is None:
            return self
        folder = self.folder.as_of(version, repeatable)
        return replace(self, chain=folder.chain, folder=folder)

    def hand(self, options: RunOptions) -> Hand:
        """A hand for one thread."""
        if self.folder is None:
            return ProgramHand(self.source, options, self.others)
        if options.downgrade:
            return UndoingHand(self.folder, self.source, options, self.others)
        return SqlHand(self.folder, self.source, options, self.others)


@dataclass(frozen=True, slots=True)
class _Described:
    """What a worker said of a source, and how its files were then."""

    chain: Chain
    files: tuple[str, ...]
    marks: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class _Head:
    """The head of a source when it was read last."""

    version: str
    digest: str
    marks: freshness.Marks | None
    """Of its folder; None for programs."""


def _bound(known: dict[Source, Any]) -> None:
    """Make room for one more."""
    while len(known) >= DESCRIBED_MAX:
        known.pop(next(iter(known)))


def sharing(source: Source, registered: Sequence[Source]) -> list[Source]:
    """The other sources that keep their versions in the same table of a tenant."""
    if not source.kind.has_version_table:
        return []
    return [
        each
        for each in registered
        if each.name != source.name
        and each.kind.has_version_table
        and each.version_table == source.version_table
    ]


def known_variables(source: Source) -> dict[str, str]:
    """What the SQL files of a source may use as variables; those of the tenant have no value."""
    own = {"schema": "", "tenant": ""} | ({"role": source.role} if source.role else {})
    return own | dict(source.variables)


def refuse_clash(source: Source, registered: Sequence[Source]) -> None:
    """Refuse a source that cannot share its version table with one that is registered.

    Raises:
        InvalidArgumentError: another has the same address, or runs as another role.
    """
    for other in sharing(source, registered):
        if other.address == source.address and other.kind is source.kind:
            raise InvalidArgumentError(
                f"{source} is the migration source {other.name!r} already; under two names each"
                " tenant would get its versions twice",
                next_step=f"use --from {other.name}, or give this one a version table of its own:"
                " --version-table NAME",
            )
        if other.role != source.role:
            raise InvalidArgumentError(
                f"migration source {other.name!r} keeps its versions in the table"
                f" {other.version_table}, which belongs to another role",
                next_step="give this one a table of its own: --version-table"
                f" {other.version_table}_{source.name}"[:120],
            )


def _plain(path: str | Path) -> Path:
    """A path without ``..``; links stay, because an environment's Python is one."""
    return Path(os.path.normpath(path))


def _marks(files: Sequence[str]) -> tuple[tuple[str, int, int], ...]:
    """Files, and what lies in folders: name, time of change, size."""
    found = []
    for file in files:
        path = Path(file)
        each = [path, *sorted(path.glob("*.py"))] if path.is_dir() else [path]
        for one in each:
            with contextlib.suppress(OSError):
                status = one.stat()
                found.append((str(one), status.st_mtime_ns, status.st_size))
    return tuple(found)


class Sources:
    """The migration sources of one node.

    Args:
        store: where they are registered.
        allowed: folders below which sources that are programs may lie.
    """

    def __init__(self, store: TenantStore, allowed: Sequence[Path] = ()) -> None:
        self._store = store
        self._allowed = tuple(map(_plain, allowed))
        self._lock = threading.Lock()
        self._described: dict[Source, _Described] = {}
        self._folders: dict[Source, tuple[freshness.Marks, Folder]] = {}
        self._heads: dict[Source, _Head] = {}

    def add(self, name: str, text: str, **more: object) -> Opened:
        """Register a source, after reading it once.

        Raises:
            InvalidArgumentError: it is written wrong, or lies where it must not.
            MigrationSourceError: it cannot be run.
            AlreadyExistsError: the name is taken.
        """
        source = self.check(name, text, **more)
        opened = self.open(source)
        self._store.add_source(source)
        return opened

    def check(self, name: str, text: str, **more: object) -> Source:
        """The source of these words, if it may be run here; nothing is read yet."""
        source = parse_source(check_name(name, "migration source"), text, **more)
        self._refuse_place(source)
        refuse_clash(source, self._store.sources())
        return source

    def find(self, given: str | None) -> Source:
        """A source by its name, as ``kind:address``, or the only one there is.

        Raises:
            NotFoundError: there is none of that name, or none at all.
            InvalidArgumentError: it is written wrong, or several could be meant.
        """
        registered = {source.name: source for source in self._store.sources()}
        if given is None:
            if len(registered) == 1:
                return next(iter(registered.values()))
            if not registered:
                raise NotFoundError(
                    "no migration source is registered",
                    next_step="name one with --from sql:/folder, or register it:"
                    " tidegate migrations create NAME sql:/folder",
                )
            raise InvalidArgumentError(
                f"there are {len(registered)} migration sources: {', '.join(registered)}",
                next_step="choose one with --from",
            )
        if given in registered:
            return registered[given]
        if is_written_source(given):
            same = [each for each in registered.values() if str(each) == given]
            if len(same) == 1:
                return same[0]
            source = parse_source(given, given)
            self._refuse_place(source)
            return source
        raise NotFoundError(
            f"migration source {given!r} does not exist", next_step="tidegate migrations list"
        )

    def open(self, source: Source, *, even_edited: bool = False) -> Opened:
        """Read a source and check it against what tenants got from it.

        Args:
            source: to read.
            even_edited: leave the check out, for a verb that settles what was edited.

        Raises:
            MigrationSourceError: it cannot be read, or must not be run.
        """
        self._refuse_place(source)
        others = tuple(each.name for each in sharing(source, self._store.sources()))
        if source.kind is not SourceKind.SQL:
            return Opened(source, self._describe(source), others=others)
        folder = self._read(source)[1]
        if not even_edited:
            check_unedited(source.address, folder.chain, self._store.recorded(source.name))
        return Opened(source, folder.chain, folder, others)

    def head_of(self, tenant: Tenant, source: Source) -> str | None:
        """The head of a source if a tenant is there, by what is stored; else None.

        Looks at no file: at the times of the folders only. While the source cannot be read, the
        head it had last counts, so that a folder that is wrong for a moment concerns nobody who
        needs nothing of it.

        Raises:
            MigrationSourceError: the source cannot be read, and the tenant is not at its last head.
        """
        with self._lock:
            known = self._heads.get(source)
        if known is None or not (known.marks is not None and freshness.is_untouched(known.marks)):
            try:
                known = self._find_head(source)
            except TidegateError:
                if known is None or not tenant.is_at(source.name, known.version, known.digest):
                    raise
        return known.version if tenant.is_at(source.name, known.version, known.digest) else None

    def _find_head(self, source: Source) -> _Head:
        """The head as the source is now."""
        self._refuse_place(source)
        marks = None
        if source.kind is SourceKind.SQL:
            marks, folder = self._read(source)
            chain = folder.chain
        else:
            chain = self._describe(source)
        version = target_of(chain, HEAD)
        head = _Head(version, chain.digest_at(version), marks)
        with self._lock:
            _bound(self._heads)
            self._heads[source] = head
        return head

    def _read(self, source: Source) -> tuple[freshness.Marks | None, Folder]:
        """A folder of SQL files, and how it was; read again when one of its files has changed."""
        try:
            marks = freshness.look(source.address, recursive=source.recursive)
        except OSError:
            marks = None  # reading it says what is wrong
        with self._lock:
            known = self._folders.get(source)
        if known is not None and marks is not None and freshness.is_same(known[0], marks):
            return known
        folder = read_folder(
            source.address, recursive=source.recursive, variables=known_variables(source)
        )
        if marks is not None:
            with self._lock:
                _bound(self._folders)
                self._folders[source] = (marks, folder)
        return marks, folder

    def _describe(self, source: Source) -> Chain:
        """The versions of programs; a worker is asked again when one of their files has changed."""
        with self._lock:
            known = self._described.get(source)
        if known is not None and known.marks == _marks(known.files):
            return known.chain
        chain, files = describe(source)
        with self._lock:
            _bound(self._described)
            self._described[source] = _Described(chain, files, _marks(files))
        return chain

    def _refuse_place(self, source: Source) -> None:
        """Programs run only from where the node was told."""
        if not source.kind.runs_programs:
            if source.python or source.folder:
                raise InvalidArgumentError(
                    "SQL files need neither a Python program nor a working folder",
                    next_step="leave --python and --folder away",
                )
            return
        if source.recursive:
            raise InvalidArgumentError(
                f"a source of kind {source.kind} finds its own files",
                next_step="leave --recursive away",
            )
        paths = {
            "python": source.python,
            "folder": source.folder,
            "address": source.address if source.kind is SourceKind.ALEMBIC else "",
        }
        if source.kind is not SourceKind.ALEMBIC and not source.folder:
            raise InvalidArgumentError(
                f"a source of kind {source.kind} needs the folder its modules are in",
                next_step="name it: --folder /srv/app",
            )
        for name, path in paths.items():
            if path and not any(_plain(path).is_relative_to(root) for root in self._allowed):
                raise InvalidArgumentError(
                    f"this node does not run programs from {path}",
                    next_step="start it with --migrations-from FOLDER; what lies below runs as its"
                    " account",
                    setting=name,
                )
