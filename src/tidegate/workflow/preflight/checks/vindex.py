"""Refuses primary vindexes that cannot be built from the vschema or cannot place a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity
from tidegate.errors import TidegateError
from tidegate.topology import vindexes
from tidegate.workflow.preflight.check import Verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.topology.vindexes import Vindex
    from tidegate.topology.vschema import ColumnVindex, VSchema
    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Primary vindexes of the wanted tables that cannot be built, or cannot place a row."""
    vschema = facts.vschema(request)
    seen: set[tuple[str, int]] = set()
    for _, _, spec in facts.sharded(request):
        column_vindex = spec.primary_vindex
        if column_vindex is None or (column_vindex.name, len(column_vindex.columns)) in seen:
            continue
        seen.add((column_vindex.name, len(column_vindex.columns)))
        reason = _problem(vschema, column_vindex)
        if reason:
            yield Problem(
                f"{request.target_keyspace}.{column_vindex.name}",
                f"vindex {column_vindex.name}: {reason}",
            )


def _problem(vschema: VSchema, column_vindex: ColumnVindex) -> str:
    """Why the vindex cannot decide the shard of a row; empty when it can."""
    spec = vschema.vindexes.get(column_vindex.name)
    if spec is None:
        return "the vschema does not define it"
    try:
        vindex = vindexes.create(spec.type, column_vindex.name, spec.params)
    except TidegateError as error:
        return error.message
    return _misuse(vindex, len(column_vindex.columns))


def _misuse(vindex: Vindex, given: int) -> str:
    """Why a vindex that can be built does not give one shard for ``given`` columns."""
    if vindex.unknown_params:
        return f"it does not know the parameters {', '.join(vindex.unknown_params)}"
    if not vindex.unique or vindex.lookup:
        return f"type {vindex.type} cannot be a primary vindex"
    if not vindex.columns_min <= given <= vindex.columns_max:
        return (
            f"type {vindex.type} takes {vindex.columns_min} to {vindex.columns_max} columns,"
            f" it is given {given}"
        )
    if vindex.partial and given < vindex.columns_max:
        return f"with {given} of {vindex.columns_max} columns it gives a range, not one shard"
    return ""


CHECK = Check(
    id="TG-PF-111",
    title="A vindex is unknown or wrongly set up",
    severity=Severity.ERROR,
    cause=(
        "The vindex decides the shard of every row; one that does not exist, lacks a "
        "parameter or is not unique cannot."
    ),
    remedy=(
        "mend the vindex in the vschema; `tidegate vindex map --type TYPE` tries it on a value"
    ),
    find=find,
    again=frozenset({Verb.SWITCH}),
)
