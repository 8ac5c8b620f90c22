"""Versions, outcomes and selections: decided from values."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.bootstrap.tenants.model import (
    ItemState,
    Place,
    RunOptions,
    Source,
    SourceKind,
    Tenant,
    check_name,
    parse_source,
)
from tidegate.bootstrap.tenants.names import Spot, escaped, named, unescaped
from tidegate.bootstrap.tenants.outcomes import Cause, Outcome, Result, cause_of, judge, refusal
from tidegate.bootstrap.tenants.selection import Selection, select
from tidegate.bootstrap.tenants.versions import (
    Chain,
    Look,
    Standing,
    Version,
    groups,
    look_at,
    standing_of,
    target_of,
)
from tidegate.engines.postgres.sqlstates import kind_of
from tidegate.errors import InvalidArgumentError, NotFoundError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CHAIN = Chain(tuple(Version(f"00{n}", f"name{n}", f"hash{n}") for n in range(1, 6)))


def applied(*numbers: int, **edited: str) -> list[tuple[str, str]]:
    return [(f"00{n}", edited.get(f"h{n}", f"hash{n}")) for n in numbers]


def test_a_target_is_head_an_id_or_the_beginning_of_one() -> None:
    assert target_of(CHAIN, "head") == "005"
    assert target_of(CHAIN, "002") == "002"
    revisions = Chain((Version("a1f3"), Version("b2c4"), Version("b2d5")), heads=("b2c4", "b2d5"))
    assert target_of(revisions, "a1") == "a1f3"
    for wanted in ("b2", "zz", "", "head"):
        with pytest.raises(InvalidArgumentError):
            target_of(revisions, wanted)


@given(st.integers(0, 5), st.integers(1, 5))
def test_a_tenant_in_order_lacks_exactly_what_comes_after(have: int, want: int) -> None:
    look = look_at(CHAIN, applied(*range(1, have + 1)), f"00{want}")
    current = f"00{have}" if have else ""
    if have > want:
        assert look.standing is Standing.AHEAD
        assert refusal(look, f"00{want}") is not None
    else:
        assert [v.id for v in look.pending] == [f"00{n}" for n in range(have + 1, want + 1)]
        assert refusal(look, f"00{want}") is None
        assert standing_of(CHAIN, current, f"00{want}") is look.standing


@given(st.sets(st.integers(1, 5)), st.integers(1, 5))
def test_whatever_a_tenant_has_nothing_is_run_twice_or_out_of_order(
    have: set[int], want: int
) -> None:
    look = look_at(CHAIN, applied(*have), f"00{want}")
    if look.standing is Standing.BEHIND:
        ids = [v.id for v in look.pending]
        assert not {f"00{n}" for n in have} & set(ids)
        assert [f"00{n}" for n in sorted(have)] + ids == [f"00{n}" for n in range(1, want + 1)]
    else:
        assert look.pending == ()


@pytest.mark.parametrize(
    ("have", "standing", "offender"),
    [
        (applied(1, 3), Standing.GAP, "002"),
        (applied(1, 2, h2="other"), Standing.EDITED, "002"),
        ([*applied(1), ("009", "x")], Standing.AHEAD, "009"),
        ([*applied(1), ("000", "x")], Standing.UNKNOWN, "000"),
        ([("001", "")], Standing.BEHIND, ""),
    ],
)
def test_what_a_tenant_must_not_have_is_named(
    have: list[tuple[str, str]], standing: Standing, offender: str
) -> None:
    look = look_at(CHAIN, have, "005")
    assert (look.standing, look.offender) == (standing, offender)
    text = refusal(look, "005")
    assert (text is None) == (standing is Standing.BEHIND)
    assert offender in (text or "")


def test_stored_versions_stand_as_the_chain_says() -> None:
    assert standing_of(CHAIN, "", "003") is Standing.BEHIND
    assert standing_of(CHAIN, "004", "003") is Standing.AHEAD
    assert standing_of(CHAIN, "x", "003") is Standing.UNKNOWN


def test_a_tenant_is_ahead_of_what_comes_before_its_version() -> None:
    """Situation tenants 09: told from the stored version, before anything runs."""
    assert CHAIN.is_ahead("003", "002")
    assert not CHAIN.is_ahead("002", "002")
    assert not CHAIN.is_ahead("", "002")
    assert not CHAIN.is_ahead("unknown", "002")


def test_a_tenant_on_another_branch_is_not_ahead() -> None:
    """Situation tenants 09, where revisions have branches: a, then b1 or b2, merged in c."""
    parents = {"a": (), "b1": ("a",), "b2": ("a",), "c": ("b1", "b2")}
    chain = Chain(tuple(Version(each, parents=before) for each, before in parents.items()), ("c",))
    ahead = {(have, want) for have in parents for want in parents if chain.is_ahead(have, want)}
    assert ahead == {("b1", "a"), ("b2", "a"), ("c", "a"), ("c", "b1"), ("c", "b2")}


@given(st.lists(st.booleans(), max_size=12), st.booleans())
def test_each_version_stands_alone_unless_one_transaction_is_wanted(
    kinds: list[bool], single: bool
) -> None:
    """Situation tenants 02: one transaction a file, all in one by choice."""
    pending = [Version(str(n), is_transactional=kind) for n, kind in enumerate(kinds)]
    found = groups(pending, single=single)
    assert [v for group in found for v in group] == pending
    for group in found:
        assert len(group) == 1 or (single and all(v.is_transactional for v in group))
    for before, after in itertools.pairwise(found):
        assert not (single and before[0].is_transactional and after[0].is_transactional)


@pytest.mark.parametrize(
    ("sqlstate", "cause"),
    [
        ("55P03", Cause.LOCK),
        ("40P01", Cause.DEADLOCK),
        ("40001", Cause.SERIALIZATION),
        ("57P01", Cause.CONNECTION),
        ("08006", Cause.CONNECTION),
        (None, Cause.CONNECTION),
        ("53300", Cause.RESOURCES),
        ("57014", Cause.TIMEOUT),
        ("42P07", Cause.MIGRATION),
        ("23514", Cause.MIGRATION),
    ],
)
def test_errors_of_the_server_mean(sqlstate: str | None, cause: Cause) -> None:
    assert cause_of(kind_of(sqlstate)) is cause


@given(st.sampled_from(Cause), st.integers(1, 20), st.integers(0, 20), st.floats(0, 1))
def test_only_what_passes_is_tried_again_and_only_so_often(
    cause: Cause, attempts: int, retries: int, chance: float
) -> None:
    verdict = judge(Outcome.failed(cause, "why"), attempts, retries, NOW, chance)
    assert verdict.reason == cause.value
    if cause.passes and attempts <= retries:
        assert verdict.state is ItemState.PENDING
        assert verdict.next_at is not None
        assert NOW < verdict.next_at <= NOW + timedelta(seconds=60)
    else:
        assert verdict.state is ItemState.FAILED


def test_the_other_outcomes_are_final_but_for_one_never_begun() -> None:
    states = {r: judge(Outcome(r), 1, 0, NOW, 0).state for r in Result if r is not Result.FAILED}
    assert states == {
        Result.DONE: ItemState.DONE,
        Result.MISSING: ItemState.SKIPPED,
        Result.UNTOUCHED: ItemState.PENDING,
    }


def test_messages_are_bounded() -> None:
    assert len(Outcome.failed(Cause.MIGRATION, "x" * 100_000).message) == 2000


def tenant(name: str, version: str = "", keyspace: str = "saas") -> Tenant:
    place = Place(keyspace, "0", schema=name)
    return Tenant(name, name, place, NOW, versions={"app": version} if version else {})


TENANTS = [tenant("acme", "001"), tenant("globex", "003"), tenant("initech"), tenant("x", "zz")]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), ["acme", "globex", "initech", "x"]),
        (Selection(tenants=("acme", "ini*")), ["acme", "initech"]),
        (Selection(without=("?",)), ["acme", "globex", "initech"]),
        (Selection(where="version<003"), ["acme", "initech"]),
        (Selection(where="version <= 003"), ["acme", "globex", "initech"]),
        (Selection(where="version="), ["initech"]),
        (Selection(where="version!=head"), ["acme", "globex", "initech", "x"]),
        (Selection(where="version>001"), ["globex"]),
        (Selection(keyspace="other"), []),
    ],
)
def test_tenants_are_selected_by_name_and_version(
    selection: Selection, expected: list[str]
) -> None:
    found = select(TENANTS, selection, "app", CHAIN, "005")
    assert [each.name for each in found] == expected
    assert Selection.from_json(selection.to_json()) == selection


def test_selections_that_mean_nothing_are_refused() -> None:
    with pytest.raises(NotFoundError, match="nobody"):
        select(TENANTS, Selection(tenants=("nobody",)), "app", CHAIN, "005")
    for where in ("version", "name=acme", "version<none"):
        with pytest.raises(InvalidArgumentError):
            select(TENANTS, Selection(where=where), "app", CHAIN, "005")


def test_found_schemas_get_names_that_are_free() -> None:
    places = [
        Place("saas", "-80", schema="acme"),
        Place("saas", "80-", schema="acme"),
        Place("saas", "0", schema="globex"),
        Place("saas", "0", schema="a b/c"),
    ]
    found = named(list(map(Spot, places)), TENANTS)
    assert [(each.name, each.is_registered) for each in found] == [
        ("acme@-80", False),
        ("acme@80-", False),
        ("globex", True),
        ("a~20b~2Fc", False),
    ]


@given(st.lists(st.text(min_size=1, max_size=60).filter(lambda each: "\0" not in each)))
def test_names_are_escaped_so_that_each_tells_its_schema(schemas: list[str]) -> None:
    """Situation tenants 07: four schemas got one name."""
    for schema in schemas:
        assert unescaped(escaped(schema)) == schema
        assert len(escaped(schema)) > 200 or check_name(escaped(schema), "tenant")
    assert len({escaped(each) for each in schemas}) == len(set(schemas))


def test_schemas_that_differ_in_one_sign_get_names_of_their_own() -> None:
    """Situation tenants 07: ``t 1``, ``t%1``, ``t/1`` and ``t_1``."""
    schemas = ["t 1", "t%1", "t/1", "t_1", "-t", "t", "t@0", "t~200"]
    found = named([Spot(Place("saas", "0", schema=each)) for each in schemas], [])
    assert [each.name for each in found] == [
        "t~201",
        "t~251",
        "t~2F1",
        "t_1",
        "~2Dt",
        "t",
        "t~400",
        "t~7E200",
    ]
    assert all(each.is_new for each in found)


def test_a_clash_concerns_its_pair_and_no_name_is_taken_from_its_owner() -> None:
    """Situation tenants 07: one clash kept everything from being registered."""
    owners = [
        tenant(name, keyspace="other") for name in ("t_1", "t_1@0", "t_1@saas@0", "t_2", "t_3@0")
    ]
    places = [Place("saas", "0", schema=each) for each in ("t_1", "t_2", "t_3", "t_4")]
    found = named(list(map(Spot, places)), owners)
    assert [each.name for each in found] == ["t_1", "t_2@0", "t_3", "t_4"]
    assert [each.taken_by for each in found] == ["other/0 schema t_1", "", "", ""]


def test_sources_are_written_so() -> None:
    source = parse_source("app", "python:jobs.upgrades:migrate", folder="/srv")
    assert source == Source("app", SourceKind.PYTHON, "jobs.upgrades:migrate", folder="/srv")
    assert Source.from_json("app", source.to_json()) == source
    wrong = ["sql:relative", "alembic:alembic.ini", "python:module", "flyway:/x", "sql:", "/x"]
    for text in wrong:
        with pytest.raises(InvalidArgumentError):
            parse_source("app", text)
    with pytest.raises(InvalidArgumentError):
        parse_source("app", "django:settings", folder="srv")


def test_options_have_bounds_and_a_tenant_has_a_place() -> None:
    for wrong in ({"jobs": 0}, {"jobs": 65}, {"max_failures": 0}, {"lock_timeout_s": 0}):
        with pytest.raises(InvalidArgumentError):
            RunOptions(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        Place("saas", "0")
    with pytest.raises(InvalidArgumentError):
        Place("saas", "0", schema="x" * 64)


def test_a_look_of_a_new_tenant_wants_everything() -> None:
    assert look_at(CHAIN, [], "002") == Look(Standing.BEHIND, "", CHAIN.versions[:2])
