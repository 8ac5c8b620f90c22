"""The SQL that a run would send, shown by a dry run: for each group of tenants that lack the same.

Decides nothing about the run. The text is that of one tenant of each group, named in the answer:
variables have its values. SQL files are shown as they would be sent; Alembic writes its SQL in its
offline mode, Django as ``sqlmigrate`` does. A Python function has no SQL to show.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tidegate.bootstrap.tenants.ground import job_of
from tidegate.bootstrap.tenants.hands import values_of
from tidegate.bootstrap.tenants.model import SourceKind
from tidegate.bootstrap.tenants.outcomes import Outcome
from tidegate.bootstrap.tenants.programs import ProgramHand
from tidegate.engines.postgres.placeholders import PlaceholderError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tidegate.bootstrap.tenants.hands import Job
    from tidegate.bootstrap.tenants.model import Item, RunOptions, Tenant
    from tidegate.bootstrap.tenants.sources import Opened
    from tidegate.topology.model import Snapshot

#: Tenants that lack the same: the version they are at, and the repeatable files they are to get.
type Group = tuple[str, tuple[str, ...]]

GROUPS_MAX: Final = 20
SQL_CHARACTERS_MAX: Final = 4 * 1024 * 1024
"""Of all groups together; what is beyond is left out, and the answer says so."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What would be sent to the tenants of one group."""

    tenant: str
    """Whose values are shown."""
    sql: str
    failure: str = ""
    """Why there is no SQL to show."""
    is_cut: bool = False

    def to_json(self) -> dict[str, Any]:
        """As shown."""
        return {
            "tenant": self.tenant,
            "sql": self.sql,
            "failure": self.failure or None,
            "cut": self.is_cut,
        }


def group_of(item: Item, repeats: Mapping[str, tuple[str, ...]]) -> Group:
    """The group that a tenant of a run belongs to."""
    return item.from_version, repeats.get(item.tenant_id, ())


def previews(
    opened: Opened,
    items: Sequence[Item],
    tenants: Mapping[str, Tenant],
    snapshot: Snapshot,
    *,
    target: str,
    options: RunOptions,
    repeats: Mapping[str, tuple[str, ...]],
) -> dict[Group, Preview]:
    """What would be sent to the tenants of each of the first groups."""
    first: dict[Group, Item] = {}
    for item in items:
        first.setdefault(group_of(item, repeats), item)
    found: dict[Group, Preview] = {}
    left = SQL_CHARACTERS_MAX
    hand = ProgramHand(opened.source, options)
    with closing(hand):
        for group, item in sorted(first.items(), key=lambda each: each[0])[:GROUPS_MAX]:
            job = job_of(snapshot, tenants[item.tenant_id], target)
            preview = (
                Preview(item.name, "", job.message)
                if isinstance(job, Outcome)
                else _one(opened, job, group, hand)
            )
            cut = preview.sql[:left]
            left -= len(cut)
            is_cut = len(cut) < len(preview.sql)
            found[group] = Preview(preview.tenant, cut, preview.failure, is_cut)
    return found


def _one(opened: Opened, job: Job, group: Group, hand: ProgramHand) -> Preview:
    if opened.folder is not None:
        return _of_files(opened, job, group)
    if opened.source.kind is SourceKind.PYTHON:
        return Preview(job.name, "", "a Python function has no SQL to show")
    answer = hand.sql(job, group[0])
    if isinstance(answer, Outcome):
        return Preview(job.name, "", answer.message)
    return Preview(job.name, answer)


def _of_files(opened: Opened, job: Job, group: Group) -> Preview:
    assert opened.folder is not None
    chain, values = opened.chain, values_of(opened.source, job)
    have, want = chain.position(group[0]), chain.position(job.target)
    assert want is not None, "the target was found in the chain"
    again = [each for each in chain.repeatable if each.id in group[1]]
    parts = []
    for each in (*chain.versions[0 if have is None else have + 1 : want + 1], *again):
        script = opened.folder.of(each.id)
        how = "" if each.is_transactional else ", outside a transaction"
        try:
            pieces = script.bound(values).pieces
        except PlaceholderError as error:
            return Preview(job.name, "", f"{script.file} {error}")
        parts.append(f"-- {script.file}{how}\n")
        for piece in pieces:
            is_whole = each.is_transactional and piece.rows is None
            end = "" if is_whole else ";"
            rows = f"\n{piece.rows}\\." if piece.rows is not None else ""
            parts.append(f"{piece.text.strip()}{end}{rows}\n")
    return Preview(job.name, "".join(parts))
