"""What a tenant, a migration source, a run and its items are.

Frozen values only; the decisions about them are in the modules beside. A *tenant* is a schema or a
database at some shard. A *migration source* is where its upgrades come from. A *run* brings many
tenants to one version of one source; each of its *items* is one tenant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self

from tidegate.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

NAME_MAX: Final = 200
IDENTIFIER_BYTES_MAX: Final = 63
_NAME: Final = re.compile(r"[^\s/:,%*?#\x00-\x1f\x7f]+")


def allowed_in_names(character: str) -> bool:
    """Whether names may contain a character."""
    return _NAME.fullmatch(character) is not None


def is_name(name: str) -> bool:
    """Whether it may be a name: not empty, not too long, without what paths and lists need."""
    return len(name) <= NAME_MAX and bool(_NAME.fullmatch(name)) and not name.startswith("-")


def check_name(name: str, what: str) -> str:
    """The name, if it may be one.

    Raises:
        InvalidArgumentError: it may not.
    """
    if not is_name(name):
        raise InvalidArgumentError(
            f"{name!r} cannot be the name of a {what}",
            next_step=f"use at most {NAME_MAX} characters, no spaces and none of / : , % * ? #",
        )
    return name


def _check_identifier(name: str, what: str) -> None:
    if "\0" in name or len(name.encode()) > IDENTIFIER_BYTES_MAX:
        raise InvalidArgumentError(
            f"{name!r} cannot be the name of a {what} of PostgreSQL",
            next_step=f"use at most {IDENTIFIER_BYTES_MAX} bytes",
        )


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a tenant is: a schema, or a whole database, of a shard's primary or of one tablet."""

    keyspace: str
    shard: str
    tablet: str = ""
    """A tablet's alias; empty for the primary of the shard, whichever that is."""
    database: str = ""
    """Empty for the database that the tablet's connection string names."""
    schema: str = ""
    """Empty when the tenant is the whole database."""

    def __post_init__(self) -> None:
        if not (self.database or self.schema):
            raise InvalidArgumentError(
                "a tenant is a schema or a database", next_step="name it: --schema or --database"
            )
        _check_identifier(self.database, "database")
        _check_identifier(self.schema, "schema")

    def to_json(self) -> dict[str, str | None]:
        """As shown."""
        return {
            "keyspace": self.keyspace,
            "shard": self.shard,
            "tablet": self.tablet or None,
            "database": self.database or None,
            "schema": self.schema or None,
        }

    def __str__(self) -> str:
        parts = [f"{self.keyspace}/{self.shard}"]
        parts += [f"tablet {self.tablet}"] if self.tablet else []
        parts += [f"database {self.database}"] if self.database else []
        parts += [f"schema {self.schema}"] if self.schema else []
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Tenant:
    """One registered tenant; ``version`` is the row's, for compare-and-swap."""

    id: str
    name: str
    place: Place
    created_at: datetime
    version: int = 1
    versions: Mapping[str, str] = field(default_factory=dict)
    """By source: the version that was stored after the tenant's last commit."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """By source: what stands for exactly the versions it had then; empty when that is not known."""

    def is_at(self, source: str, version: str, digest: str) -> bool:
        """Whether, by what is stored, it has exactly the versions that the digest stands for."""
        return self.versions.get(source) == version and self.digests.get(source) == digest


class SourceKind(StrEnum):
    """What kind of migrations a source has."""

    SQL = "sql"
    PYTHON = "python"
    ALEMBIC = "alembic"
    DJANGO = "django"

    @property
    def runs_programs(self) -> bool:
        """Whether its migrations are programs, and run in worker processes."""
        return self is not SourceKind.SQL

    @property
    def has_version_table(self) -> bool:
        """Whether its versions are kept in a table of ours; the others have tables of theirs."""
        return self in {SourceKind.SQL, SourceKind.PYTHON}


DEFAULT_VERSION_TABLE: Final = "tidegate_migration"
_TABLES_OF_TOOLS: Final = {
    SourceKind.ALEMBIC: "alembic_version",
    SourceKind.DJANGO: "django_migrations",
}


@dataclass(frozen=True, slots=True)
class Source:
    """A migration source: ``kind:address``, and how it is run.

    ``address`` is a folder (sql), ``module:function`` (python), the path of an ``alembic.ini``, or
    a settings module (django).
    """

    name: str
    kind: SourceKind
    address: str
    python: str = ""
    """The Python program of the user's environment; empty for the node's own."""
    folder: str = ""
    """Working folder of the programs, first on their path; empty for one made of the address."""
    role: str = ""
    """The role that runs the migrations and owns what they make; empty for the tablet's own."""
    also_search: tuple[str, ...] = ()
    """Schemas in the search path behind the tenant's own."""
    version_table: str = DEFAULT_VERSION_TABLE
    """Where sql and python sources keep the tenant's version; the others have tables of theirs."""
    url_variable: str = ""
    """A variable of the environment in which Alembic's env.py expects the database's URL."""
    variables: tuple[tuple[str, str], ...] = ()
    """Name and value of what SQL files may use as ``${name}``, besides schema, tenant and role."""
    single_transaction: bool = False
    """Run all versions that a tenant lacks in one transaction; for sql and python sources."""
    recursive: bool = False
    """Whether SQL files in folders below the source's are read, too."""

    def __str__(self) -> str:
        return f"{self.kind}:{self.address}"

    @property
    def records_in(self) -> str:
        """The table of a tenant that has its versions, as far as it is known."""
        return _TABLES_OF_TOOLS.get(self.kind, self.version_table)

    def to_json(self) -> dict[str, Any]:
        """As stored and shown."""
        return {
            "kind": self.kind.value,
            "address": self.address,
            "python": self.python,
            "folder": self.folder,
            "role": self.role,
            "also_search": list(self.also_search),
            "version_table": self.version_table,
            "url_variable": self.url_variable,
            "single_transaction": self.single_transaction,
            "recursive": self.recursive,
            "variables": dict(self.variables),
        }

    @classmethod
    def from_json(cls, name: str, value: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_json`."""
        given = dict(value)
        given["kind"] = SourceKind(given["kind"])
        given["also_search"] = tuple(given.get("also_search", ()))
        given["variables"] = tuple(sorted(dict(given.get("variables", {})).items()))
        return cls(name, **given)


def is_written_source(text: str) -> bool:
    """Whether a text is ``kind:address`` rather than the name of a registered source."""
    return text.partition(":")[0] in set(SourceKind) and ":" in text


def parse_source(name: str, text: str, **more: Any) -> Source:
    """Read ``kind:address``.

    Raises:
        InvalidArgumentError: the kind is unknown, or the address is none of that kind.
    """
    kind, colon, address = text.partition(":")
    if not colon or not address or kind not in set(SourceKind) or "\0" in text:
        raise InvalidArgumentError(
            f"{text!r} is not a migration source",
            next_step="write sql:/folder, python:module:function, alembic:/path/alembic.ini"
            " or django:settings.module",
        )
    source = Source(name, SourceKind(kind), address, **more)
    if source.kind in {SourceKind.SQL, SourceKind.ALEMBIC} and not address.startswith("/"):
        raise InvalidArgumentError(
            f"the path {address!r} of a migration source is not absolute",
            next_step="the node reads it: give the absolute path on the node's machine",
        )
    if source.kind is SourceKind.PYTHON and not all(address.partition(":")):
        raise InvalidArgumentError(
            f"{address!r} names no function", next_step="write python:module:function"
        )
    for path in (source.python, source.folder):
        if path and not path.startswith("/"):
            raise InvalidArgumentError(
                f"the path {path!r} is not absolute",
                next_step="give the absolute path on the node's machine",
            )
    for schema in source.also_search:
        _check_identifier(schema, "schema")
    _check_identifier(source.version_table, "table")
    _check_variables(source)
    return source


OWN_VARIABLES: Final = ("schema", "tenant", "role")
VARIABLES_MAX: Final = 200
VALUE_MAX: Final = 10_000
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


def _check_variables(source: Source) -> None:
    if source.variables and source.kind is not SourceKind.SQL:
        raise InvalidArgumentError(
            f"a source of kind {source.kind} has no variables", next_step="leave --set away"
        )
    for name, value in source.variables:
        if name in OWN_VARIABLES or not _VARIABLE.fullmatch(name):
            raise InvalidArgumentError(
                f"{name!r} cannot be a variable of SQL files",
                next_step="use letters, digits and _ . -, and none of "
                + ", ".join(OWN_VARIABLES)
                + ", which are the tenant's",
            )
        if "\0" in value or len(value) > VALUE_MAX:
            raise InvalidArgumentError(
                f"the value of the variable {name} has a zero byte, or is too long",
                next_step=f"use at most {VALUE_MAX} characters",
            )
    if len(source.variables) > VARIABLES_MAX:
        raise InvalidArgumentError(
            f"the source has {len(source.variables)} variables",
            next_step=f"use at most {VARIABLES_MAX}",
        )


class RunState(StrEnum):
    """Where a run is."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    """Too many tenants of one wave failed; a person decides."""
    DONE = "done"
    PARTLY_FAILED = "partly_failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Whether nothing will happen to it any more, unless failed tenants are tried again."""
        return self in {RunState.DONE, RunState.PARTLY_FAILED, RunState.CANCELLED}


class Wish(StrEnum):
    """What a person asked of a run that somebody works on."""

    NONE = ""
    PAUSE = "pause"
    CANCEL = "cancel"


class ItemState(StrEnum):
    """Where one tenant of a run is."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"

    @property
    def is_over(self) -> bool:
        """Whether its wave need not wait for it."""
        return self in {ItemState.DONE, ItemState.FAILED, ItemState.SKIPPED}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run goes."""

    jobs: int = 4
    max_failures: int = 3
    lock_timeout_s: float = 5.0
    statement_timeout_s: float = 600.0
    tenant_timeout_s: float = 3600.0
    """How long a worker process may take for one tenant before it is ended."""
    retries: int = 5
    pause_s: float = 0.0
    verify: bool = False
    """Look into tenants that are at the target according to their stored version, too."""
    downgrade: bool = False
    """Take tenants that are ahead of the target back to it."""
    out_of_order: bool = False
    """Run versions that sort before ones a tenant has, instead of refusing them."""
    single_transaction: bool = False
    """Run all files that a tenant lacks in one transaction, instead of one each."""
    recycle_after: int = 100
    """A worker process ends after so many tenants, and another takes its place."""

    def __post_init__(self) -> None:
        bounds = {
            "jobs": (1, 64),
            "max_failures": (1, 1_000_000),
            "lock_timeout_s": (0.001, 3600.0),
            "statement_timeout_s": (0.001, 86_400.0),
            "tenant_timeout_s": (0.001, 7 * 86_400.0),
            "retries": (0, 1000),
            "pause_s": (0.0, 7 * 86_400.0),
            "recycle_after": (1, 1_000_000),
        }
        for name, (lowest, highest) in bounds.items():
            if not lowest <= getattr(self, name) <= highest:
                raise InvalidArgumentError(
                    f"{name} is {getattr(self, name):g}",
                    next_step=f"choose between {lowest:g} and {highest:g}",
                )


@dataclass(frozen=True, slots=True)
class Run:
    """One upgrade of many tenants; ``version`` is the row's, for compare-and-swap."""

    id: int
    source: Source
    target: str
    state: RunState
    options: RunOptions
    selection: Mapping[str, Any]
    """What was asked for, so that tenants registered meanwhile can be told to belong to it."""
    wish: Wish = Wish.NONE
    message: str = ""
    wave: int = 0
    """The wave that is worked on, or was last."""
    wave_opens_at: datetime | None = None
    forgiven: int = 0
    """Failures of that wave that a person has seen and resumed in spite of."""
    waves: int = 1
    at_target: int = 0
    """Tenants that were there already according to their stored version, and were left alone."""
    created_at: datetime | None = None
    ended_at: datetime | None = None
    version: int = 1


@dataclass(frozen=True, slots=True)
class Item:
    """One tenant of a run."""

    tenant_id: str
    name: str
    wave: int
    ordinal: int
    state: ItemState = ItemState.PENDING
    attempts: int = 0
    next_at: datetime | None = None
    from_version: str = ""
    to_version: str = ""
    reason: str = ""
    """Why it was skipped, or the code of what failed."""
    message: str = ""
    took_ms: float = 0.0
