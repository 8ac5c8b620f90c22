"""Stories of one node that opens a database: fresh, beside others, locked, patched, killed."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.clusterdb_gate import CHECKS
from conformance.clusterdb_lab import (
    Lab,
    Outcome,
    attempt,
    check_error,
    known,
    lab,
    text_of,
)
from conformance.scenarios import Facts
from fix_forked import finished
from make_cluster import add, extensions, updates
from tidegate.cluster.cluster import Cluster, NewSchema
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.gate import Verdict
from tidegate.cluster.ledger import Update
from tidegate.cluster.members import MemberState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conformance.scenarios import Scenario
    from tidegate.cluster.members import Member

OPENS = re.compile(
    r"(?:\w+\.)?(?:ensure_schema|open)\(\)(?:,? again)?|restart|(?:starts?|opens?) again"
)
CRASH = re.compile(r"crash|kill|dies|die\b|kill -9", re.IGNORECASE)


def is_opening(case: Scenario) -> bool:
    return any(OPENS.fullmatch(text) for text in text_of(case.events)) and not is_rolling(case)


def is_rolling(case: Scenario) -> bool:
    """Several nodes by name: another kind of story."""
    return bool({"all_nodes", "old_binary", "row", "notification"} & set(case.given))


def play_opening(case: Scenario) -> None:
    """A database, one program; what is expected is said of the last opening."""
    given = case.given
    binary = given.get("binary", [3, 1])
    with lab() as made:
        address, sleep, lock = prepared(case, made, binary)
        before = made.contents()
        crash = next((str(given[key]) for key in given if CRASH.search(key)), None)
        outcome = Outcome()
        with lock:
            for number, event in enumerate(case.events):
                if not isinstance(event, str):
                    continue
                case.take(number)
                if CRASH.search(event) or (crash is not None and number == 0):
                    killed(made, binary, address)
                    assert made.contents() == before
                    continue
                assert OPENS.fullmatch(event), f"an unknown event: {event}"
                if given.get("next_update") == "fails":
                    outcome = update_fails(made, binary, address)
                else:
                    outcome = made.open(binary, address, sleep=sleep)
        for key in case.expect:
            if key not in variants(case):
                played = Played(made, outcome, before, binary, address)
                check_opened(key, case.expect[key], played)
    for event in case.events:
        if isinstance(event, Facts):
            play_variant(case, event["variant"], binary)
    for number in range(len(case.events)):
        case.take(number)


def variants(case: Scenario) -> set[str]:
    return {event["variant"] for event in case.events if isinstance(event, Facts)}


def prepared(case: Scenario, made: Lab, binary: list[int]) -> tuple[str, Any, ExitStack]:
    """What a case gives, in a database; the address to open it with, and a lock it is under."""
    given = case.given
    address = given.get("own_address", "1.2.3.4:666")
    lock, sleep = ExitStack(), None
    nodes = given.get("nodes", [])
    if nodes:
        pairs = [pair_of(node) for node in nodes]
        made.apply(min([*(pair[0] for pair in pairs), binary[0]]))
        for number, (node, pair) in enumerate(zip(nodes, pairs, strict=True)):
            facts = node if isinstance(node, Facts) else Facts({})
            where = facts.get("address", f"10.0.0.{number}")
            pending = facts.get("pending", False)
            state = MemberState.PENDING if pending else MemberState.ACTIVE
            add(made.database, facts.get("name", f"node{number}"), where, pair, state)
            if number == 0 and "own_address" not in given:
                address = where
    if "patch_file" in given:
        assert given["patch_file"] == "valid"
        made.patch.write_text("CREATE TABLE patched (id integer)")
    if given.get("next_update") == "fails":
        made.alone((1, 1))
    database = given.get("database", "empty")
    if match := re.fullmatch(r"locked for the first (\d+) attempts", database):
        attempts, seen = int(match[1]), []
        other = lock.enter_context(ClusterDatabase.open(made.url))
        lock.enter_context(other.transaction())

        def sleep(seconds: float) -> None:
            seen.append(seconds)
            if len(seen) == attempts:
                lock.close()
    else:
        assert database == "empty", f"an unknown database: {database}"
    return address, sleep, lock


def pair_of(node: Any) -> list[int]:
    if not isinstance(node, Facts):
        return list(node)
    if "version" in node:
        return list(node["version"])
    return [node["schema"], node["api_extensions"]]


def update_fails(made: Lab, binary: list[int], address: str) -> Outcome:
    broken = NewSchema([*updates(1), Update("test.broken", ("INSERT INTO nowhere VALUES (1)",))])
    cluster = Cluster(extensions(binary[1]), broken, database=made.database)
    return attempt(lambda: cluster.ensure_schema(address, made.folder))


def killed(made: Lab, binary: list[int], address: str) -> None:
    """The program dies (SIGKILL) once everything is written and nothing is committed."""
    done = finished(
        "ensure_program",
        [made.url, address, *map(str, binary)],
        {**os.environ, "TIDEGATE_CRASH_AT": "cluster.schema.before_commit"},
        said="go\n",
    )
    assert done.returncode < 0, done.stderr


FAILING: dict[str, Update] = {
    "insert fails": Update(
        "test.strict",
        (
            (
                "CREATE TRIGGER strict BEFORE INSERT ON member"
                " BEGIN SELECT RAISE(ABORT, 'no member may be added'); END"
            ),
        ),
    ),
    "commit fails": Update(
        "test.late",
        (
            "CREATE TABLE parent (id integer PRIMARY KEY)",
            "CREATE TABLE child (id integer REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)",
            "INSERT INTO child VALUES (1)",
        ),
    ),
}
"""What makes the first start of a fresh database fail, at which point."""


def play_variant(case: Scenario, variant: str, binary: list[int]) -> None:
    """The first start of a fresh database fails somewhere."""
    with lab() as made:
        schema = NewSchema([*updates(binary[0]), FAILING[variant]])
        cluster = Cluster(extensions(binary[1]), schema, database=made.database)
        outcome = attempt(lambda: cluster.ensure_schema("1.2.3.4:666"))
        for phrase in phrases(case.expect[variant]):
            check_phrase(phrase, Played(made, outcome, {}, binary, "1.2.3.4:666"))
        assert made.tables == []


# -- what is expected of an opening


@dataclass
class Played:
    """A database after its last opening."""

    made: Lab
    outcome: Outcome
    before: dict[str, object]
    binary: Sequence[int]
    address: str

    @property
    def own(self) -> Member:
        """The row of the node that opened it."""
        rows = self.made.rows()
        alone = [row for row in rows if row.is_placeholder]
        (own,) = alone or [row for row in rows if row.address == self.address]
        return own


def phrases(text: str) -> list[str]:
    return [phrase.strip() for phrase in re.split(r"[,;]", text) if phrase.strip()]


def unmarked(found: dict[str, object]) -> dict[str, object]:
    """What a database holds, without what member rows say of the program that opened it last."""
    rest = dict(found)
    table = rest.pop("member", None)
    assert table is None or isinstance(table, dict)
    return rest if table is None else {**rest, "member": {**table, "rows": len(table["rows"])}}


def check_phrase(phrase: str, played: Played) -> None:
    """One phrase of prose; one that is not understood fails."""
    outcome, made = played.outcome, played.made
    known_phrases: tuple[tuple[str, Callable[[], bool]], ...] = (
        (r"ok|no error", lambda: outcome.error is None),
        (r"ready(?: ?= ?true)?(?: after retries)?|is ready", lambda: outcome.is_ready),
        (r"(?:not ready|ready ?= ?false)", lambda: not outcome.is_ready),
        (r"error|refused?|an error", lambda: outcome.error is not None),
        (r"wait(?:s|ing)?", lambda: outcome.verdict is Verdict.WAIT),
        (
            r"rolled back|nothing (?:applied|changed)|(?:database )?unchanged",
            lambda: unmarked(made.contents()) == unmarked(played.before),
        ),
        (
            r"(?:exactly )?(?:one|1) (?:first )?(?:node|row|node row|first row|member)s?(?: row)?",
            lambda: len(made.rows()) == 1,
        ),
        (
            r"(?:own )?(?:version|row)s? (?:is )?(?:persisted|recorded|stored|committed|written)",
            lambda: known(played.own) == list(played.binary),
        ),
        (
            r"(?:all )?(?:updates )?applied(?: once)?",
            lambda: made.recorded == list(range(1, played.binary[0] + 1)),
        ),
        (
            r"(?:updates )?not (?:applied|run)",
            lambda: made.recorded != list(range(1, played.binary[0] + 1)),
        ),
    )
    for pattern, holds in known_phrases:
        if re.fullmatch(pattern, phrase, re.IGNORECASE):
            assert holds(), f"{phrase}: {outcome}"
            if "after retries" in phrase:
                assert outcome.pauses
            return
    if phrase.startswith("error: "):
        check_error(phrase, outcome.error)
        return
    raise AssertionError(f"an unknown phrase: {phrase!r}")


def check_node_row(wanted: Facts, played: Played) -> None:
    """The first node's row, column by column."""
    (row,) = played.made.rows()
    columns = {
        "id": row.id,
        "name": row.name,
        "address": row.address,
        "schema": row.schema_version,
        "api_extensions": row.extensions.count,
        "pending": not row.is_active,
        "version": known(row),
    }
    for key in wanted:
        assert columns[key] == wanted[key], key


def check_own_row(wanted: Any, played: Played) -> None:
    """What the own row says of the program: a pair, its columns, or that it is recorded."""
    if isinstance(wanted, Facts):
        own = played.own
        columns = {
            "name": own.name,
            "address": own.address,
            "schema": own.schema_version,
            "api_extensions": own.extensions.count,
            "version": known(own),
        }
        for key in wanted:
            assert columns[key] == wanted[key], key
        return
    if isinstance(wanted, bool):
        assert (known(played.own) == list(played.binary)) is wanted
        return
    if isinstance(wanted, str):
        assert wanted in {"committed", "recorded", "persisted", "visible"}, wanted
        wanted = list(played.binary)
    assert known(played.own) == wanted


def check_rows(wanted: Any, played: Played) -> None:
    """How many rows there are, or what they say."""
    rows = played.made.rows()
    if isinstance(wanted, int):
        assert len(rows) == wanted
        return
    assert len(rows) == len(wanted)
    for row, each in zip(rows, wanted, strict=True):
        assert known(row) == pair_of(each)
        if isinstance(each, Facts) and "address" in each:
            assert row.address == each["address"]


def check_patch_path(wanted: str, played: Played) -> None:
    """A patch at this place is found, run and renamed."""
    made = played.made
    path = Path(wanted.replace("<dir>", str(made.folder)))
    path.write_text("CREATE TABLE patched (id integer)")
    assert made.open(played.binary, played.address).is_ready
    assert "patched" in made.tables
    assert not path.exists()


def check_result(wanted: str, played: Played) -> None:
    for phrase in phrases(wanted):
        check_phrase(phrase, played)


def check_applied(wanted: bool, played: Played) -> None:
    assert (played.made.recorded == list(range(1, played.binary[0] + 1))) is wanted


def check_patch_exists(wanted: bool, played: Played) -> None:
    assert played.made.patch.exists() is wanted


OPENED: tuple[tuple[str, Callable[[Any, Played], None]], ...] = (
    (r"result|after_\w+|end", check_result),
    (r"applied", check_applied),
    (r"database", check_phrase),
    (r"patch_file", check_patch_path),
    (r"patch_file_exists(?:_after)?", check_patch_exists),
    (r"node_row|first_node|first_row", check_node_row),
    (
        r"rows|nodes|node_rows|versions|nodes_after|rows_after|members|node_count|placeholder_rows",
        check_rows,
    ),
    (r".*(?:own|persist|record|stored|self|row).*", check_own_row),
)


def check_opened(key: str, wanted: Any, played: Played) -> None:
    """One expectation by its name; one that is not known fails."""
    if key in CHECKS:
        CHECKS[key](played.outcome, wanted)
        return
    for pattern, check in OPENED:
        if re.fullmatch(pattern, key):
            check(wanted, played)
            return
    raise AssertionError(f"an unknown expectation: {key}")
