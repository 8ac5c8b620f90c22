"""What is remembered of a table, in which form, and which changes are drift."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from make_facts import foreign_key, index, table
from tidegate.engines.postgres.catalog import Check, Trigger
from tidegate.engines.postgres.features import digest_of, features
from tidegate.engines.postgres.survey import Need, TypeFacts
from tidegate.topology.names import TableName
from tidegate.workflow.catalogue import (
    Catalogue,
    How,
    around_features,
    drift,
    expected_support,
    support_features,
    with_later,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

FEATURES = st.dictionaries(
    st.sampled_from(["index a", "index b", "grant to x"]), st.text(max_size=3)
)


def compared(
    then: tuple[Mapping[str, str], Mapping[str, str]],
    now: tuple[Mapping[str, str], Mapping[str, str]],
    *,
    unfinished: tuple[str, ...] = (),
) -> list[tuple[How, str]]:
    """What has drifted between a source and a target, of one table."""
    catalogues = [Catalogue({"a/0": {"t": s}, "b/0": {"t": t}}) for s, t in (then, now)]
    found = drift(*catalogues, leaving=["a/0"], entering=["b/0"], unfinished=unfinished)
    return [(each.how, each.message) for each in found]


I1, I2 = {"index i": "1"}, {"index i": "2"}


@pytest.mark.parametrize(
    ("then", "now", "how", "words"),
    [
        (({}, {}), (I1, {}), How.LACKS, "made at a/0"),
        (({}, {}), ({}, I1), How.BESIDES, "made at b/0"),
        ((I1, I1), ({}, I1), How.DIFFERS, "dropped at a/0"),
        ((I1, I1), (I1, {}), How.LACKS, "dropped at b/0"),
        ((I1, I1), (I2, I1), How.DIFFERS, "altered at a/0"),
        ((I1, I1), (I1, I2), How.DIFFERS, "altered at b/0"),
        ((I1, {}), (I2, {}), How.LACKS, "altered at a/0"),
    ],
)
def test_what_one_side_only_has_done_is_drift(
    then: tuple[dict[str, str], dict[str, str]],
    now: tuple[dict[str, str], dict[str, str]],
    how: How,
    words: str,
) -> None:
    ((found, message),) = compared(then, now)
    assert found is how
    assert message.startswith(f"index i of t was {words}")


def test_a_function_that_tables_lean_on_drifts_and_a_type_is_left_to_its_check() -> None:
    def catalogue(source: str, target: str) -> Catalogue:
        sides = {"a/0": source, "b/0": target}
        names = ("function public.f()", "type public.e")
        return Catalogue(support={shard: dict.fromkeys(names, d) for shard, d in sides.items()})

    (found,) = drift(catalogue("1", "1"), catalogue("2", "1"), leaving=["a/0"], entering=["b/0"])
    assert (found.table, found.how) == ("", How.DIFFERS)
    assert found.message.startswith("function public.f() was altered at a/0 since create")
    assert not drift(catalogue("1", "9"), catalogue("1", "9"), leaving=["a/0"], entering=["b/0"])
    leaned_on = catalogue("1", "1").leaned_on()
    assert leaned_on == (Need("function", "public.f()"), Need("type", "public.e"))


def test_what_is_altered_of_a_domain_is_named_and_is_no_type_to_look_for() -> None:
    """A domain's CHECKs come with the rows, so they are compared one by one and not with its type.

    Its default and NOT NULL are the relatives.
    """
    needs = (Need("type", "public.price"),)

    def side(**parts: str) -> dict[str, str]:
        found = TypeFacts("public.price", "d", None, ("integer",), parts)
        return support_features(needs, {}, {"public.price": found})

    def drifted(then: dict[str, str], here: dict[str, str], there: dict[str, str]) -> list[str]:
        sides = ((then, expected_support(then, {}, alike=True)), (here, there))
        moments = [Catalogue(support={"a/0": a, "b/0": b}) for a, b in sides]
        return [d.message for d in drift(*moments, leaving=["a/0"], entering=["b/0"])]

    made = {"check small": "CHECK (VALUE < 9)"}
    plain = side()
    assert Catalogue(support={"a/0": side(**made)}).leaned_on() == needs
    assert not drifted(side(**made), side(**made), side(**made))
    for name, text in (*made.items(), ("default", "7"), ("not null", "true")):
        (message,) = drifted(plain, side(**{name: text}), plain)
        assert message == (
            f"{name} of domain public.price was made at a/0 since create; b/0 lacks it"
        )
    (gone,) = drifted(side(**made), side(**made), plain)
    assert gone.startswith("check small of domain public.price is not at b/0: it was dropped there")
    then = Catalogue(support={"a/0": side(**made), "b/0": side(**made)})
    waiting = Catalogue(support={"a/0": side(**made), "b/0": plain})
    assert not drift(then, waiting, leaving=["a/0"], entering=["b/0"], unfinished=["b/0"])
    other = expected_support(side(**made), {}, alike=False)
    assert set(other.values()) == {"", digest_of(repr(("integer",)))}


@given(FEATURES, FEATURES, FEATURES)
def test_what_did_not_change_and_what_both_did_is_no_drift(
    source: dict[str, str], target: dict[str, str], both: dict[str, str]
) -> None:
    assert compared((source, target), (source, target)) == []
    assert compared((source, target), (both, both)) == []


def test_what_waits_for_the_copy_is_no_drift_until_it_is_built() -> None:
    assert compared((I1, I1), (I1, {}), unfinished=("b/0",)) == []
    grants = {"grant to x": "r"}
    assert compared((grants, grants), (grants, {}), unfinished=("b/0",)) != []


@given(st.dictionaries(st.text(max_size=3), st.dictionaries(st.text(max_size=3), FEATURES)))
def test_a_catalogue_is_read_back_as_it_was(shards: dict[str, dict[str, dict[str, str]]]) -> None:
    made = Catalogue(shards, {"a/0": ("other",)}, {"a/0": {"function public.f()": "1"}})
    assert Catalogue.decode(made.encode()) == made
    assert Catalogue.decode("") is None


AROUND = around_features(
    ["hstore", "gone"],
    {"hstore": "1.8", "other": "1"},
    {("app", "search_path"): "a", ("", "datestyle"): "German"},
)


def test_extensions_and_settings_around_the_tables_are_compared() -> None:
    assert set(AROUND) == {
        "extension hstore",
        "setting search_path of role app",
        "setting datestyle of the database",
    }
    then = Catalogue(around={"a/0": AROUND, "b/0": AROUND})
    assert then.extensions() == {"hstore"}
    assert Catalogue.decode(then.encode()) == then
    altered = {**AROUND, "extension hstore": "2"}
    del altered["setting search_path of role app"]
    now = Catalogue(around={"a/0": AROUND, "b/0": altered})
    apart = drift(then, now, leaving=["a/0"], entering=["b/0"])
    assert [(each.how, each.table, each.message) for each in apart] == [
        (How.DIFFERS, "", "extension hstore was altered at b/0 since create, and not at a/0"),
        (
            How.LACKS,
            "",
            "setting search_path of role app was dropped at b/0 since create; a/0 has it",
        ),
    ]
    assert drift(then, then, leaving=["a/0"], entering=["b/0"]) == []


def test_a_record_from_before_it_was_kept_says_nothing_of_what_is_around_the_tables() -> None:
    old = Catalogue.decode(Catalogue({"a/0": {}, "b/0": {}}).encode())
    assert old is not None
    now = Catalogue(around={"a/0": AROUND, "b/0": {}})
    assert drift(old, now, leaving=["a/0"], entering=["b/0"]) == []


def test_a_catalogue_of_a_thousand_tables_and_two_sides_is_small() -> None:
    tables = {
        f"table_{n}": features(table(f"table_{n}", indexes=(index(f"table_{n}_a_idx", "a"),)), ())
        for n in range(1000)
    }
    encoded = Catalogue({"a/0": tables, "b/-80": tables, "b/80-": tables}).encode()
    assert len(encoded) < 100_000


def test_objects_of_tidegate_are_no_features() -> None:
    mine = Trigger("_tidegate_fence", "A", "_tidegate.fence", own=True, ddl="")
    theirs = Trigger("log", "O", "public.log", own=False, ddl="")
    found = features(table(triggers=(mine, theirs)), ["cdc"])
    assert [name for name in found if name.startswith(("trigger", "publication"))] == [
        "trigger log",
        "publication cdc",
    ]


def test_a_constraint_that_old_rows_do_not_meet_is_the_same_constraint() -> None:
    valid, not_valid = (
        features(table(checks=(Check("c", validated=not end, ddl=f"CHECK ((v > 0)){end}"),)), ())
        for end in ("", " NOT VALID")
    )
    assert valid == not_valid


def test_what_an_owner_may_do_is_no_grant() -> None:
    acl = ("owner=arwdDxtm/owner", "app=arw/owner", "=r/owner", '"The Clerk"=r/owner')
    found = [name for name in features(table(acl=acl), ()) if name.startswith("grant")]
    assert found == ["grant to app", "grant to PUBLIC", "grant to The Clerk"]


def test_a_target_will_have_what_its_later_statements_make() -> None:
    key = foreign_key("t", "v", "u", "id")
    source = features(
        table(indexes=(index("i", "v"), index('odd "one"', "v")), foreign_keys=(key,)), ()
    )
    made = features(table(), ())
    actions = [
        (TableName("public", "t"), "CREATE INDEX i ON public.t USING btree (v)"),
        (TableName("public", "t"), 'CREATE INDEX "odd ""one""" ON public.t USING btree (v)'),
    ]
    found = with_later({"t": made}, {"t": source}, actions)["t"]
    assert {"index i", 'index odd "one"'} <= set(found)
    assert "foreign key fk" not in found
    assert found["index i"] == source["index i"]


def test_servers_of_two_versions_may_write_a_definition_differently() -> None:
    actions = [(TableName("public", "t"), "CREATE INDEX i ON public.t USING btree (v)")]
    expected = with_later({"t": {}}, {"t": I1}, actions, alike=False)["t"]
    assert compared((I1, expected), (I1, I2)) == []
    assert compared((I1, expected), (I1, {})) != []
    assert compared((I1, expected), ({}, I2)) != []
