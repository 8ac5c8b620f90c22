"""What a check of a preflight is, and what it says; for any engine.

Decides the form in which an engine brings its own checks along, beside the neutral ones of the
workflows. A check is a pure function of what was asked for and of the facts that its engine reads;
its id is stable and is never given another meaning, so that scripts can tell findings apart and
accept the few that are theirs to judge.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: One mebibyte; findings give sizes in it.
MIB: Final = 1024 * 1024


class Severity(StrEnum):
    """What a finding means: an error refuses, a warning should be read, an info may be."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Asked(Protocol):
    """What an engine's checks know of the request: the part that is about databases."""

    @property
    def workflow(self) -> str:
        """Its name, for messages."""

    @property
    def target_keyspace(self) -> str:
        """Its vschema says where rows go."""

    @property
    def target_shards(self) -> tuple[str, ...]:
        """By name."""

    @property
    def skip_schema_copy(self) -> bool:
        """The tables are expected at the target already."""


@dataclass(frozen=True)
class Problem:
    """What a check found: where, and one sentence; ``next_step`` when it knows more than the check.

    ``object`` begins with ``keyspace/shard``, or is a keyspace, workflow, vindex or table name.
    """

    object: str
    message: str
    next_step: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check[R: Asked, F]:
    """One check, of requests ``R`` and facts ``F``.

    Attributes:
        id: ``TG-PF-nnn``; 1xx request and topology, 2xx tables, 3xx servers, 4xx targets, 5xx what
            has changed since create.
        title: what is wrong, in a few words.
        severity: of all its findings.
        cause: why it matters.
        remedy: what to do, where a finding does not say it more exactly.
        waivable: the user may take its errors as warnings, by id.
        streaming: looked at again before each verb after which rows go on between the sides.
        again: further verbs of a running workflow that look at it again, in the workflow's words.
        each_side: then the tables of the target are looked at as well, as of a source.
        schema: looked at as well when a schema is copied without rows.
    """

    id: str
    title: str
    severity: Severity
    cause: str
    remedy: str
    find: Callable[[R, F], Iterable[Problem]]
    waivable: bool = False
    streaming: bool = False
    again: frozenset[str] = frozenset()
    each_side: bool = False
    schema: bool = False


def checks_of(package: str, path: Iterable[str]) -> tuple[Check[Any, Any], ...]:
    """The checks of a package, one a module; none is forgotten."""
    return tuple(import_module(f"{package}.{each.name}").CHECK for each in iter_modules(path))
