"""What a run would do, before it is created: its tenants, its waves, and what is run where.

Decides which tenants of a selection a run is about, and refuses one that would take tenants back
without having been told to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tidegate.bootstrap.tenants.model import RunOptions
from tidegate.bootstrap.tenants.previews import group_of
from tidegate.bootstrap.tenants.provisioning import Discovery
from tidegate.bootstrap.tenants.selection import Selection
from tidegate.bootstrap.tenants.undoing import refuse_irreversible, undone
from tidegate.errors import FailedPreconditionError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tidegate.bootstrap.tenants.model import Item, Run, Tenant
    from tidegate.bootstrap.tenants.names import Discovered
    from tidegate.bootstrap.tenants.previews import Group, Preview
    from tidegate.bootstrap.tenants.sources import Opened
    from tidegate.bootstrap.tenants.versions import Chain

AHEAD_SHOWN: Final = 10


@dataclass(frozen=True)
class UpgradeRequest:
    """What ``tidegate tenant upgrade`` asks for."""

    source: str | None = None
    to: str = "head"
    selection: Selection = field(default_factory=Selection)
    wave: str | None = None
    then: str | None = None
    options: RunOptions = field(default_factory=RunOptions)
    shows_sql: bool = False
    """For a dry run: whether it answers with the SQL."""
    discovery: Discovery = field(default_factory=Discovery)
    """Where to look for new tenants first."""


@dataclass(frozen=True)
class Planned:
    """A run that was not created: its waves, and what would be run where."""

    run: Run
    items: tuple[Item, ...]
    chain: Chain
    sql: Mapping[Group, Preview] | None = None
    """Only when asked for."""
    late: Mapping[str, int] = field(default_factory=dict)
    """Versions that sort before ones which tenants have, and how many tenants lack each."""
    repeats: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By tenant's id, the repeatable files that it lacks, by what is stored of it."""
    left_out: tuple[Discovered, ...] = ()
    """What was looked for first, and cannot be registered."""
    tenants: tuple[Tenant, ...] = ()
    """Those of the items, in any order."""

    def to_json(self) -> dict[str, Any]:
        """The waves by name, and for each version that tenants are at, what would be run."""
        cut: list[list[str]] = [[] for _ in range(self.run.waves)] if self.items else []
        for item in self.items:
            cut[item.wave].append(item.name)
        ids = self.chain.ids
        end = ids.index(self.run.target) + 1
        steps_of: dict[Group, Any] = {}
        for item in self.items:
            group = group_of(item, self.repeats)
            found = steps_of.setdefault(
                group, {"from": item.from_version, "tenants": 0, "versions": []}
            )
            found["tenants"] += 1
            if self.run.options.downgrade:
                undo = undone(self.chain, item.from_version, self.run.target)
                found["versions"] = list(undo)
                continue
            start = ids.index(item.from_version) + 1 if item.from_version in ids else 0
            found["versions"] = [*ids[start:end], *group[1]]
        for which, preview in (self.sql or {}).items():
            steps_of[which] |= preview.to_json()
        return {
            "source": self.run.source.name,
            "target": self.run.target,
            "at_target": self.run.at_target,
            "downgrade": self.run.options.downgrade,
            "waves": [{"wave": n + 1, "tenants": names} for n, names in enumerate(cut)],
            "late": [{"version": each, "tenants": count} for each, count in self.late.items()],
            "left_out": [each.to_json() for each in self.left_out],
            "steps": [found for _, found in sorted(steps_of.items(), key=lambda step: step[0])],
        }


def to_be_run(
    chosen: Sequence[Tenant], opened: Opened, target: str, request: UpgradeRequest
) -> list[Tenant]:
    """The tenants of a selection that are not at the target, or for a downgrade, ahead of it.

    Raises:
        FailedPreconditionError: tenants are ahead, or cannot be taken back.
        InvalidArgumentError: the source cannot be taken back, or options contradict.
    """
    chain, source = opened.chain, opened.source.name
    verify = request.options.verify
    if not request.options.downgrade:
        _refuse_ahead(chosen, source, chain, target)
        digest = chain.digest_at(target)
        return [t for t in chosen if verify or not t.is_at(source, target, digest)]
    if verify or request.shows_sql:
        raise InvalidArgumentError(
            "a downgrade takes back the tenants that are ahead by their stored version",
            next_step="leave --verify and --sql away",
        )
    ahead = [t for t in chosen if chain.is_ahead(t.versions.get(source, ""), target)]
    versions = {tenant.versions[source] for tenant in ahead}
    refuse_irreversible(opened.source, chain, opened.folder, versions, target)
    return ahead


def _refuse_ahead(tenants: Sequence[Tenant], source: str, chain: Chain, target: str) -> None:
    """Refuse a run to a version that tenants are past, before anything is run.

    Raises:
        FailedPreconditionError: naming some of them.
    """
    ahead = [each for each in tenants if chain.is_ahead(each.versions.get(source, ""), target)]
    if ahead:
        shown = ", ".join(f"{each.name} ({each.versions[source]})" for each in ahead[:AHEAD_SHOWN])
        more = f" and {len(ahead) - AHEAD_SHOWN} more" if len(ahead) > AHEAD_SHOWN else ""
        raise FailedPreconditionError(
            f"{len(ahead)} of {len(tenants)} tenants are ahead of {target}: {shown}{more};"
            " nothing was run",
            next_step=f"leave them out with --where 'version<={target}', choose a later --to, or"
            " take them back with --downgrade",
            ahead=len(ahead),
        )
