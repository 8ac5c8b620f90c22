"""Stories of upgrades whose rows are given: passes of the loop and of workers, claims, entries.

Rows are put into the real tables, the real service makes its passes over them, and what it wrote is
read back. A step's ``total`` and ``ready`` become rows of tenants: they are counted here, not kept.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, event

from bootstrap.make_service import TRACK, Handle, ShiftedDatabase, World, sqlite_database
from conformance.scenarios import Facts
from tidegate.bootstrap.claims import LOCKED, Claim, choose
from tidegate.bootstrap.entries import UpgradeEntry, run_entry
from tidegate.bootstrap.model import Leg, Step, StepState, TenantState, UpgradeState, Version
from tidegate.bootstrap.stored import StoredDirectory
from tidegate.bootstrap.tables import BATCH, STEP, VERSION
from tidegate.bootstrap.tenant_work import PassResult, drain
from tidegate.errors import ConnectError, UpgradePendingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conformance.scenarios import Scenario

STEP_STATES = {
    "created": StepState.CREATED,
    "upgrading_tenant": StepState.UPGRADING_TENANTS,
    "upgrading_tenants": StepState.UPGRADING_TENANTS,
    "ready": StepState.READY,
}
FAR_AWAY = 2**40
"""Ids of the tenants that stand for those of a step that a story only counts."""


@dataclass
class Watch:
    """What a pass did to the database: rows locked, statements that write, by table."""

    locked: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)

    def of(self, table: str) -> int:
        return sum(f" {table} " in f"{each} " for each in self.writes)


@contextmanager
def watching(database: ShiftedDatabase) -> Iterator[Watch]:
    """Watch the statements on the tables of upgrades."""
    seen, engine = Watch(), database._store.engine

    def before_execute(_c: Any, statement: Any, *_: Any) -> None:
        if isinstance(statement, Select) and statement._for_update_arg is not None:
            seen.locked.extend(table.name for table in statement.get_final_froms())  # type: ignore[attr-defined]

    def before_cursor(_c: Any, _cursor: Any, sql: str, *_: Any) -> None:
        if sql.startswith(("INSERT", "UPDATE", "DELETE")):
            seen.writes.append(re.split(r"\(|SET", sql, maxsplit=1)[0])

    event.listen(engine, "before_execute", before_execute)
    event.listen(engine, "before_cursor_execute", before_cursor)
    yield seen
    event.remove(engine, "before_execute", before_execute)
    event.remove(engine, "before_cursor_execute", before_cursor)


@contextmanager
def a_world() -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder, sqlite_database(Path(folder)) as database:
        world = World(database, StoredDirectory(database, TRACK))
        yield world
        world.close()


@dataclass
class Rows:
    """An upgrade whose rows a story gives, and the program that carries it out."""

    world: World
    handle: Handle
    sequence: int = 2

    def __post_init__(self) -> None:
        self.service = self.world.service([self.handle])
        self.store = self.service._work.store

    def step(self, ordinal: int = 0) -> Step:
        with self.world.database.read() as connection:
            return self.store.steps(connection, self.sequence)[ordinal]

    def shown(self) -> dict[str, Any]:
        """The first step as stories show it."""
        step = self.step()
        with self.world.database.read() as connection:
            counted = self.store.progress(connection, step)
        return {"ready": counted.ready, "total": counted.total, "state": str(step.state)}

    def add_range(self, first: int, last: int, tenants: list[int]) -> None:
        """A batch with this range, of these tenants."""
        with self.world.database.transaction() as connection:
            number = self.store.add_batch(connection, self.step(), tenants)
            values = {"first_tenant": first, "last_tenant": last}
            connection.execute(BATCH.update().where(BATCH.c.batch == number).values(**values))

    def add_settled(self, count: int) -> None:
        """Tenants that earlier passes have brought to the target."""
        if not count:
            return
        ids = [FAR_AWAY + n for n in range(count)]
        for each in ids:
            self.world.directory.put(each, f"done{each}", self.step().leg.target)
        self.add_range(ids[0], ids[-1], ids)
        with self.world.database.transaction() as connection:
            step = self.step()
            for task in self.store.tasks(connection, step):
                if task.tenant_id >= FAR_AWAY:
                    self.store.settle(connection, step, task, TenantState.DONE)
            settled = BATCH.c.first_tenant >= FAR_AWAY
            connection.execute(BATCH.update().where(settled).values(ready=1))

    def hold(self, first: int) -> None:
        """Another worker holds the batch that begins there."""
        with self.world.database.transaction() as connection:
            now, step = self.world.database.now(connection), self.step()
            (batch,) = [b for b in self.store.batches(connection, step) if b.first == first]
            until = now + timedelta(hours=1)
            assert self.store.claim_batch(connection, step, batch, "another worker", until)

    def ready_batches(self) -> list[bool]:
        """Of each batch that a story names, whether it is ready."""
        with self.world.database.read() as connection:
            batches = self.store.batches(connection, self.step())
        return [batch.is_ready for batch in batches if batch.first < FAR_AWAY]


def given_rows(world: World, legs: list[Leg], states: list[StepState], *, offset: int = 0) -> Rows:
    """The rows of an upgrade along these legs, by a program that knows its last version."""
    final = Version(legs[-1].target, legs[0].source, offset=offset)
    rows = Rows(world, Handle(final))
    with world.database.transaction() as connection:
        now = world.database.now(connection)
        before = Version("0.0.1", "0.0.1")
        rows.store.add_version(connection, before, UpgradeState.READY, finalised=True, now=now)
        rows.store.add_version(connection, final, UpgradeState.CREATED, finalised=False, now=now)
        rows.store.add_steps(connection, rows.sequence, legs)
        for step, state in zip(rows.store.steps(connection, rows.sequence), states, strict=True):
            rows.store.move_step(connection, step, state)
    return rows


def tenant_leg(facts: Facts) -> Leg:
    return Leg(facts["from"], facts["to"], needs_cluster=False, needs_tenant=True)


def compare(expect: Facts, shown: dict[str, Any]) -> None:
    """What is expected must have been seen; an expectation of another kind fails."""
    for key in expect:
        assert key in shown, f"unknown expectation {key!r}"
        wanted = expect[key]
        if isinstance(wanted, Facts):
            compare(wanted, shown[key])
        else:
            assert shown[key] == wanted, (key, shown)


def upgrade_pass(case: Scenario) -> None:
    """One pass of the upgrade loop over a version and its steps."""
    row, steps = case.given["version_row"], case.given["steps"]
    assert row["state"] == "created"
    legs = [tenant_leg(step) for step in steps]
    with a_world() as world:
        states = [STEP_STATES[step["state"]] for step in steps]
        rows = given_rows(world, legs, states, offset=row["offset"])
        assert row["version"] == legs[-1].target
        rows.add_settled(steps[0]["ready"])
        open_ones = list(range(1, steps[0]["total"] - steps[0]["ready"] + 1))
        for tenant in open_ones:
            world.directory.put(tenant, f"t{tenant}", legs[0].source)
        if open_ones:
            rows.add_range(open_ones[0], open_ones[-1], open_ones)
        assert case.take_all() == ["upgrade loop runs one pass"]
        with watching(world.database) as seen:
            completed = rows.service.upgrade_pass()
        names = {VERSION.name: "version row", STEP.name: "step rows"}
        locks = [names[table] for table in seen.locked]
        failed = rows.step().error or None
        compare(
            case.expect,
            {"completed": completed, "error": failed, "writes": len(seen.writes), "locks": locks},
        )


def worker_passes(case: Scenario) -> None:
    """Passes of a tenant worker over one step with one batch of one tenant."""
    step, task, tenant = case.given["step"], case.given["task"], case.given["tenant"]
    assert step["id"] != task["id"]
    with a_world() as world:
        running = [StepState.UPGRADING_TENANTS]
        rows = given_rows(world, [tenant_leg(step)], running, offset=step.get("offset", 0))
        rows.add_settled(step["ready"])
        world.directory.put(tenant["id"], "t", tenant["version"])
        first, last = task["range"]
        rows.add_range(first, last, [tenant["id"]])
        assert step["total"] == rows.shown()["total"]
        passes: dict[str, Any] = {}
        with watching(world.database) as seen:
            for number, text in enumerate(case.take_all(), start=1):
                assert text in {"tenant worker pass", f"tenant worker pass {number}"}, text
                rows.service.tenant_pass("worker")
                passes[f"after_pass_{number}"] = rows.shown()
        shown = {
            "handler_calls": len(rows.handle.calls),
            "tenant_version_writes": seen.of("upgrade_directory"),
            "tenant_version": world.versions()[tenant["id"]],
            "task_ready": rows.ready_batches() == [True],
            "step": rows.shown(),
        }
        compare(case.expect, shown | passes)


RANGE = re.compile(r"range_(\d+)_(\d+)")


def ranges_of(told: Facts) -> dict[tuple[int, int], list[int] | None]:
    """Tenants by range; None: somebody else has locked them."""
    found: dict[tuple[int, int], list[int] | None] = {}
    for key in told:
        if match := RANGE.fullmatch(key):
            found[int(match[1]), int(match[2])] = _tenants(told[key])
    return found


def _tenants(text: str) -> list[int] | None:
    if text in {"lock conflict", "conflict", "locked"}:
        return None
    if text in {"none", "no tenants", "deleted"}:
        return []
    assert text.startswith("tenant"), f"unknown range {text!r}"
    return [int(number) for number in re.findall(r"\d+", text)]


def counted_step(case: Scenario) -> None:
    """A step of which counts and open ranges are given, and one pass of a worker."""
    events = case.take_all()
    for told in events:
        expect = case.expect
        if isinstance(told, Facts):
            expect = case.expect[told["variant"]]
        else:
            assert told.startswith("tenant worker pass"), f"unknown event {told!r}"
        with tempfile.TemporaryDirectory() as folder, sqlite_database(Path(folder)) as database:
            world = World(database, StoredDirectory(database, TRACK))
            facts = [case.given, told] if isinstance(told, Facts) else [case.given]
            compare(expect, _one_pass(world, case.given["step"], facts, Path(folder)))
            world.close()


def _one_pass(world: World, step: Facts, facts: list[Facts], folder: Path) -> dict[str, Any]:
    for key in ("id", "from", "to", "state"):
        step.get(key)
    running = [StepState.UPGRADING_TENANTS]
    source, target = step.get("from", "3.0.0"), step.get("to", "3.0.1")
    rows = given_rows(world, [Leg(source, target, needs_cluster=False, needs_tenant=True)], running)
    told = _told_ranges(facts)
    settled = step["ready"] if told else step["total"]
    rows.add_settled(settled)
    left = step["total"] - settled
    for number, ((first, last), tenants) in enumerate(told.items()):
        rest = max(left - (len(told) - 1), 1) if number == 0 else 1
        known = tenants or list(range(first, min(first + rest, last + 1)))
        rows.add_range(first, last, known)
        for tenant in known if tenants is None else tenants:
            world.directory.put(tenant, f"t{tenant}", source)
        if tenants is None:
            rows.hold(first)
    before = rows.ready_batches().count(True)
    meanwhile = [f["ready_after_row_lock"] for f in facts if "ready_after_row_lock" in f]
    if meanwhile:
        assert meanwhile == [rows.shown()["total"]]
        _end_step_elsewhere(rows, folder / "cluster.db")
    with watching(world.database) as seen:
        result = rows.service.tenant_pass("worker")
    return {
        "tasks_marked_ready": rows.ready_batches().count(True) - before,
        "step": rows.shown(),
        "handler_calls": len(rows.handle.calls),
        "step_writes": seen.of(STEP.name),
        "task_writes": seen.of(BATCH.name),
        "writes": len(seen.writes),
        "worked": result.has_worked,
        "error": None if result.error is None else str(result.error),
    }


def _told_ranges(facts: list[Facts]) -> dict[tuple[int, int], list[int] | None]:
    """The open ranges of a step, with what is known of their tenants."""
    found: dict[tuple[int, int], list[int] | None] = {}
    for each in facts:
        tasks = each.get("tasks_unready", [])
        if "tasks" in each:
            tasks = [each["tasks"][key] for key in each["tasks"]]
        found |= {(first, last): [] for first, last in tasks}
        conflicts = [each[k] for k in ("conflict", "conflicts", "lock_conflict") if k in each]
        for conflict in conflicts:
            held = list(found) if conflict is True else [tuple(r) for r in conflict or []]
            found |= dict.fromkeys(held)
        if "tenants_in_range" in each:
            count = each["tenants_in_range"]
            if count in {"lock conflict", "conflict"}:
                found = dict.fromkeys(found)
            else:
                found = {(a, b): list(range(a, a + count)) for a, b in found}
        found |= ranges_of(each)
    return found


def _end_step_elsewhere(rows: Rows, path: Path) -> None:
    """Another node ends the step after our worker has counted its tenants."""
    sweep = rows.service._cluster._sweep

    def sweep_while_another_ends_it(step: Step) -> int:
        found = sweep(step)
        with sqlite3.connect(path) as other:
            other.execute("UPDATE upgrade_step SET state = 'ready'")
        other.close()
        return found

    object.__setattr__(rows.service._cluster, "_sweep", sweep_while_another_ends_it)


def drain_loop(case: Scenario) -> None:
    """Passes in a row, as long as there is work."""
    assert case.take_all() == ["drain loop"]
    known = {
        "work": PassResult(has_worked=True),
        "idle": PassResult(has_worked=False),
        "error": PassResult(has_worked=False, error=ConnectError("cut")),
        "work+error": PassResult(has_worked=True, error=ConnectError("cut")),
        "work then cancelled": PassResult(has_worked=True),
    }
    passes = []
    for script in case.given["pass_results"]:
        left, last = list(script), [""]

        def run(left: list[str] = left, last: list[str] = last) -> PassResult:
            last[0] = left.pop(0)
            return known[last[0]]

        def is_cancelled(last: list[str] = last) -> bool:
            return last[0].endswith("cancelled")

        passes.append(drain(run, is_cancelled))
        assert not left, "passes that were told of did not run"
    compare(case.expect, {"passes": passes})


def claims(case: Scenario) -> None:
    """Which batch a worker claims."""
    for told in case.take_all():
        tasks = case.given["tasks"]
        named = {tuple(tasks[key]): int(key) for key in tasks}
        ranges = ranges_of(told)
        if "only_task" in told:
            only = tuple(told["only_task"])
            ranges, named = {only: _tenants(told["rows"])}, {only: 1}
        with a_world() as world:
            claim = _claimed(world, ranges)
        batch = claim.batch
        shown = {
            "claimed_task": None if batch is None else named[batch.first, batch.last],
            "tenants": list(claim.tenants),
            "deleted_seen": claim.saw_deleted,
            "conflict_seen": claim.saw_conflict,
            "loops": len(ranges),
        }
        compare(case.expect[told["variant"]], shown)


def _claimed(world: World, ranges: dict[tuple[int, int], list[int] | None]) -> Claim:
    leg = Leg("3.0.0", "3.0.1", needs_cluster=False, needs_tenant=True)
    rows = given_rows(world, [leg], [StepState.UPGRADING_TENANTS])
    for (first, last), tenants in ranges.items():
        rows.add_range(first, last, tenants or [first])
        for tenant in [first] if tenants is None else tenants:
            world.directory.put(tenant, f"t{tenant}", leg.source)
    for (first, _last), tenants in ranges.items():
        if tenants is None:
            rows.hold(first)
    found = rows.service._tenants._claim(rows.step(), "worker")
    # The same question without a database: a search looks at each range once at most.
    batches = [] if found.batch is None else [found.batch]
    assert choose(batches, world.database.now(), lambda _b: LOCKED).looks <= len(ranges)
    assert found.looks <= len(ranges)
    return found


def entries(case: Scenario) -> None:
    """One entry twice, then one that waits for a protocol, for each answer of the members."""
    entry, gated = case.given["entry"], case.given["gated_entry"]
    assert entry["check"] == "false until post ran"
    ran: list[str] = []
    done: list[str] = []
    names = {"pre": entry["pre"], "main": entry["upgrade"], "post": entry["post"]}

    def run_part(part: str) -> None:
        ran.append(names[part])
        if part == "post":
            done.append(part)

    plain = UpgradeEntry[None](
        "plain",
        check=lambda _c: bool(done),
        pre=lambda _c: run_part("pre"),
        main=lambda _c: run_part("main"),
        post=lambda _c: run_part("post"),
    )
    shown: dict[str, Any] = {"gate": []}
    for told in case.take_all():
        if told == "run entry twice":
            for number in (1, 2):
                ran.clear()
                run_entry(plain, None, dict)
                shown[f"statements_run_{number}"] = list(ran)
        else:
            shown["gate"].append(_gate(gated, told["gate"]))
    compare(case.expect, shown)


def _gate(gated: Facts, answer: str) -> str:
    required, ran = gated["required_protocol"], []

    def protocols() -> dict[str, object]:
        if answer == "query fails":
            raise ConnectError("no answer")
        if answer == "malformed answer":
            return {"n1": required, "n2": "not a number"}
        assert answer.startswith("nodes "), f"unknown answer {answer!r}"
        numbers = answer.removeprefix("nodes ").split(",")
        return {f"n{place}": int(number) for place, number in enumerate(numbers)}

    entry = UpgradeEntry[None](
        "gated",
        check=lambda _c: gated["check"],
        main=lambda _c: ran.append("main"),
        pre=lambda _c: ran.append("pre"),
        required_protocol=required,
    )
    try:
        assert run_entry(entry, None, protocols)
    except UpgradePendingError:
        return "error, nothing executed" if not ran else f"error after {ran}"
    return "run"
