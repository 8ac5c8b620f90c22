"""Each check finds its problem in facts that have nothing else wrong, and says what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from make_facts import (
    T,
    active,
    both,
    column,
    database,
    facts,
    findings,
    foreign_key,
    known,
    primary_key,
    request,
    reshard_request,
    resharding,
    server,
    sharded,
    snapshot,
    source,
    split_facts,
    split_request,
    table,
    target,
    typed,
)
from preflight_cases import CASES, MOOD, STAY, taking
from tidegate.engines.checks import Severity
from tidegate.engines.postgres.bodies.graph import Reach
from tidegate.engines.postgres.capacity import Capacity
from tidegate.engines.postgres.survey import Need, OtherSession
from tidegate.topology.vschema import TableKind, TableSpec, VSchema
from tidegate.workflow.preflight.facts import (
    ActiveWorkflow,
    Facts,
    PreflightRequest,
)
from tidegate.workflow.preflight.registry import CHECKS, run_preflight

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("major", range(14, 21))
@pytest.mark.parametrize("level", ["minimal", "replica", "logical"])
def test_a_server_passes_at_a_wal_level_its_version_can_decode(major: int, level: str) -> None:
    """From PostgreSQL 19 on, the first logical slot raises ``replica``; before, nothing does."""
    enough = {"logical"} if major < 19 else {"replica", "logical"}
    there = server(version_num=major * 10000, wal_level=level)
    for seen in (source(table(), server=there), target(table(), server=there)):
        found = findings(request(), seen, "TG-PF-304")
        assert bool(found) == (level not in enough), [str(each) for each in found]


@pytest.mark.parametrize(
    ("check_id", "asked", "seen", "text"),
    CASES,
    ids=[f"{case[0]}-{case[3][:20]}" for case in CASES],
)
def test_a_check_finds_its_problem_and_says_what_to_do(
    check_id: str, asked: PreflightRequest, seen: Facts, text: str
) -> None:
    found = findings(asked, seen, check_id)
    assert [finding for finding in found if text in finding.message], [str(f) for f in found]
    for finding in found:
        assert finding.next_step
        assert finding.cause
        assert finding.object
        assert finding.severity is CHECKS[check_id].severity


@pytest.mark.parametrize("here", ["", "<a/>"])
def test_values_that_both_servers_take_alike_or_the_source_does_not_take_pass(here: str) -> None:
    for there in {here, "<a/>"}:
        assert not findings(request(), taking("xml", here, there), "TG-PF-419")


def test_a_sequence_made_by_hand_at_the_target_must_start_beyond_the_sources() -> None:
    """Its value is not carried: from 1 it would give numbers out a second time."""
    stays = (STAY, replace(STAY, kind="sequence"), replace(STAY, kind="foreign table"))
    seen = facts(table(), reached=Reach(stays=stays))
    steps = {f.details["kind"]: f.next_step for f in findings(request(), seen, "TG-PF-241")}
    assert {kind for kind, step in steps.items() if "with a START beyond" in step} == {"sequence"}
    assert all('create "public"."audit"' in steps[k] for k in ("sequence", "foreign table"))


def test_every_check_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(CHECKS)


@pytest.mark.parametrize(
    ("asked", "seen"),
    [
        (request(), facts(table())),
        (split_request(), split_facts(sharded(), table())),
        (reshard_request(), resharding("-80", "80-")),
    ],
    ids=["move", "move into shards", "reshard"],
)
def test_facts_with_nothing_wrong_have_no_findings(asked: PreflightRequest, seen: Facts) -> None:
    assert [str(finding) for finding in run_preflight(asked, seen)] == []


def test_a_workflow_named_like_the_mirror_of_another_is_refused() -> None:
    assert findings(request(), facts(table(), workflows=active("cust_reverse")), "TG-PF-102")


def test_workflows_of_other_keyspaces_do_not_matter() -> None:
    other = (ActiveWorkflow("cust", "a", "b", (T,)),)
    assert run_preflight(request(), facts(table(), workflows=other)) == []


def test_a_rule_that_leads_to_the_source_is_no_obstacle() -> None:
    rules = snapshot().routing_rules.with_rule("t", "commerce.t").with_rule("commerce.t@replica")
    seen = facts(table(), snapshot=snapshot().with_routing_rules(rules))
    assert run_preflight(request(), seen) == []


def test_foreign_keys_among_the_moved_tables_stay() -> None:
    key = foreign_key("t", "v", "u", "id")
    seen = facts(table("t", foreign_keys=(key,)), table("u", referenced_by=(key,)))
    assert run_preflight(request(), seen) == []


@pytest.mark.parametrize(
    "vschema",
    [
        sharded("id", tables="t u"),
        replace(
            sharded("v"), tables={**sharded("v").tables, "u": TableSpec(kind=TableKind.REFERENCE)}
        ),
    ],
    ids=["by the key they compare", "to a reference table"],
)
def test_foreign_keys_that_stay_within_a_shard_are_carried(vschema: VSchema) -> None:
    key = foreign_key("t", "id", "u", "id")
    seen = split_facts(vschema, table("t", foreign_keys=(key,)), table("u"))
    assert findings(split_request(), seen, "TG-PF-211") == []


def test_a_replica_identity_with_the_sharding_column_is_enough() -> None:
    columns = (column("id"), column("tenant"))
    for changes in (
        {"constraints": (primary_key("tenant", "id"),)},
        {"replica_identity": "full", "constraints": (primary_key("id"),)},
    ):
        seen = split_facts(sharded("tenant"), table(columns=columns, **changes))
        assert findings(split_request(), seen, "TG-PF-204") == []


def test_a_unique_index_as_replica_identity_is_a_usable_key() -> None:
    made = table(
        constraints=(), replica_identity="index", replica_identity_columns=("id",), indexes=()
    )
    assert run_preflight(request(), facts(made)) == []


def test_oid_columns_are_fine_where_there_are_no_large_objects() -> None:
    assert run_preflight(request(), facts(typed("oid"))) == []


def test_what_comes_along_with_the_tables_may_be_missing_at_the_target() -> None:
    needs = tuple(
        Need(kind, f"public.{kind}") for kind in ("type", "function", "collation", "schema")
    )
    assert run_preflight(request(), source(table(), survey=known(needs=needs))) == []


def test_equal_definitions_on_both_sides_are_no_findings() -> None:
    same: dict[str, Any] = {
        "types": {"public.mood": MOOD},
        "functions": {"public.f()": "digest"},
        "others": frozenset({("cast", "(text AS public.a)")}),
    }
    needs = (
        Need("type", "public.mood"),
        Need("function", "public.f()"),
        Need("cast", "(text AS public.a)"),
    )
    assert run_preflight(request(), both(same | {"needs": needs}, same)) == []


def test_a_server_that_hosts_several_shards_needs_a_slot_for_each() -> None:
    both = tuple(
        database(
            name,
            keyspace="customer",
            server=server(system_identifier="2", database=name, free_slots=2),
        )
        for name in ("-80", "80-")
    )
    seen = split_facts(sharded(), table(), targets=both)
    (found,) = findings(split_request(), seen, "TG-PF-305")
    assert "2 of 20 replication slots are free, 3 are needed" in found.message


ACCEPTABLE: list[tuple[str, Callable[[], Facts]]] = [
    (
        "TG-PF-309",
        lambda: source(table(), survey=known(other_sessions=(OtherSession(8, "web", "local"),))),
    ),
    (
        "TG-PF-417",
        lambda: target(table(bytes=2**30), capacity=Capacity(data_free_bytes=2**20)),
    ),
]


@pytest.mark.parametrize(("check_id", "make"), ACCEPTABLE)
def test_an_accepted_finding_is_a_warning(check_id: str, make: Callable[[], Facts]) -> None:
    (found,) = findings(request(accepted=frozenset({check_id})), make(), check_id)
    assert found.severity is Severity.WARNING
