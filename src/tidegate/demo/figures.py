"""The demo's figures as the lines of one table."""

from __future__ import annotations

from typing import Any


def lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and value of each line, in the order of the story."""
    found = [line for name in result["copies"] for line in _copy(name, result)]
    for name, vdiff in result["vdiffs"].items():
        outcome = "DIFFERENT" if vdiff["has_mismatch"] else "equal"
        found.append((f"{name}: VDiff", f"{vdiff['rows_compared']:,} rows {outcome}"))
    for name, pause in result["pauses_ms"].items():
        found.append((f"{name}: writes paused", f"{pause:,.0f} ms"))
    for name, comparison in result["comparisons"].items():
        outcome = "equal" if comparison["equal"] else f"DIFFER: {comparison['different_tables']}"
        rows = sum(comparison["rows"].values())
        found.append((f"{name}: old against new, by SQL", f"{rows:,} rows {outcome}"))
    found.append(("pgbench until the fence", f"{result['pgbench']['transactions']:,} transactions"))
    found += _application(result["application"])
    found.append(("whole demo", f"{result['seconds']} s"))
    return found


def _copy(name: str, result: dict[str, Any]) -> list[tuple[str, str]]:
    copied = result["copies"][name]
    size = f"{copied['rows']:,} rows, {copied['bytes'] / 2**20:,.0f} MiB"
    rate = f"{copied['rows_per_s']:,} rows/s, {copied['mib_per_s']} MiB/s"
    return [
        (f"{name}: copied", f"{size} in {copied['seconds']} s"),
        (f"{name}: rate of the copy", rate),
        (f"{name}: lag when caught up", f"{result['lag_s'][name]:.2f} s"),
    ]


def _application(seen: dict[str, Any]) -> list[tuple[str, str]]:
    writes = f"{seen['acknowledged']:,}: {seen['lost']} lost, {seen['doubled']} doubled"
    trouble = f"{seen['retried']} retried, {len(seen['errors'])} errors"
    return [
        ("application: writes", writes),
        ("application: slowest write", f"{seen['slowest_ms']:,.0f} ms, {trouble}"),
        ("accounts out of balance", str(seen["unbalanced_accounts"])),
    ]
