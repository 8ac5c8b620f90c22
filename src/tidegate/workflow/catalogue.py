"""What the tables of a workflow were when it was made, and which changes since then are drift.

Decides which features of a table are remembered, in which compact form, and how two moments of two
sides are compared. A feature is a name ("index orders_mark") with a digest of its definition, so a
change can be named without keeping definitions. Tables and shards that are alike are kept once.

Not drift: what both sides have, what both changed, and what Tidegate makes itself (its triggers and
publications are no features; what waits for the copy at a target is left out until it is built).
Columns, keys and types are compared by the preflight's checks of definitions, not here.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self

from tidegate.engines.postgres.features import digest_of, features
from tidegate.engines.postgres.survey import Need

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tidegate.engines.postgres.catalog import Table
    from tidegate.engines.postgres.survey import TypeFacts
    from tidegate.topology.names import TableName

type Features = Mapping[str, str]
type Tables = Mapping[str, Features]

#: In place of a digest: whatever the definition will be.
ANY: Final = ""

#: Kinds that a target gets after the rows, from actions that wait for them.
LATER: Final = (
    "index ",
    "constraint ",
    "check ",
    "foreign key ",
    "reference ",
    "trigger ",
    "rule ",
)
_EXTENSION: Final = "extension "
#: Features of domains are called after their part: "check positive of domain public.price".
_OF_DOMAIN: Final = " of domain "
#: Kinds that other checks compare, and more exactly.
COMPARED_ELSEWHERE: Final = ("column ", "reference ", "type ")


@dataclass(frozen=True)
class Catalogue:
    """Features by table by shard.

    Attributes:
        others: tables beside the workflow's at a reshard's shard.
        support: functions, views and types that the tables lean on, with digests, by shard.
        around: extensions that they need, and settings of their roles and of the database, by
            shard; a shard that is not in it was not remembered.
    """

    shards: Mapping[str, Tables] = field(default_factory=dict)
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    support: Mapping[str, Features] = field(default_factory=dict)
    around: Mapping[str, Features] = field(default_factory=dict)

    def leaned_on(self) -> tuple[Need, ...]:
        """What the tables leaned on."""
        names = sorted({n for found in self.support.values() for n in found if _OF_DOMAIN not in n})
        return tuple(
            Need(kind, identity) for kind, _, identity in (n.partition(" ") for n in names)
        )

    def extensions(self) -> frozenset[str]:
        """The extensions that the tables needed."""
        names = {name for found in self.around.values() for name in found}
        return frozenset(n.removeprefix(_EXTENSION) for n in names if n.startswith(_EXTENSION))

    def encode(self) -> str:
        """As the workflow's record keeps it."""
        distinct: dict[str, int] = {}
        shards = {
            shard: {
                table: distinct.setdefault(json.dumps(found, sort_keys=True), len(distinct))
                for table, found in sorted(tables.items())
            }
            for shard, tables in sorted(self.shards.items())
        }
        body = {
            "features": [json.loads(each) for each in distinct],
            "shards": shards,
            "others": {shard: list(names) for shard, names in sorted(self.others.items())},
            "support": {shard: dict(found) for shard, found in sorted(self.support.items())},
            "around": {shard: dict(found) for shard, found in sorted(self.around.items())},
        }
        packed = zlib.compress(json.dumps(body, separators=(",", ":")).encode(), 9)
        return base64.b64encode(packed).decode()

    @classmethod
    def decode(cls, text: str) -> Self | None:
        """Inverse of :meth:`encode`; None for a workflow that was made before catalogues were."""
        if not text:
            return None
        body: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(text)))
        return cls(
            {
                shard: {table: body["features"][number] for table, number in tables.items()}
                for shard, tables in body["shards"].items()
            },
            {shard: tuple(names) for shard, names in body["others"].items()},
            body.get("support", {}),
            body.get("around", {}),
        )


class How(StrEnum):
    """How a feature differs, seen from the side that traffic goes to."""

    LACKS = "lacks"
    DIFFERS = "differs"
    BESIDES = "besides"


@dataclass(frozen=True)
class Drift:
    """One feature of a table, or one thing that tables lean on, that the sides no longer share.

    Attributes:
        table: the table; empty of what tables lean on.
    """

    shard: str
    table: str
    message: str
    how: How


def support_features(
    needs: Iterable[Need], functions: Mapping[str, str], types: Mapping[str, TypeFacts]
) -> dict[str, str]:
    """The functions, views, types and parts of domains there are of those that tables lean on.

    Args:
        needs: what they lean on; what belongs to an extension is left out.
        functions: digests of the functions and views of a database, by identity.
        types: its types, by identity.
    """
    found = {}
    for need in needs:
        kind = types.get(need.identity)
        definition = functions.get(need.identity) or (repr(kind.definition) if kind else None)
        if need.extension is None and definition is not None:
            found[f"{need.kind} {need.identity}"] = digest_of(definition)
        if need.extension is None and kind is not None:
            for part, text in kind.parts.items():
                found[f"{part}{_OF_DOMAIN}{need.identity}"] = digest_of(text)
    return found


def expected_support(source: Features, target: Features, *, alike: bool) -> dict[str, str]:
    """What a target has of what tables lean on, once the rows are there.

    Args:
        source: what the tables were made from.
        target: what is there now.
        alike: both servers write definitions alike.
    """
    found = {**source, **target}
    if not alike:
        found |= {name: ANY for name in found if _OF_DOMAIN in name}
    return found


def around_features(
    needed: Iterable[str],
    extensions: Mapping[str, str],
    settings: Mapping[tuple[str, str], str],
) -> dict[str, str]:
    """The extensions that tables need, and the settings that their users meet.

    Args:
        needed: extensions by name.
        extensions: versions of those that are installed.
        settings: values by role (empty: of the database) and name.
    """
    found = {f"{_EXTENSION}{name}": extensions[name] for name in needed if name in extensions}
    for (role, name), value in settings.items():
        found[f"setting {name} of {f'role {role}' if role else 'the database'}"] = value
    return {name: digest_of(definition) for name, definition in found.items()}


def tables_features(
    tables: Mapping[TableName, Table],
    publications: Mapping[TableName, tuple[str, ...]],
    wanted: Iterable[TableName],
) -> dict[str, dict[str, str]]:
    """The features of the wanted tables that are there."""
    return {
        str(name): features(tables[name], publications.get(name, ()))
        for name in wanted
        if name in tables
    }


def with_later(
    made: Tables,
    source: Tables,
    actions: Iterable[tuple[TableName, str]],
    *,
    alike: bool = True,
) -> dict[str, dict[str, str]]:
    """A target as it will be: with what statements that wait for the rows make of the source's.

    Args:
        made: the target's tables as they have just been made.
        source: the tables at the source.
        actions: (table, statement).
        alike: both servers write definitions alike; else only their names are expected.
    """
    found = {table: dict(each) for table, each in made.items()}
    statements: dict[str, list[str]] = {}
    for about, statement in actions:
        statements.setdefault(str(about), []).append(statement)
    for table, waiting in statements.items():
        words = set(re.findall(r'"(?:[^"]|"")+"|\w+', " ".join(waiting)))
        for feature, digest in source.get(table, {}).items():
            kind = next((kind for kind in LATER if feature.startswith(kind)), None)
            if kind is None or table not in found:
                continue
            name = feature.removeprefix(kind)
            if name in words or f'"{name.replace(chr(34), chr(34) * 2)}"' in words:
                found[table].setdefault(feature, digest if alike else ANY)
    return found


def drift(
    then: Catalogue,
    now: Catalogue,
    *,
    leaving: Iterable[str],
    entering: Iterable[str],
    unfinished: Iterable[str] = (),
) -> list[Drift]:
    """What the sides no longer share, seen from the side that traffic goes to.

    Args:
        then: as it was when the workflow was made.
        now: as it is.
        leaving: shards of the side that traffic comes from, or that goes.
        entering: shards of the side that traffic goes to, or that stays.
        unfinished: shards where something still waits for the copy.
    """
    found: dict[tuple[str, str, str], Drift] = {}
    waiting, origins = set(unfinished), list(leaving)
    for entered in entering:
        for left in origins:
            skipped = COMPARED_ELSEWHERE + (LATER if waiting & {entered, left} else ())
            for name, message, how in _support_drift(then, now, left, entered, skipped):
                found.setdefault((entered, "", name), Drift(entered, "", message, how))
            for table in sorted({*now.shards.get(left, {}), *now.shards.get(entered, {})}):
                one = _Pair(
                    left,
                    entered,
                    *(
                        each.shards.get(shard, {}).get(table, {})
                        for shard in (left, entered)
                        for each in (then, now)
                    ),
                )
                for feature in one.all():
                    if feature.startswith(skipped):
                        continue
                    change = one.compare(feature)
                    if change is not None:
                        made = Drift(entered, table, f"{feature} of {table} {change[0]}", change[1])
                        found.setdefault((entered, table, feature), made)
    return list(found.values())


def _support_drift(
    then: Catalogue, now: Catalogue, left: str, entered: str, skipped: tuple[str, ...]
) -> Iterator[tuple[str, str, How]]:
    """Name, what happened and how it differs, of what tables lean on and what is around them."""
    remembers = all(s in each.around for s in (left, entered) for each in (then, now))

    def features_of(each: Catalogue, shard: str) -> Features:
        around = each.around[shard] if remembers else {}
        return {**each.support.get(shard, {}), **around}

    one = _Pair(
        left,
        entered,
        *(features_of(each, shard) for shard in (left, entered) for each in (then, now)),
    )
    for name in one.all():
        change = None if name.startswith(skipped) else one.compare(name)
        if change is not None:
            yield name, f"{name} {change[0]}", change[1]


@dataclass(frozen=True)
class _Pair:
    """One table, or what tables lean on, at two shards and two moments."""

    left: str
    entered: str
    left_then: Features
    left_now: Features
    entered_then: Features
    entered_now: Features

    def all(self) -> list[str]:
        return sorted({*self.left_then, *self.left_now, *self.entered_then, *self.entered_now})

    def compare(self, feature: str) -> tuple[str, How] | None:
        """What happened to a feature on one side only."""
        was, left = self.left_then.get(feature), self.left_now.get(feature)
        expected, entered = self.entered_then.get(feature), self.entered_now.get(feature)
        if expected == ANY and entered is not None:
            expected = entered
        if left == entered or (left == was and entered == expected):
            return None
        if entered is None:
            return self._missing(feature, was, left, expected), How.LACKS
        if left is None:
            if was is None:
                return f"was made at {self.entered} since create; {self.left} lacks it", How.BESIDES
            return (
                f"was dropped at {self.left} since create; {self.entered} still has it",
                How.DIFFERS,
            )
        if left != was and entered != expected:
            return None  # both were altered: two servers may write one definition differently
        where, other = (self.left, self.entered) if left != was else (self.entered, self.left)
        return f"was altered at {where} since create, and not at {other}", How.DIFFERS

    def _missing(
        self, feature: str, was: str | None, left: str | None, expected: str | None
    ) -> str:
        if was == left and feature.startswith("check ") and _OF_DOMAIN in feature:
            return (  # a domain does not get a CHECK that some value does not meet
                f"is not at {self.entered}: it was dropped there, or values there do not meet it;"
                f" {self.left} has it"
            )
        if was == left and expected is not None:
            return f"was dropped at {self.entered} since create; {self.left} has it"
        done = "made" if was is None else "altered"
        return f"was {done} at {self.left} since create; {self.entered} lacks it"
