"""A process that enqueues one operation and works on it to its end; tests kill it on the way.

Usage: run_operations.py FOLDER HOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from make_operations import Bench, FileTask, RootTask, database_in
from tidegate.operations.model import OperationState


def main() -> None:
    folder, holder = Path(sys.argv[1]), sys.argv[2]
    with database_in(folder) as database:
        tasks = {"RootTask": RootTask(), "FileTask": FileTask(folder / "effects")}
        bench = Bench(database, tasks, holder=holder)
        bench.runner.run()
        id_ = bench.enqueue("RootTask", key="the one")
        paused = OperationState.PAUSED
        found = bench.until(id_, lambda each: each.has_ended or each.state is paused)
        bench.runner.shutdown_and_wait()
        sys.stdout.write(f"{found.id} {found.state}\n")


if __name__ == "__main__":
    main()
