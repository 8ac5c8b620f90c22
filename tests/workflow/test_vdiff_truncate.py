"""VDiff of tables that are truncated or rewritten between a moment and the reading of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tidegate import steps
from tidegate.dataplane import compare
from tidegate.dataplane.model import TableRule
from tidegate.workflow.vdiff import run
from tidegate.workflow.vdiff.model import VDiffOptions
from tidegate.workflow.vdiff.service import VDiffService

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fix_span import SpanCase, SpanMaker
    from tidegate.engines.postgres.local import LocalServer

pytestmark = [pytest.mark.servers, pytest.mark.slow]

DDL = (
    "CREATE TABLE items (id bigint PRIMARY KEY, note text);"
    "CREATE TABLE others (id bigint PRIMARY KEY, note text);"
)
FILL = "INSERT INTO items SELECT g, md5(g::text) FROM generate_series(1, 500) g;"
LOAD = FILL + "INSERT INTO others SELECT g, md5(g::text) FROM generate_series(1, 300) g"
ANEW = (
    "CREATE TABLE anew (LIKE items INCLUDING ALL); INSERT INTO anew TABLE items;"
    " DROP TABLE items; ALTER TABLE anew RENAME TO items"
)


@pytest.fixture
def vdiffs() -> Iterator[VDiffService]:
    made = VDiffService()
    yield made
    made.close()


@pytest.fixture
def span(make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer) -> SpanCase:
    case = make_span(
        source_server,
        [("-", target_server)],
        DDL,
        [TableRule("items"), TableRule("others")],
        load=LOAD,
    )
    case.start()
    case.wait_running()
    return case


def at_moments(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> list[int]:
    """Call something after each moment, before a table is read; returns the moments' numbers."""
    real = steps.reached
    numbers: list[int] = []

    def reached(step: str) -> None:
        real(step)
        if step == run.MOMENT:
            numbers.append(len(numbers) + 1)
            act(len(numbers))

    monkeypatch.setattr(steps, "reached", reached)
    return numbers


def compared(
    vdiffs: VDiffService, span: SpanCase, **options: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A whole report, and what it says of the table."""
    name = vdiffs.create([span.spec], VDiffOptions(**options))
    report = vdiffs.wait([span.spec], name, 60)
    return report, report["Reports"]["items"]["-"]


@pytest.mark.parametrize("refill", ["", FILL])
def test_a_table_truncated_during_a_vdiff_is_compared_at_a_new_moment(
    span: SpanCase, vdiffs: VDiffService, monkeypatch: pytest.MonkeyPatch, refill: str
) -> None:
    """Situation 33: a TRUNCATE after the moment empties the table for the older snapshots, too."""

    def act(number: int) -> None:
        if number == 1:
            span.at_source.execute("TRUNCATE items;" + refill)
            span.catch_up()  # the stream has truncated the target as well

    moments = at_moments(monkeypatch, act)
    report, items = compared(vdiffs, span)
    assert report["State"] == "completed", report["Errors"]
    assert report["HasMismatch"] is False, report["Reports"]
    assert items["MomentsRetaken"] == 1
    assert items["ProcessedRows"] == (500 if refill else 0)
    assert "MomentsRetaken" not in report["Reports"]["others"]["-"], "it was shown at once"
    assert report["RowsCompared"] == items["ProcessedRows"] + 300
    assert report["WaitsFor"] == {}
    assert moments == [1, 2]
    span.assert_equal("items", "others")


@pytest.mark.parametrize("statement", ["VACUUM FULL items", "CLUSTER items USING items_pkey"])
def test_a_rewrite_that_an_old_snapshot_survives_costs_a_moment_and_nothing_else(
    span: SpanCase, vdiffs: VDiffService, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    """Situation 33, a relative: a new file of the same rows is no difference."""

    def act(number: int) -> None:
        if number == 1:
            span.at_source.execute(statement)

    at_moments(monkeypatch, act)
    report, items = compared(vdiffs, span)
    assert (report["State"], report["HasMismatch"]) == ("completed", False)
    assert (items["MomentsRetaken"], items["ProcessedRows"]) == (1, 500)


@pytest.mark.parametrize("statement", ["TRUNCATE items", ANEW + "; DELETE FROM items"])
def test_a_target_emptied_by_somebody_is_a_difference_at_the_new_moment(
    span: SpanCase, vdiffs: VDiffService, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    """Situation 33, a relative: taking the moment again hides nothing that is really there."""

    def act(number: int) -> None:
        if number == 1:
            span.at_targets[0].execute(statement)

    at_moments(monkeypatch, act)
    report, items = compared(vdiffs, span)
    assert (report["State"], report["HasMismatch"]) == ("completed", True)
    assert items["MomentsRetaken"] == 1
    assert (items["ExtraRowsSource"], items["ExtraRowsTarget"]) == (500, 0)


def test_a_table_truncated_at_every_moment_ends_the_vdiff_and_is_named(
    span: SpanCase, vdiffs: VDiffService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Situation 33: taking the moment again is bounded, and the report says what it is for."""
    seen: list[str] = []

    def act(number: int) -> None:
        if number > 1:
            shown = vdiffs.show([span.spec])
            seen.extend(shown["WaitsFor"].values())
        span.at_source.execute("TRUNCATE items")

    at_moments(monkeypatch, act)
    report, items = compared(vdiffs, span, wait_s=5.0, auto_retry=False)
    assert report["State"] == "error"
    assert items["MomentsRetaken"] > 1
    wanted = "a moment that shows table items at source shop/-"
    assert seen
    assert all(text.startswith(wanted) for text in seen), seen
    assert wanted in report["Errors"]["-"]
    assert report["TableSummary"]["others"]["State"] == "completed"
    span.catch_up()


def test_an_application_truncates_as_soon_as_the_comparison_of_the_table_is_over(
    span: SpanCase, vdiffs: VDiffService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Situation 33, a relative: once a table is read, TRUNCATE waits, and no row is missed."""
    truncated: list[bool] = []
    real = compare.compare_slice

    def slice_compared(*args: Any, **kwargs: Any) -> Any:
        with span.source.admin() as other:
            other.execute("SET lock_timeout = '50ms'")
            try:
                other.execute("TRUNCATE public.items")
            except Exception as error:  # noqa: BLE001 - its kind is looked at
                truncated.append("lock timeout" not in str(error))
            else:
                truncated.append(True)
        return real(*args, **kwargs)

    monkeypatch.setattr(compare, "compare_slice", slice_compared)
    report, items = compared(vdiffs, span, tables=("items",))
    assert truncated == [False]
    assert (report["HasMismatch"], items["ProcessedRows"]) == (False, 500)
    span.at_source.execute("SET lock_timeout = '5s'; TRUNCATE items")
    span.catch_up()
    span.assert_equal("items")
