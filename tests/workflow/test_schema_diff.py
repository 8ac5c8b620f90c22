"""What counts as a difference between two schemas, and how it is named."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from make_facts import column, foreign_key, index, table
from tidegate.engines.postgres.catalog import Check, Trigger
from tidegate.engines.postgres.schema_definitions import table_parts
from tidegate.engines.schemas import Definitions, Different, Scope, compare

if TYPE_CHECKING:
    from collections.abc import Mapping

BESIDE = {
    "function f()": {"definition": "body", "owner": "owner", "grant PUBLIC EXECUTE": ""},
    "view v": {"definition": "SELECT 1", "owner": "owner"},
    "extension hstore": {"definition": "", "owner": ""},
}
TABLES = frozenset({"table a", "table sales.b"})
SCOPE = Scope(TABLES | BESIDE.keys(), whole=True)


def definitions(
    beside: Mapping[str, Mapping[str, str]] = BESIDE,
    more: Mapping[str, str] | None = None,
    *,
    alike: bool = True,
    **changes: Any,
) -> Definitions:
    """Two tables, the first one altered, and what is beside them."""
    tables = {
        "table a": table_parts(table("a", **changes), more or {}, alike=alike),
        "table sales.b": table_parts(table("sales.b"), {}, alike=alike),
    }
    return Definitions({**tables, **beside})


def test_the_same_on_both_sides_is_equal() -> None:
    found = compare(definitions(), definitions(), SCOPE)
    assert found.is_equal
    assert found.lines() == []
    assert (found.only_at_target, found.not_compared) == ((), ())


def test_what_one_side_lacks_is_told_apart() -> None:
    source = definitions()
    kept = {name: source.objects[name] for name in ("table a", "function f()")}
    target = Definitions({**kept, "table z": {}})
    found = compare(source, target, SCOPE)
    assert found.missing == ("table sales.b", "view v", "extension hstore")
    assert found.only_at_target == ("table z",)
    assert not found.is_equal
    assert compare(target, source, Scope(frozenset({"table a"}))).is_equal


def test_of_a_whole_shard_what_is_not_copied_is_named_and_what_is_excluded_is_not() -> None:
    made = definitions({**BESIDE, "materialized view m": {}, "sequence sales.b_id_seq": {}})
    source = replace(made, owned={"table sales.b": frozenset({"sequence sales.b_id_seq"})})
    scope = replace(
        SCOPE,
        objects=SCOPE.objects - {"table sales.b"},
        excluded=frozenset({"table sales.b"}),
    )
    found = compare(source, definitions(), scope)
    assert found.is_equal
    assert found.not_compared == ("materialized view m",)
    assert compare(definitions(), source, scope).only_at_target == ("materialized view m",)


def test_what_a_table_owns_is_compared_with_it() -> None:
    owned = {"table a": frozenset({"sequence a_id_seq"})}
    one, other = (
        replace(definitions({**BESIDE, "sequence a_id_seq": {"definition": start}}), owned=owned)
        for start in ("start 1", "start 2")
    )
    (found,) = compare(one, other, SCOPE).different
    assert found == Different("sequence a_id_seq", ("definition differs",))
    assert compare(one, definitions(), SCOPE).missing == ("sequence a_id_seq",)


PARTS: dict[str, tuple[dict[str, Any], str]] = {
    "index": ({"indexes": (index("i", "v"),)}, "index i"),
    "check": ({"checks": (Check("c", validated=True, ddl="CHECK"),)}, "check c"),
    "trigger": ({"triggers": (Trigger("t", "O", "f", own=False, ddl="CREATE"),)}, "trigger t"),
    "foreign key": ({"foreign_keys": (foreign_key("a", "id", "b", "id"),)}, "foreign key fk"),
    "index comment": (
        {"indexes": (replace(index("i", "v"), comment="x"),)},
        "comment of index i",
    ),
    "grant": ({"acl": ("reader=r/owner",)}, "grant to reader"),
}


@pytest.mark.parametrize("part", PARTS)
def test_each_part_of_a_table_is_named_on_the_side_that_lacks_it(part: str) -> None:
    changes, named = PARTS[part]
    (lacks,) = compare(definitions(**changes), definitions(), SCOPE).different
    assert lacks.object == "table a"
    assert f"{named} is missing at the target" in lacks.how
    (beside,) = compare(definitions(), definitions(**changes), SCOPE).different
    assert f"{named} is only at the target" in beside.how


def columns(first: Any, **second: Any) -> dict[str, Any]:
    return {"columns": (first, column("v", "text", not_null=False, **second))}


DIFFERS: dict[str, tuple[dict[str, Any], str]] = {
    "type": (columns(column("id", "integer")), "column id"),
    "collation": (columns(column("id"), collation='"x"."de"'), "collation of v"),
    "generation": (columns(column("id", generated="s", default="1")), "column id"),
    "owner": ({"owner": "other"}, "owner"),
    "comment": ({"comment": "x"}, "comment"),
    "replica identity": ({"replica_identity": "full"}, "replica identity"),
    "persistence": ({"persistence": "u"}, "persistence"),
    "row security": ({"row_security": True}, "row security"),
    "order": ({"columns": (column("v", "text", not_null=False), column("id"))}, "column order"),
}


@pytest.mark.parametrize("part", DIFFERS)
def test_each_property_of_a_table_is_named_where_it_differs(part: str) -> None:
    changes, named = DIFFERS[part]
    (found,) = compare(definitions(), definitions(**changes), SCOPE).different
    assert any(how.startswith(named) for how in found.how), found


def test_what_is_tidegates_own_or_an_others_table_does_not_count() -> None:
    fence = Trigger("_tidegate_deny", "A", "deny", own=True, ddl="CREATE")
    incoming = foreign_key("other", "a", "a", "id")
    assert compare(definitions(triggers=(fence,)), definitions(), SCOPE).is_equal
    assert compare(definitions(), definitions(referenced_by=(incoming,)), SCOPE).is_equal


def test_parts_that_only_the_catalogue_tells_are_compared() -> None:
    one = definitions(more={"policy p": "r", "rule r": "DO NOTHING"})
    (found,) = compare(one, definitions(), SCOPE).different
    assert found == Different(
        "table a",
        ("policy p is missing at the target", "rule r is missing at the target"),
    )
    other = definitions(more={"policy p": "w", "rule r": "DO ALSO"})
    (found,) = compare(one, other, SCOPE).different
    assert found.how == ("policy p differs", "rule r differs")


def test_objects_differ_by_definition_owner_and_grants() -> None:
    changed = {
        **BESIDE,
        "function f()": {"definition": "another", "owner": "owner"},
        "view v": {"definition": "SELECT 2", "owner": "other"},
    }
    found = compare(definitions(), definitions(changed), SCOPE)
    assert [(each.object, each.how) for each in found.different] == [
        ("function f()", ("definition differs", "grant PUBLIC EXECUTE is missing at the target")),
        ("view v", ("definition differs", "owner differs")),
    ]
    given_away = compare(definitions(), definitions(changed), replace(SCOPE, owners=False))
    assert given_away.different[1].how == ("definition differs",)


def test_servers_of_two_versions_need_not_write_rules_and_rights_alike() -> None:
    old: dict[str, Any] = {"acl": ("reader=arwdDxt/owner",), "more": {"rule r": "one text"}}
    new: dict[str, Any] = {"acl": ("reader=arwdDxtm/owner",), "more": {"rule r": "another text"}}
    one, other = (definitions(**each, alike=False) for each in (old, new))
    assert compare(one, other, SCOPE).is_equal
    gone = definitions(acl=old["acl"], alike=False)
    (found,) = compare(definitions(**old, alike=False), gone, SCOPE).different
    assert found.how == ("rule r is missing at the target",)
    assert not compare(definitions(**old), definitions(**new), SCOPE).is_equal
