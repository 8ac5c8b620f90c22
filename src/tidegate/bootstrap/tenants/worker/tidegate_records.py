"""Which rows of a tenant's version table are a source's own.

Decides from values; used by the node and by workers, so it imports the standard library only. A
row belongs to the source it names. Two kinds of rows name another one and may still be ours: those
written before rows named their source (``''``), and those of a source that exists no more under
that name. They are taken over if a version in them is ours by its hash. What may be somebody
else's is refused rather than run again or taken for done.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True)
class Row:
    """One row of a version table."""

    source: str
    version: str
    name: str
    sha256: str
    begun: int | None = None
    """Of a file without a transaction that is not complete: the statement begun last."""


@dataclass(frozen=True)
class Asker:
    """The source that asks, and what is known of others that share the table."""

    name: str
    hashes: Mapping[str, str]
    """By version, as the source has them now."""
    names: Mapping[str, str] = field(default_factory=dict)
    """By version, what its file is called; empty for versions without one."""
    others: Sequence[str] = ()
    """Names of the other sources that exist and keep their versions in the same table."""
    stored: Sequence[str] = ()
    """Names of the sources of which the cluster database has a version for this tenant."""


@dataclass(frozen=True)
class Own:
    """A source's rows."""

    rows: tuple[Row, ...]
    adopted: tuple[str, ...] = ()
    """Whose rows some of them were; they are to be given to the source."""
    refusal: str = ""
    """Why it cannot be told whose the rows are, and what to do; empty when it can."""


def identity(address: str) -> str:
    """What stands for the hash of a version that has no text: of the program that makes it."""
    return hashlib.sha256(address.encode()).hexdigest()


def own(rows: Iterable[Row], asker: Asker) -> Own:
    """The rows that are a source's own."""
    by_source: dict[str, list[Row]] = {}
    for row in rows:
        by_source.setdefault(row.source, []).append(row)
    mine = by_source.pop(asker.name, [])
    if mine:
        return Own(tuple(mine))
    contents = frozenset(asker.hashes.values())
    found: list[Row] = []
    adopted: list[str] = []
    for name, group in sorted(by_source.items()):
        same = next((r for r in group if r.sha256 and r.sha256 in contents), None)
        if name == "":
            verdict = _nameless(group, asker, is_same=same is not None)
        elif name in asker.others:
            verdict = False if same is None else _same_content(same)
        else:
            verdict = _gone(group, asker, is_same=same is not None)
        if isinstance(verdict, str):
            return Own((), refusal=verdict)
        if verdict:
            found += group
            adopted.append(name)
    return Own(tuple(found), tuple(adopted))


def _same_content(row: Row) -> str:
    return (
        f"the tenant has version {row.version} with the same content from the migration source"
        f" {row.source}; upgrade it with --from {row.source}"
    )


def _gone(group: Sequence[Row], asker: Asker, *, is_same: bool) -> bool | str:
    """Whether the rows of a source that is not registered are the asker's; a refusal if unknown."""
    if is_same:
        return True
    edited = next((r for r in group if r.name and asker.names.get(r.version) == r.name), None)
    if edited is None:
        return False
    return (
        f"the tenant has version {edited.version} ({edited.name}) in another wording from the"
        f" migration source {edited.source}, which is not registered; if that is not the same"
        " source, register both: tidegate migrations create"
    )


def _nameless(group: Sequence[Row], asker: Asker, *, is_same: bool) -> bool | str:
    """Whether rows that name no source are the asker's; a refusal when that is unknown."""
    rivals = sorted(set(asker.others) & set(asker.stored))
    if is_same or not rivals:
        return True
    if asker.name not in asker.stored:
        return False
    if any(row.sha256 for row in group):
        return True  # other content than ours, and we have been here: it was edited
    versions = ", ".join(sorted(row.version for row in group)[:5])
    named = " or ".join([asker.name, *rivals])
    return (
        f"versions {versions} were recorded before rows named their source, and may be those of"
        f" {named}; say whose they are: UPDATE the column source of the rows where it is empty"
    )
