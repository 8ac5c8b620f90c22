"""Stories of the ledger and its updates: order, gaps, failures, checks, patches, dumps."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect

from conformance.clusterdb_lab import Lab, Outcome, check_error, lab
from conformance.scenarios import Facts
from fix_forked import finished
from tidegate.cluster.ledger import TABLE, Update
from tidegate.cluster.schema import BEFORE_PATCH, Schema
from tidegate.errors import ClusterDatabaseError, GracefulAbortError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from conformance.scenarios import Scenario


def boom(_connection: Connection) -> None:
    raise ValueError("boom")


def named(words: str) -> Update:
    """An update by a case's words."""
    known = {
        "create table": Update("test.create", ("CREATE TABLE test (id integer)",)),
        "insert row": Update("test.insert", ("INSERT INTO test (id) VALUES (1)",)),
        "insert 1": Update("test.insert", ("INSERT INTO test (id) VALUES (1)",)),
        "add column": Update("test.add", ("ALTER TABLE test ADD COLUMN name text",)),
        "noop": Update("test.noop"),
        "raise boom": Update("test.boom", run=boom),
    }
    return known[words]


def plain(count: int) -> list[Update]:
    """Updates that do nothing."""
    return [Update(f"test.u{n}") for n in range(1, count + 1)]


def recorded(made: Lab, versions: list[int], known: list[Update]) -> None:
    """A database whose ledger has these versions, and perhaps gaps between them."""
    Schema(known[: max(versions, default=0)]).ensure(made.database)
    with made.database.transaction() as connection:
        for version in range(1, max(versions, default=0)):
            if version not in versions:
                connection.exec_driver_sql(f"DELETE FROM {TABLE} WHERE version = {version}")


# -- openings of a ledger, one an event


PARTS = frozenset(
    {"recorded", "recorded_versions", "code", "updates_in_code", "updates", "fresh", "created_from"}
)
WORDS = re.compile(r"fresh|gap|hole|missing|no updates|zero updates|without updates", re.IGNORECASE)


def is_ledger(case: Scenario) -> bool:
    if PARTS & {key for key in case.given if key != "updates"}:
        return True
    return bool(case.events) and all(
        isinstance(event, Facts)
        and (PARTS & set(event) or WORDS.search(str(event.data.get("variant", ""))))
        for event in case.events
    )


@dataclass
class Opened:
    """How bringing a ledger up to date ended."""

    made: Lab
    initial: int | None = None
    error: Exception | None = None

    def check(self, key: str, wanted: Any) -> None:
        """One expectation by its name; one that is not known fails."""
        checks: dict[str, Callable[[Any], None]] = {
            "initial": lambda value: self._equal(self.initial, value),
            "recorded": lambda value: self._equal(self.made.recorded, value),
            "recorded_after": lambda value: self._equal(self.made.recorded, value),
            "error": lambda value: check_error(value, self.error),
            "errors": lambda value: check_error(value, self.error),
            "result": self._result,
            "results": self._result,
            "tables": lambda value: self._equal(self._tables, value),
            "tables_left": lambda value: self._equal(self._tables, value),
            "version_table": self._version_table,
            "version_table_left": self._version_table,
            "version_table_exists": self._version_table,
            "version_table_created": self._version_table,
        }
        checks[key](wanted)

    @property
    def _tables(self) -> list[str]:
        return [name for name in self.made.tables if name != TABLE]

    @staticmethod
    def _equal(found: Any, wanted: Any) -> None:
        assert found == wanted

    def _version_table(self, wanted: bool | str) -> None:
        if isinstance(wanted, bool):
            assert (TABLE in self.made.tables) is wanted
        else:
            self._result(f"version table {wanted}")

    def _result(self, wanted: str | None) -> None:
        """Phrases; what is no phrase is the text of an error."""
        holds: tuple[tuple[str, Callable[[], bool]], ...] = (
            (r"ok|no error|success", lambda: self.error is None),
            (r"rolled back|nothing (?:applied|changed)", lambda: self._tables == []),
            (
                r"(?:the )?version table (?:is )?(?:created|exists)(?: (?:but|and) empty)?",
                lambda: TABLE in self.made.tables,
            ),
            (r"empty|(?:the )?version table (?:is )?empty", lambda: self.made.recorded == []),
            (r"no versions?(?: recorded)?", lambda: self.made.recorded == []),
            (r"error|refused", lambda: self.error is not None),
        )
        for part in re.split(r"[,;]\s*", wanted or "ok"):
            known = next((held for pattern, held in holds if re.fullmatch(pattern, part)), None)
            if known is None:
                check_error(part, self.error)
            else:
                assert known(), part


def play_ledger(case: Scenario) -> None:
    """Each event is an opening of a fresh database that has what the event says."""
    updates = [named(words) for words in case.given.get("updates", [])]
    given = {key: case.given[key] for key in case.given if key != "updates"}
    aligned = {"initial", "recorded_after", "recorded", "errors", "results", "tables"}
    for number in range(len(case.events)):
        event = case.take(number)
        with lab() as made:
            opened, label = play_event(made, event, given, updates)
            for key in case.expect:
                value = case.expect[key]
                if isinstance(value, list) and key in aligned and len(value) == len(case.events):
                    opened.check(key, value[number])
                elif key in label and isinstance(value, Facts):
                    for each in value:
                        opened.check(each, value[each])
                elif key in label:
                    opened.check("result", value)
                elif len(case.events) == 1 or key in {"tables_left", "version_table_left"}:
                    opened.check(key, value)
    labels = {str(event.data.get("variant")) for event in case.events if isinstance(event, Facts)}
    assert all(key in aligned or key in labels or len(case.events) == 1 for key in case.expect)


def play_event(
    made: Lab, event: Any, given: dict[str, Any], updates: list[Update]
) -> tuple[Opened, str]:
    facts = dict(given)
    if isinstance(event, Facts):
        facts |= {key: event[key] for key in event}
    else:
        assert event == "ensure()", f"an unknown event: {event}"
    label = str(facts.pop("variant", ""))
    if WORDS.search(label):
        facts = worded(label) | facts
    versions = facts.pop("recorded", facts.pop("recorded_versions", []))
    code = facts.pop("code", facts.pop("updates_in_code", facts.pop("updates", len(updates))))
    known = updates or plain(max([code, *versions]))
    fresh = facts.pop("fresh", None)
    if source := facts.pop("created_from", None):
        match = re.fullmatch(r"dump of (\d+) updates", source)
        assert match, f"an unknown source: {source}"
        created_from_dump(made, known[: int(match[1])])
    else:
        recorded(made, versions, known)
    assert not facts, f"unknown parts: {sorted(facts)}"
    schema = Schema(known[:code])
    if fresh is not None:
        schema.fresh(fresh)
    try:
        return Opened(made, initial=schema.ensure(made.database)), label
    except Exception as error:  # noqa: BLE001 - the case says whether it was wanted
        return Opened(made, error=error), label


def worded(label: str) -> dict[str, Any]:
    """What a variant says in words."""
    if "fresh" in label:
        return {"fresh": "THIS IS NO SQL", "code": 1}
    if re.search("no updates|zero|without", label):
        return {"code": 0}
    return {"recorded": [1, 3], "code": 3}


def created_from_dump(made: Lab, updates: list[Update]) -> None:
    with lab() as other:
        Schema(updates).ensure(other.database)
        text = Schema(updates).dump(other.database)
    schema = Schema(updates)
    schema.fresh(text)
    assert schema.ensure(made.database) == 0


# -- failures within updates and hooks


def is_failing(case: Scenario) -> bool:
    return "raise boom" in case.given.data.get("updates", [])


def play_failing(case: Scenario) -> None:
    updates = [named(words) for words in case.given["updates"]]
    for number in range(len(case.events)):
        variant = case.take(number)["variant"]
        with lab() as made:
            schema = Schema(updates)
            if match := re.fullmatch(r"hook raises at version (-?\d+)", variant):
                schema.hook(raising_at(int(match[1])))
            else:
                assert variant == "update", f"an unknown variant: {variant}"
            opened = Opened(made)
            try:
                schema.ensure(made.database)
            except Exception as error:  # noqa: BLE001 - checked below
                opened.error = error
            opened.check("error", case.expect[variant.partition(" ")[0]])
            opened.check("tables_left", case.expect["tables_left"])
            opened.check("version_table_left", case.expect["version_table_left"])


def raising_at(version: int) -> Callable[[int, Connection], None]:
    def hook(at: int, connection: Connection) -> None:
        if at == version:
            boom(connection)

    return hook


# -- checks that stop


def is_stopping(case: Scenario) -> bool:
    return "check" in case.given


def play_stopping(case: Scenario) -> None:
    assert case.given["check"] == "writes something, then stops"
    table, later = named("create table"), Update("test.later", ("CREATE TABLE later (id integer)",))
    errors = {"graceful abort": GracefulAbortError("graceful abort"), "ordinary error": OSError()}
    for number in range(len(case.events)):
        stop = case.take(number)["stop"]
        wanted = case.expect[stop.partition(" ")[0]]
        with lab() as made:
            Schema((table,)).ensure(made.database)

            def check(_found: int, connection: Connection, error: Exception = errors[stop]) -> None:
                connection.exec_driver_sql("INSERT INTO test VALUES (7)")
                raise error

            schema = Schema((table, later))
            schema.check(check)
            error: Exception | None = None
            try:
                schema.ensure(made.database)
            except (GracefulAbortError, OSError) as caught:
                error = caught
            assert error is errors[stop], "the check's own error, and not another about it"
            with made.database.read() as connection:
                kept = connection.exec_driver_sql("SELECT count(*) FROM test").scalar_one()
            assert wanted["check_writes"] == ("committed" if kept else "rolled back")
            assert wanted["updates"] == "not run"
            assert "later" not in made.tables
            assert made.recorded == [1]
            if "error" in wanted:
                assert wanted["error"] in str(error)


# -- dumps


def is_dump(case: Scenario) -> bool:
    return any(isinstance(event, str) and "dump" in event for event in case.events)


def play_dump(case: Scenario) -> None:
    updates = [named(words) for words in case.given["updates"]]
    for number in range(len(case.events)):
        event = case.take(number)
        match event if isinstance(event, str) else event["variant"]:
            case "dump after both":
                with lab() as made:
                    Schema(updates).ensure(made.database)
                    text = Schema(updates).dump(made.database)
            case "use dump as fresh on a new database":
                wanted = case.expect["new_database"]
                with lab() as made:
                    schema = Schema(updates)
                    schema.fresh(text)
                    assert schema.ensure(made.database) == 0
                    assert made.recorded == wanted["recorded"]
                    with made.database.read() as connection:
                        columns = inspect(connection).get_columns("test")
                    assert [column["name"] for column in columns] == wanted["columns"]
            case "only first applied":
                with lab() as made:
                    Schema(updates[:1]).ensure(made.database)
                    try:
                        Schema(updates).dump(made.database)
                    except Exception as error:  # noqa: BLE001 - checked below
                        check_error(case.expect["only first applied"], error)
                    else:
                        raise AssertionError("dumped")
            case other:
                raise AssertionError(f"an unknown event: {other}")


# -- patch files


def is_patch(case: Scenario) -> bool:
    return "patch_file" in case.given and "updates" in case.given


def play_patch(case: Scenario) -> None:
    assert case.given["patch_file"] == "creates a table and inserts 2"
    updates = [named(words) for words in case.given["updates"]]
    for number in range(len(case.events)):
        event = case.take(number)
        order: list[str] = []
        with lab() as made:
            create, insert = "CREATE TABLE test (id integer);", "INSERT INTO test VALUES (2);"
            schema = Schema([Update("test.first", run=noted(order)), *updates])
            hook_creates = isinstance(event, Facts)
            if hook_creates:
                assert event["variant"] == "hook set, patch only inserts"
                assert event["hook(-1)"] == "creates the table"
            else:
                assert event == "ensure()"
            made.patch.write_text(insert if hook_creates else create + insert)
            schema.file(made.patch)
            schema.hook(noting(order, create if hook_creates else "SELECT 1"))
            schema.check(checking(order))
            schema.ensure(made.database)
            with made.database.read() as connection:
                rows = connection.exec_driver_sql("SELECT id FROM test ORDER BY id").scalars()
                assert list(rows) == case.expect["rows"]
            assert made.patch.exists() is case.expect["patch_file_exists_after"]
            assert order == case.expect["order"]


def noting(order: list[str], statement: str) -> Callable[[int, Connection], None]:
    def hook(version: int, connection: Connection) -> None:
        if version == BEFORE_PATCH:
            connection.exec_driver_sql(statement)
            order.append("hook(-1)")

    return hook


def noted(order: list[str]) -> Callable[[Connection], None]:
    return lambda _: order.append("updates")


def checking(order: list[str]) -> Callable[[int, Connection], None]:
    """A check that notes whether the patch has run by then; or there is no such table."""

    def check(_found: int, connection: Connection) -> None:
        found = connection.exec_driver_sql("SELECT id FROM test").scalars().all()
        order.extend(["patch", "check"] if found == [2] else ["check"])

    return check


# -- the copy before an update, and the check of the cluster


def is_copy(case: Scenario) -> bool:
    return "pending_updates" in case.given


def play_copy(case: Scenario) -> None:
    pending = case.given["pending_updates"]
    for number in range(len(case.events)):
        variant = case.take(number)["variant"]
        wanted = case.expect[variant]
        with lab() as made:
            pair, later = (1, 1), (1 + pending, 1)
            if variant != "schema table absent":
                made.alone(pair)
            if variant == "two placeholder rows":
                second_placeholder(made)
            if variant == "clustered":
                rename_first(made)
                made.members([("b", "b:1", later)])
            outcome = (
                copied_into_nothing(made, later)
                if variant == "backup fails"
                else made.open(later, "a:1")
            )
            if isinstance(wanted, str):
                for part in re.split(r",\s*", wanted):
                    if part == "nothing applied":
                        assert made.recorded == [1]
                    else:
                        check_error(part, outcome.error)
                continue
            assert outcome.is_ready, outcome
            assert made.recorded[-1] == later[0]
            names = [[made.path.name, shape(copy.name)] for copy in made.copies]
            assert names == wanted["copies"]
            if "count" in wanted:
                assert len(made.copies) == wanted["count"]


def shape(name: str) -> str:
    """A copy's name without its moment."""
    return re.sub(r"\d{8}T\d{6}\.\d{3}Z", "<time>", name)


def second_placeholder(made: Lab) -> None:
    made.members([("second", "b:1", (1, 1))])
    with made.database.transaction() as connection:
        connection.exec_driver_sql("DROP INDEX member_address")
        connection.exec_driver_sql("UPDATE member SET address = '0.0.0.0'")


def rename_first(made: Lab) -> None:
    with made.database.transaction() as connection:
        connection.exec_driver_sql("UPDATE member SET name = 'a', address = 'a:1'")


def copied_into_nothing(made: Lab, pair: tuple[int, int]) -> Outcome:
    """Open it in a process that has no room on its disk."""
    done = finished(
        "ensure_program",
        [made.url, "a:1", *map(str, pair)],
        {**os.environ, "FULL_DISK": "always"},
        said="go\n",
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.removeprefix("ready\n"))
    assert "could not be copied" in said["message"]
    return Outcome(error=ClusterDatabaseError(said["message"], next_step="make room"))


def is_check(case: Scenario) -> bool:
    return any(isinstance(event, Facts) and "current_version" in event for event in case.events)


def play_check(case: Scenario) -> None:
    """The check of the cluster, on databases that should not exist."""
    for number in range(len(case.events)):
        event = case.take(number)
        wanted = case.expect["results"][number]
        current = event["current_version"]
        with lab() as made:
            if current:
                made.alone((current, 1))
            if event.get("placeholder_rows"):
                assert event["placeholder_rows"] == 2
                second_placeholder(made)
            if event.get("self_update_rows"):
                assert event["self_update_rows"] == 2
                rename_first(made)
                made.members([("second", "b:1", (1, 1))])
                with made.database.transaction() as connection:
                    connection.exec_driver_sql("DROP INDEX member_address")
                    connection.exec_driver_sql("UPDATE member SET address = 'a:1'")
            outcome = made.open((2, 1), "a:1")
            if wanted == "ok, no query issued":
                # A query would have failed: there was no table to ask.
                assert outcome.is_ready, outcome
                assert made.recorded == [1, 2]
            else:
                check_error(wanted, outcome.error)
                assert made.recorded == [1]
