"""What a VDiff is: its options, its states, and the report people and programs read.

Pure. The report's field names are those of Vitess's VDiff, so that scripts can be carried over.
A VDiff has one row at each target shard and each shard has its own state; the whole is stopped if
any shard is, else failed if any is, and so on (:func:`overall_state`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from tidegate.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

TRUNCATED = "...[TRUNCATED]"
ETA_MAX = timedelta(days=365)

#: Slices are large because a table that fits in one is read in the order it lies on disk.
SLICE_BYTES = 1 << 30

#: ... and smaller where snapshots are to be given up after a while, which happens between slices.
SLICE_BYTES_BOUNDED = 1 << 27

#: Tables compared at one moment, as long as they are no larger together than a slice.
MOMENT_TABLES_MAX = 100


class VDiffState(StrEnum):
    """States of a VDiff, of its part at one shard, and of a table in it."""

    PENDING = "pending"
    STARTED = "started"
    STOPPED = "stopped"
    COMPLETED = "completed"
    ERROR = "error"
    UNKNOWN = "unknown"  # nothing is known of it; never stored


#: Which state the whole has: the first of these that any shard has.
_PRECEDENCE = (
    VDiffState.STOPPED,
    VDiffState.ERROR,
    VDiffState.STARTED,
    VDiffState.PENDING,
    VDiffState.COMPLETED,
)

#: States in which nothing more will happen by itself.
FINAL = (VDiffState.STOPPED, VDiffState.ERROR, VDiffState.COMPLETED)


def overall_state(states: Iterable[str]) -> VDiffState:
    """The state of the whole from the states of its shards."""
    found = {VDiffState(state) for state in states}
    return next((state for state in _PRECEDENCE if state in found), VDiffState.UNKNOWN)


def is_over(report: Mapping[str, Any]) -> bool:
    """Nothing more happens by itself, at any shard."""
    return all(shard["State"] in FINAL for shard in report["ShardSummaries"].values())


@dataclass(frozen=True)
class VDiffOptions:
    """How to compare; stored with the VDiff, so that a resumed one goes on in the same way.

    Attributes:
        tables: only these; empty: all of the workflow.
        max_report_sample_rows: rows of each kind shown for a table and shard; 0 shows all.
        max_extra_rows_to_compare: rows on one side only that are looked up on the other side by
            the database's own equality, for keys equal in value and different in bytes.
        only_pks: show keys, not whole rows.
        limit: compare about so many rows of each table, the first ones by key.
        row_diff_column_truncate_at: longer values that are no key are cut.
        auto_start: begin at once.
        auto_retry: try again when a server was away or a wait ended.
        wait_s: how long streams and sources are waited for at each table.
        slice_bytes: rows of about so many bytes are compared at a time.
        max_diff_duration_s: after so long the snapshots are given up at the end of a slice, and
            the rest is compared at a new moment; None: a snapshot lives as long as a table takes.
        debug_query: samples carry a statement that reads the row again.
        update_table_stats: ANALYZE the tables of the targets first, for better estimates.
    """

    tables: tuple[str, ...] = ()
    max_report_sample_rows: int = 10
    max_extra_rows_to_compare: int = 1000
    only_pks: bool = False
    limit: int | None = None
    row_diff_column_truncate_at: int = 128
    auto_start: bool = True
    auto_retry: bool = True
    wait_s: float = 30.0
    slice_bytes: int = SLICE_BYTES
    max_diff_duration_s: float | None = None
    debug_query: bool = False
    update_table_stats: bool = False

    @property
    def cut_bytes(self) -> int:
        """Size of a slice: smaller where a snapshot is not to live long."""
        bounded = self.max_diff_duration_s is not None
        return min(self.slice_bytes, SLICE_BYTES_BOUNDED) if bounded else self.slice_bytes

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            InvalidArgumentError: a count is negative, or a size or time is not positive.
        """
        counts = {
            "max_report_sample_rows": self.max_report_sample_rows,
            "max_extra_rows_to_compare": self.max_extra_rows_to_compare,
            "row_diff_column_truncate_at": self.row_diff_column_truncate_at,
        }
        positive = {"wait_s": self.wait_s, "slice_bytes": self.slice_bytes}
        if self.limit is not None:
            positive["limit"] = self.limit
        if self.max_diff_duration_s is not None:
            positive["max_diff_duration_s"] = self.max_diff_duration_s
        wrong = [name for name, value in counts.items() if value < 0]
        wrong += [name for name, value in positive.items() if value <= 0]
        if wrong:
            raise InvalidArgumentError(
                f"these options of a VDiff are out of bounds: {', '.join(wrong)}",
                next_step="give counts from 0, and sizes, times and limits above 0",
            )

    def to_json(self) -> dict[str, Any]:
        """As stored."""
        return {**asdict(self), "tables": list(self.tables)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_json`; keys of other versions are passed over."""
        known = {f.name for f in fields(cls)}
        facts = {key: item for key, item in value.items() if key in known}
        return cls(**{**facts, "tables": tuple(facts.get("tables", ()))})


@dataclass(frozen=True)
class TableSize:
    """A table that is to be compared."""

    name: str
    spans: tuple[str, ...]  # ids of those that carry it
    bytes: int


def grouped(tables: Iterable[TableSize], bytes_max: int) -> list[list[TableSize]]:
    """Tables that share a moment, in the given order.

    A moment costs the same for one table as for many. Those of a group are carried by the same
    spans and are no larger together than ``bytes_max``; a larger one is alone.
    """
    groups: list[list[TableSize]] = []
    total = 0
    for table in tables:
        last = groups[-1] if groups else []
        fits = last and last[0].spans == table.spans and total + table.bytes <= bytes_max
        if fits and len(last) < MOMENT_TABLES_MAX:
            last.append(table)
            total += table.bytes
        else:
            groups.append([table])
            total = table.bytes
    return groups


@dataclass(frozen=True)
class ShardRecord:
    """What one shard says of a VDiff: its row, and its tables as dictionaries of columns."""

    shard: str
    facts: Mapping[str, Any]
    tables: Sequence[Mapping[str, Any]]


def shown_value(text: str | None, limit: int, *, binary: bool, key: bool) -> str | None:
    """A value as a report shows it: binary as ``0x``, long ones cut unless they are the key."""
    if text is None:
        return None
    if binary:
        text = f"0x{text.removeprefix('\\x')}"
    if not key and limit and len(text) > limit:
        return text[:limit] + TRUNCATED
    return text


_COUNTS = {
    "MatchingRows": "matching",
    "MismatchedRows": "changed",
    "ExtraRowsSource": "missing",
    "ExtraRowsTarget": "extra",
}
_SAMPLES = {
    "missing": "ExtraRowsSourceSample",
    "extra": "ExtraRowsTargetSample",
    "changed": "MismatchedRowsSample",
}


def table_report(table: Mapping[str, Any], sample_rows: int) -> dict[str, Any]:
    """The report of one table at one shard."""
    report: dict[str, Any] = {"TableName": table["table_name"], "ProcessedRows": 0}
    for name, column in _COUNTS.items():
        report[name] = table[column]
        report["ProcessedRows"] += table[column]
    if table["left_out"]:
        report["LeftForLater"] = table["left_out"]
    if table["retaken"]:
        report["MomentsRetaken"] = table["retaken"]
    for group in table["samples"]:
        for sample in group:
            shown = report.setdefault(_SAMPLES[sample["kind"]], [])
            if not sample_rows or len(shown) < sample_rows:
                shown.append(sample["row"])
    return report


def differs(table: Mapping[str, Any]) -> bool:
    """Whether a table has a difference at one shard."""
    return bool(table["changed"] or table["missing"] or table["extra"])


def summary(uuid: str, records: Sequence[ShardRecord], now: datetime) -> dict[str, Any]:
    """The whole report, from what every shard says.

    Args:
        uuid: of the VDiff.
        records: one for each target shard; must not be empty.
        now: the present, for the estimate.
    """
    assert records, "a VDiff has a row at each shard"
    first = records[0].facts
    options = VDiffOptions.from_json(first["options"])
    tables = [(record.shard, table) for record in records for table in record.tables]
    started = [r.facts["started_at"] for r in records if r.facts["started_at"]]
    completed = [r.facts["completed_at"] for r in records]
    reports: dict[str, dict[str, Any]] = {}
    by_table: dict[str, dict[str, Any]] = {}
    moments: dict[str, dict[str, Any]] = {}
    for shard, table in tables:
        moment = {"At": _shown(table["moment_at"]), "Positions": table["positions"]}
        moments.setdefault(table["table_name"], {})[shard] = moment
        report = table_report(table, options.max_report_sample_rows)
        reports.setdefault(table["table_name"], {})[shard] = report
        _add(by_table, table, report)
    compared = sum(entry["RowsCompared"] for entry in by_table.values())
    return {
        "Workflow": first["workflow"],
        "Keyspace": first["keyspace"],
        "State": str(overall_state(r.facts["state"] for r in records)),
        "UUID": uuid,
        "RowsCompared": compared,
        "HasMismatch": any(differs(table) for _, table in tables),
        "Shards": ",".join(record.shard for record in records),
        "StartedAt": _shown(min(started, default=None)),
        "CompletedAt": _shown(max(completed)) if all(completed) else None,
        "ShardSummaries": {record.shard: _shard_summary(record) for record in records},
        "TableSummary": by_table,
        "Reports": reports,
        "Moments": moments,
        "Errors": {r.shard: r.facts["message"] for r in records if r.facts["message"]},
        "WaitsFor": {r.shard: r.facts["waits_for"] for r in records if r.facts["waits_for"]},
        "Progress": progress(
            compared,
            sum(table["est_rows"] for _, table in tables),
            min(started, default=None),
            now,
            done=all(completed),
        ),
    }


def _add(by_table: dict[str, dict[str, Any]], table: Mapping[str, Any], report: Any) -> None:
    entry = by_table.setdefault(
        table["table_name"],
        {"TableName": table["table_name"], "State": table["state"], "RowsCompared": 0}
        | dict.fromkeys(_COUNTS, 0),
    )
    entry["State"] = str(overall_state([entry["State"], table["state"]]))
    entry["RowsCompared"] += report["ProcessedRows"]
    for name in _COUNTS:
        entry[name] += report[name]


def _shard_summary(record: ShardRecord) -> dict[str, Any]:
    return {
        "State": record.facts["state"],
        "RowsCompared": sum(
            sum(table[column] for column in _COUNTS.values()) for table in record.tables
        ),
        "HasMismatch": any(map(differs, record.tables)),
        "StartedAt": _shown(record.facts["started_at"]),
        "CompletedAt": _shown(record.facts["completed_at"]),
        "Error": record.facts["message"] or None,
    }


def progress(
    compared: int, estimated: int, started: datetime | None, now: datetime, *, done: bool
) -> dict[str, Any]:
    """How far it is, and when it will end at the present rate."""
    if done:
        return {"Percentage": 100.0, "ETA": None}
    share = min(compared / estimated, 0.9999) if estimated > 0 else 0.0
    if not share or started is None:
        return {"Percentage": round(100 * share, 2), "ETA": None}
    left = min((now - started) * (1 / share - 1), ETA_MAX)
    return {"Percentage": round(100 * share, 2), "ETA": _shown(now + left)}


def _shown(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")
