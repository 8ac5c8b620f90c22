"""Measures Tidegate against the real peers, in one run on one machine, and prints ratios.

Each row of the table is a function in ``rows_*.py`` that yields samples: the same work done by us
and by the peer, one after the other, the order alternating. A ratio above 1 means we are faster.
The figures go to ``build/bench.json``. Nothing here fails because a target was missed; it is
printed as missed.

    make bench            every row, at most 40 minutes
    make bench ROW=copy   one row, or every row of a family: ROW=idle (MINUTES=10 each part)
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

import rows_catchup
import rows_cluster
import rows_copy
import rows_idle
import rows_switch
import rows_tables
import rows_tenants
import rows_vdiff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from measure import Row, Sample

ROWS: dict[str, Row] = {
    row.name: row
    for module in (
        rows_copy,
        rows_catchup,
        rows_vdiff,
        rows_switch,
        rows_tables,
        rows_tenants,
        rows_cluster,
        rows_idle,
    )
    for row in module.ROWS
}
BUDGET_S = 38 * 60


def summarise(row: Row, samples: list[Sample]) -> dict[str, object]:
    """One line of the table."""
    ratios = [row.ratio(sample) for sample in samples]
    median = statistics.median(ratios)
    return {
        "row": row.name,
        "what": row.what,
        "unit": row.unit,
        "ours": round(statistics.median(s.ours for s in samples), 3),
        "peer_name": row.peer,
        "peer": round(statistics.median(s.peer for s in samples), 3) if row.peer else None,
        "ratio": round(median, 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "runs": len(samples),
        "target": row.target_text,
        "reached": row.reached(median, ratios),
    }


def show(line: dict[str, object]) -> None:
    """Print one line for a person."""
    verdict = "reached" if line["reached"] else "MISSED"
    print(
        f"{line['row']:<22} ours {line['ours']} {line['unit']}, "
        f"{line['peer_name'] or 'no peer'} {line['peer'] if line['peer'] is not None else '-'}; "
        f"ratio {line['ratio']} (min {line['ratio_min']}, max {line['ratio_max']}, "
        f"{line['runs']} runs); target {line['target']}: {verdict}",
        flush=True,
    )


def collect(row: Row, produce: Callable[[], Iterator[Sample]], deadline: float) -> list[Sample]:
    """All samples of a row, fewer when the time is used up."""
    samples: list[Sample] = []
    for sample in produce():
        samples.append(sample)
        print(
            f"  {row.name}: ours {sample.ours:.3f}"
            + (f", {row.peer} {sample.peer:.3f}" if row.peer else "")
            + f" {row.unit}",
            file=sys.stderr,
            flush=True,
        )
        if time.monotonic() > deadline:
            print(f"  {row.name}: out of time after {len(samples)} runs", file=sys.stderr)
            break
    return samples


def main() -> int:
    """Run the rows asked for and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    families = {name.partition("-")[0] for name in ROWS}
    parser.add_argument("--row", choices=sorted({*ROWS, *families}))
    arguments = parser.parse_args()
    wanted = [
        row
        for name, row in ROWS.items()
        if arguments.row in (None, name) or name.startswith(f"{arguments.row}-")
    ]
    deadline = time.monotonic() + BUDGET_S
    lines = []
    for row in wanted:
        if time.monotonic() > deadline:
            print(f"{row.name}: not measured, the time is used up")
            continue
        samples = collect(row, row.produce, deadline)
        line = summarise(row, samples)
        lines.append(line)
        show(line)
    build = Path("build")
    build.mkdir(exist_ok=True)
    (build / "bench.json").write_text(json.dumps(lines, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
