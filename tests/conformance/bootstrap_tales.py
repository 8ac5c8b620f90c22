"""Stories of whole upgrades: routes, births, refusals, several nodes, kills, poison, newcomers.

What a story only hints at is told to the real service on a real SQLite file: tenants are rows of
the cluster database, nodes are services of their own on it, a killed node is one whose transaction
ends without a COMMIT and that never comes back to what it held.
"""

from __future__ import annotations

import re
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootstrap.make_service import (
    CLUSTER,
    TRACK,
    Handle,
    World,
    fresh_database,
    handles,
    settle,
    sqlite_database,
)
from conformance.bootstrap_upgrades import a_world, compare
from conformance.scenarios import Facts
from tidegate.bootstrap.founding import LOCK_KEY, Role
from tidegate.bootstrap.locker import LeaseLocker
from tidegate.bootstrap.model import (
    Leg,
    Options,
    StepState,
    UpgradeState,
    Version,
)
from tidegate.bootstrap.planning import Nothing, Plan
from tidegate.bootstrap.route import plan_route
from tidegate.bootstrap.run_rules import should_run
from tidegate.bootstrap.stored import StoredDirectory
from tidegate.cluster.database import ClusterDatabase
from tidegate.errors import LeaseLostError, UpgradeRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from conformance.scenarios import Scenario
    from tidegate.bootstrap.service import Service

FIRST_PAUSE_S = 10.0


def routes(case: Scenario) -> None:
    """The way from a version to the newest one."""
    known = [Version(each["version"], each["min"]) for each in case.given["handles"]]
    found: list[list[list[str]]] = []
    refusals: list[str] = []
    for told in case.take_all():
        try:
            legs = plan_route(told["latest"], known)
        except UpgradeRefusedError as error:
            found.append([])
            refusals.append(str(error))
        else:
            assert legs[-1].target == known[-1].version
            found.append([[leg.source, leg.target] for leg in legs])
    rule = case.expect.get("our_rule", "startup error naming the minimum version")
    assert "error naming the minimum version" in rule
    assert all(known[0].min_source in refusal for refusal in refusals)
    compare_only(case.expect, {"routes": found}, besides={"our_rule"})


def compare_only(expect: Facts, shown: dict[str, Any], *, besides: set[str]) -> None:
    compare(Facts({k: expect.data[k] for k in expect if k not in besides}), shown)
    for key in expect:
        value = expect[key]
        if isinstance(value, Facts):
            _read_all(value)


def _read_all(facts: Facts) -> None:
    for key in facts:
        if isinstance(facts[key], Facts):
            _read_all(facts[key])


def fresh_start(case: Scenario) -> None:
    """A cluster that is empty is born at the newest version."""
    assert case.given["cluster"] == "empty"
    assert case.take_all() == ["start first node"]
    texts = case.given["handles"]
    with a_world() as world:
        service = world.service(handles("1.0.0", *texts))
        assert service.bootstrap() is Role.OWNER
        assert isinstance(service.plan(), Nothing)
        status = service.status()
    assert status.row is not None
    row = {
        "version": status.row.version,
        "state": str(status.row.state),
        "offset": status.row.offset,
    }
    compare(case.expect, {"version_row": row, "upgrade_steps": len(status.steps)})


def failing_step(case: Scenario) -> None:
    """A cluster handler that raises half-way."""
    assert case.given["step"] == "cluster handler raises on its second entry"
    (new,) = handles("1.0.0", "1.1.0", tenant=False)
    shown: dict[str, Any] = {}
    with a_world() as world:
        world.born_at("1.0.0")
        new.fails[CLUSTER] = "the second entry"  # the handle writes first and raises then
        service = world.service([new])
        service.plan()
        passes = 0
        for text in case.take_all():
            if text == "upgrade loop pass":
                world.database.advance(FIRST_PAUSE_S)
                service.upgrade_pass()
                passes += 1
                state = service.status().steps[0].step.state
                kept = world.effects()
                shown[f"after_pass_{passes}"] = {
                    "step_state": str(state),
                    "first_entry_effect": "kept" if kept else "rolled back",
                }
            else:
                assert text == "handler fixed", f"unknown event {text!r}"
                new.fails.clear()
    for key in case.expect:
        for name in case.expect[key]:
            wanted = str(case.expect[key][name]).replace("upgrading_tenant", "upgrading_tenants")
            assert shown[key][name] in wanted.split(" or "), (key, shown)


def many_nodes(case: Scenario) -> None:
    """Nodes of a new program start together on an old cluster, each with connections of its own."""
    assert (case.given["binary"], case.given["cluster"]) == ("new", "old, ready")
    (text,) = case.take_all()
    assert re.fullmatch(r"all (\w+) start at once", text), f"unknown event {text!r}"
    with tempfile.TemporaryDirectory() as folder, sqlite_database(Path(folder)) as database:
        old = World(database, StoredDirectory(database, TRACK))
        old.born_at("1.0.0")
        ids = old.tenants(20, "1.0.0")
        errors = _start_together(f"sqlite:///{folder}/cluster.db", case.given["nodes"])
        watcher = old.service(handles("1.0.0", "1.1.0"))
        row = watcher.status().row
        assert row is not None
        assert (row.version, row.state) == ("1.1.0", UpgradeState.READY)
        shown = {
            "version_rows_added": row.sequence - 1,
            "step_sets_added": len(watcher.status().steps),
            "errors_visible_to_users": len(errors),
        }
        assert old.effects() == sorted((t, "1.1.0") for t in (CLUSTER, *ids))
        old.close()
    compare(case.expect, shown)


def _start_together(url: str, count: int) -> list[BaseException]:
    errors: list[BaseException] = []
    together = threading.Barrier(count)

    def node(number: int) -> None:
        with fresh_database(url, busy_timeout_s=60) as own:
            world = World(own, StoredDirectory(own, TRACK))
            quick = Options(check_s=0.05, tenant_check_s=0.05)
            service = world.service(handles("1.0.0", "1.1.0"), holder=f"n{number}", options=quick)
            together.wait(60)
            try:
                service.bootstrap()
                service.upgrade_tenant(all_tenants=True, timeout_s=120)
            except Exception as error:  # noqa: BLE001 - counted
                errors.append(error)
            finally:
                service.close()

    threads = [threading.Thread(target=node, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
        assert not thread.is_alive()
    return errors


def login(case: Scenario) -> None:
    """A login whose transaction is rolled back after its lazy upgrade."""
    assert case.given["login_transaction"] == "rolled back after lazy upgrade"
    assert case.take_all() == ["maybe_upgrade(T)", "rollback", "maybe_upgrade(T)"]
    wanted = case.expect["second_call"]
    assert wanted.startswith("upgrades again"), f"unknown expectation {wanted!r}"
    with a_world() as world:
        world.born_at("1.0.0")
        (tenant,) = world.tenants(1, "1.0.0")
        (new,) = handles("1.0.0", "1.1.0")
        service = world.service([new])
        service.plan()
        service.upgrade_pass()
        with suppress(ZeroDivisionError), world.database.transaction() as connection:
            assert service.maybe_upgrade_tenant(lambda: (tenant, "1.0.0"), connection)
            _ = 1 / 0
        assert world.versions()[tenant] == "1.0.0"
        assert lazily(world, service, tenant)
        assert new.calls.count(tenant) == 2
        assert not lazily(world, service, tenant)


def lazily(world: World, service: Service[Connection], tenant: int) -> bool:
    """A login: fetch and upgrade in one transaction."""
    version = world.versions()[tenant]
    with world.database.transaction() as connection:
        return service.maybe_upgrade_tenant(lambda: (tenant, version), connection)


def lock_lease(case: Scenario) -> None:
    """The owner of the lock is silent; another takes over; then the owner wants to commit."""
    assert case.given["owner"] == "crashes after taking the bootstrap lock"
    assert case.given["owner_disk"] == "lost"
    assert case.take_all() == ["second node waits", "lease expires"]
    with a_world() as world:
        elsewhere = ClusterDatabase(world.database._store)  # a process that shares no memory
        silent = LeaseLocker(elsewhere, "owner", ttl_s=3600).get(LOCK_KEY)
        assert silent is not None
        waits: list[float] = []

        def pause(seconds: float) -> bool:
            waits.append(seconds)
            if len(waits) == 3:
                world.database.advance(3601)
            return False

        second = world.service([Handle(Version("1.0.0", "1.0.0"))], pause=pause)
        role = second.bootstrap(timeout_s=3600)
        assert len(waits) == 3, "the second node did not wait for the lease"
        try:
            with world.database.transaction() as connection:
                connection.exec_driver_sql("CREATE TABLE late (id bigint)")
                silent.check(connection)
            late = "committed"
        except LeaseLostError:
            late = "rejected"
        silent.release()
    shown = {
        "new_owner": "second node" if role is Role.OWNER else str(role),
        "fencing": f"old owner's late commit is {late}",
    }
    compare(case.expect, shown)


def row_of(world: World, facts: Facts, *, steps: int = 0) -> None:
    """Record the latest version, as the program that planned it did."""
    state = UpgradeState(facts["state"])
    version = Version(facts["version"], "0.0.1", offset=facts.get("offset", 0))
    store = world.service([Handle(version)])._work.store
    with world.database.transaction() as connection:
        now = world.database.now(connection)
        if state is UpgradeState.CREATED:
            before = Version("0.0.1", "0.0.1")
            store.add_version(connection, before, UpgradeState.READY, finalised=True, now=now)
        ready = state is UpgradeState.READY
        sequence = store.add_version(connection, version, state, finalised=ready, now=now)
        leg = Leg(version.version, version.version, needs_cluster=False, needs_tenant=True)
        store.add_steps(connection, sequence, [leg] * steps)
        for step in store.steps(connection, sequence):
            if ready:
                store.move_step(connection, step, StepState.READY)


def by_hand(case: Scenario) -> None:
    """One tenant by hand, that is at the newest version already."""
    binary, tenant = case.given["binary"], case.given["tenant"]
    for told in case.take_all():
        with a_world() as world:
            row_of(world, case.given["latest_row"], steps=told["steps_for_latest"])
            world.directory.put(tenant["id"], "acme", tenant["version"])
            new = Handle(Version(binary["version"], "0.0.1", offset=binary["offset"]))
            with world.service([new]) as service:
                ran = service.upgrade_tenant("acme")
            assert ran == bool(new.calls)
            shown = {
                "handler_calls": len(new.calls),
                "tenant_version": world.versions()[tenant["id"]],
            }
            compare(case.expect[told["variant"]], shown)


REFUSALS = ("refus", "exit", "error", "fatal", "panic")
NOTHINGS = ("nothing", "no plan", "ok", "joins", "none")


def in_flight(case: Scenario) -> None:
    """A program starts beside what another one recorded."""
    for told in case.take_all():
        facts = told if isinstance(told, Facts) else Facts({})
        if not isinstance(told, Facts):
            assert told in STARTS, f"unknown event {told!r}"
        latest = _either("latest_row", facts, case.given) or facts.get("latest")
        binary = _either("binary", facts, case.given)
        expect: Any = case.expect
        if "variant" in facts:
            expect = case.expect[facts["variant"]]
        with a_world() as world:
            row_of(world, latest)
            version = Version(binary["version"], "0.0.1", offset=binary.get("offset", 0))
            service = world.service([Handle(version)])
            try:
                seen = "plan" if isinstance(service.plan(), Plan) else "nothing"
            except UpgradeRefusedError:
                seen = "refuse"
            with world.database.read() as connection:
                rows = len(service._work.store.versions(connection))
        _check_start(expect, seen, written=seen == "plan", rows=rows)


STARTS = ("node starts", "start", "bootstrap_upgrade", "check upgrade", "node.bootstrap_upgrade()")


def _either(key: str, first: Facts, second: Facts) -> Any:
    return first[key] if key in first else second.get(key)


def _check_start(expect: Any, seen: str, *, written: bool, rows: int) -> None:
    wanted = {"refuse": REFUSALS, "nothing": NOTHINGS, "plan": ("plan", "insert", "planned")}
    if isinstance(expect, str):
        assert any(word in expect.lower() for word in wanted[seen]), (expect, seen)
        return
    for key in expect:
        value = expect[key]
        if key in {"result", "action"}:
            assert any(word in str(value).lower() for word in wanted[seen]), (value, seen)
        elif key in {"writes", "rows_written", "version_rows_added", "step_sets_added"}:
            assert value == int(written), (key, value)
        else:
            assert key in {"planned", "refused", "rows"}, f"unknown expectation {key!r}"
            assert value == {"planned": written, "refused": seen == "refuse", "rows": rows}[key]


def run_rules(case: Scenario) -> None:
    """Whether a step runs for a tenant, by rows of versions; told to the rule and to a worker."""
    given = case.given
    listed = [given[k] for k in ("rows", "table", "tenants", "cases") if k in given]
    rows = [row for rows in listed for row in rows]
    rows = rows or [event for event in case.events if isinstance(event, Facts)]
    if "step" in given:
        given["step"].get("id")
    seen = []
    for row in rows:
        facts = row if isinstance(row, Facts) else Facts(dict(zip(ROW, row, strict=False)))
        source = facts.get("from") or given.get("from") or given["step"]["from"]
        target = facts.get("to") or given.get("to") or given["step"]["to"]
        tenant = facts["tenant"] if "tenant" in facts else facts["version"]
        seen.append(_runs(tenant, source, target))
        for key in ("run", "runs", "expect"):
            if key in facts:
                assert facts[key] in {seen[-1], "run" if seen[-1] else "skip"}, (row, seen[-1])
        if "variant" in facts:
            wanted = case.expect[facts["variant"]]
            assert wanted in {seen[-1], "run" if seen[-1] else "skip"}, facts["variant"]
    for event in case.take_all():
        if not isinstance(event, Facts):
            assert event.startswith(("tenant worker pass", "evaluate")), f"unknown event {event!r}"
    for key in case.expect:
        if key in {"run", "runs", "results", "needs_upgrade"}:
            words = ["run" if each else "skip" for each in seen]
            assert case.expect[key] in (seen, words), (key, seen)
        else:
            assert isinstance(case.expect[key], bool | str), f"unknown expectation {key!r}"
            assert key in {f["variant"] for f in rows if isinstance(f, Facts) and "variant" in f}


ROW = ("tenant", "from", "to", "run")


def _runs(tenant: str, source: str, target: str) -> bool:
    """What a worker does with such a tenant; the rule says the same."""
    leg = Leg(source, target, needs_cluster=False, needs_tenant=True)
    with a_world() as world:
        world.directory.put(1, "t", tenant)
        service = world.service([Handle(Version(target, "0.0.0"))])
        service._tenants.run_one(leg, 1)
        ran = bool(service._work.handles[target].calls)  # type: ignore[attr-defined]
    assert ran == should_run(tenant, leg)
    return ran


@dataclass
class Tale:
    """A whole upgrade in the telling."""

    world: World
    known: list[Handle]
    old: str
    service: Service[Connection]
    answers: list[bool] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    newcomers: dict[str, int] = field(default_factory=dict)
    poison: int | None = None

    @property
    def final(self) -> str:
        return self.known[-1].metadata.version

    def shown(self) -> dict[str, Any]:
        """Everything that a story may ask about."""
        status, versions = self.service.status(), self.world.versions()
        assert status.row is not None
        calls = [tenant for handle in self.known for tenant in handle.calls if tenant > 0]
        effects = [(t, v) for t, v in self.world.effects() if t > 0]
        others = {t: v for t, v in versions.items() if t != self.poison}
        states = {str(t.state) for s in status.steps for t in s.trouble}
        counted = [s.progress for s in status.steps]
        at_final = sum(v == self.final for v in versions.values())
        return {
            "version_row": {
                "version": status.row.version,
                "state": str(status.row.state),
                "offset": status.row.offset,
            },
            "version_ready": status.row.state is UpgradeState.READY,
            "upgrade_steps": len(status.steps),
            "steps": [[s.step.leg.source, s.step.leg.target] for s in status.steps],
            "all_tenants_at": _one(set(versions.values())),
            "other_tenants_at": _one(set(others.values())),
            "other_tenants_done": set(others.values()) == {self.final},
            "tenants_upgraded": at_final,
            "tenants_at_final": at_final,
            "poison_state": "/".join(sorted(states)),
            "poison_version": versions.get(self.poison or -1),
            "handler_calls": len(calls),
            "handler_effects": len(effects),
            "effects_once": len(effects) == len(set(effects)),
            "lost_tenants": [t for t in versions if versions[t] != self.final],
            "ready_never_above_total": all(p.ready <= p.total for p in counted),
            "total": sum(p.total for p in counted),
            "ready": sum(p.ready for p in counted),
            "lazy": self.answers,
            "maybe_upgrade": self.answers,
            "old_newcomer_at": versions.get(self.newcomers.get("old", -1)),
            "new_newcomer_at": versions.get(self.newcomers.get("new", -1)),
            "new_newcomer_in_a_task": self._has_task("new"),
        }

    def _has_task(self, who: str) -> bool:
        status, tenant = self.service.status(), self.newcomers.get(who, -1)
        with self.world.database.read() as connection:
            store = self.service._work.store
            return any(store.task(connection, s.step, tenant) for s in status.steps)


def _one(values: set[str]) -> str | list[str]:
    return values.pop() if len(values) == 1 else sorted(values)


def whole_upgrade(case: Scenario) -> None:
    """From an old cluster with tenants to the newest version, with what happens on the way."""
    given = case.given
    known = _known(given)
    old = next(
        (given[k] for k in ("from", "latest", "cluster_version", "source") if k in given),
        known[0].metadata.min_source,
    )
    with a_world() as world:
        world.born_at(old)
        options = Options(tenant_batch=given.get("tenant_batch", 0), check_s=3600)
        service = world.service(known, options=options)
        tale = Tale(world, known, old, service)
        count = given.get("tenants", 5)
        if isinstance(count, Facts):
            assert count.get("version", old) == old
            count = count["count"]
        tale.ids = world.tenants(count, old)
        _afflict(tale, given)
        for event in case.take_all():
            text = event if isinstance(event, str) else event["do"]
            found = [act for pattern, act in EVENTS if re.fullmatch(pattern, text)]
            assert found, f"unknown event {text!r}"
            found[0](tale)
        compare(case.expect, tale.shown())


def _known(given: Facts) -> list[Handle]:
    listed: list[Any] = given.get("handles", ["1.2.0"])
    if all(isinstance(each, str) for each in listed):
        first = next(
            (given[k] for k in ("from", "latest", "cluster_version", "source") if k in given),
            "1.0.0",
        )
        return handles(first, *listed)
    return [Handle(Version(each["version"], each["min"])) for each in listed]


def _afflict(tale: Tale, given: Facts) -> None:
    for key in ("poison_tenant", "failing_tenant"):
        if key in given:
            tale.poison = tale.ids[given[key] - 1]
            for handle in tale.known:
                handle.fails[tale.poison] = "poison"


def _begin(tale: Tale) -> None:
    tale.service.plan()
    tale.service.upgrade_pass()


def _run(tale: Tale) -> None:
    tale.service.plan()
    settle(tale.service)


def _kill_inside(tale: Tale) -> None:
    """A worker that holds a batch dies within a tenant's transaction and is never heard again."""

    class Killed(BaseException):
        """No handler of errors sees it, as none would see SIGKILL."""

    seen: list[int] = []

    def die(tenant: int) -> None:
        seen.append(tenant)
        if len(seen) == 2:
            raise Killed

    dying = tale.known[0]
    _begin(tale)
    dying.during = die
    repair = tale.service._tenants._repair
    object.__setattr__(tale.service._tenants, "_repair", lambda _step, _batch: None)
    try:
        tale.service.tenant_pass("killed")
    except Killed:
        dying.during = None
    object.__setattr__(tale.service._tenants, "_repair", repair)
    assert len(seen) == 2, "nobody was killed"


def _lease_expires(tale: Tale) -> None:
    tale.world.database.advance(tale.service._work.batch_lease_s + 1)


def _join(who: str, version: Callable[[Tale], str]) -> Callable[[Tale], None]:
    def join(tale: Tale) -> None:
        tale.newcomers[who] = tale.world.directory.add(f"{who}-{len(tale.ids)}", version(tale))

    return join


def _login(tale: Tale) -> None:
    tenant = tale.newcomers.get("old", tale.ids[-1])
    tale.answers.append(lazily(tale.world, tale.service, tenant))


def _drop_first(tale: Tale) -> None:
    tale.world.directory.drop(tale.ids.pop(0))


def _mend(tale: Tale) -> None:
    for handle in tale.known:
        handle.fails.clear()


def _poison_name(tale: Tale) -> str:
    assert tale.poison is not None
    return tale.world.directory.names([tale.poison])[tale.poison]


def _old_version(tale: Tale) -> str:
    return tale.old


def _new_version(tale: Tale) -> str:
    return tale.final


def _retry(tale: Tale) -> None:
    tale.service.retry_tenant()
    settle(tale.service)


def _skip(tale: Tale) -> None:
    tale.service.skip_tenant(_poison_name(tale))
    settle(tale.service)


EVENTS: tuple[tuple[str, Callable[[Tale], None]], ...] = (
    (r"upgrade begins|new node starts|planning|step begins", _begin),
    (r"upgrade|upgrade runs|workers run|(all )?passes|another node takes over", _run),
    (r"(node|worker) (is )?killed( in a batch| inside a batch)?", _kill_inside),
    (r"lease expires", _lease_expires),
    (r"old node creates (a )?tenant|tenant created by old node", _join("old", _old_version)),
    (r"new node creates (a )?tenant|tenant created by new node", _join("new", _new_version)),
    (r"maybe_upgrade\(\w+\)", _login),
    (r"tenant (is )?dropped", _drop_first),
    (r"handler fixed", _mend),
    (r"retry(_tenant)?(\(\w+\))?", _retry),
    (r"skip(_tenant)?(\(\w+\))?", _skip),
)
"""What may happen, as patterns of an event's whole text."""


def by_words(case: Scenario) -> list[Callable[[Scenario], None]]:
    """The plays that a story's words call for."""
    given = set(case.given)
    told = {key for event in case.events if isinstance(event, Facts) for key in event}
    words: tuple[tuple[bool, Callable[[Scenario], None]], ...] = (
        ({"binary", "tenant", "latest_row"} <= given, by_hand),
        ("binary" in given | told and bool((given | told) & {"latest_row", "latest"}), in_flight),
        ("handles" in given and "latest" in told, routes),
        (case.given.get("cluster") == "empty", fresh_start),
        (given == {"step"} and isinstance(case.given["step"], str), failing_step),
        (isinstance(case.given.get("tenants"), int | Facts), whole_upgrade),
        (bool(given & {"poison_tenant", "failing_tenant"}), whole_upgrade),
        (bool(given & {"rows", "table", "tenants"}) or {"tenant", "to"} <= told, run_rules),
        ("tenant" in told and bool(given & {"step", "to"}), run_rules),
    )
    return [play for is_called, play in words if is_called][:1]
