"""Who asked what of an operation and why, and what came of it: in one chain of hashes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from make_operations import WORLD, Bench, FileTask, FunctionTask
from tidegate.cluster.audit import Audit
from tidegate.errors import InvalidArgumentError
from tidegate.operations.history import digest

if TYPE_CHECKING:
    from pathlib import Path

    from tidegate.cluster.audit import Entry
    from tidegate.cluster.database import ClusterDatabase
    from tidegate.operations.tasks import TaskHandle


def entries(bench: Bench, id_: str) -> list[Entry]:
    return Audit(bench.database).newest(before=None, limit=100, call=id_)[::-1]


def skipped_by_bob(database: ClusterDatabase, reason: str = "done by hand") -> tuple[Bench, str]:
    """An operation that ada enqueued, whose task failed, and that bob ended by skipping it."""

    def breaks(_handle: TaskHandle) -> None:
        raise ValueError("broken")

    bench = Bench(database, {"Breaks": FunctionTask(breaks)})
    bench.runner.run()
    id_ = bench.enqueue("Breaks", caller="ada")
    bench.ended(id_)
    bench.service.skip(id_, "1/1", reason, caller="bob")
    bench.until(id_, lambda found: found.state == "SUCCEEDED")
    assert bench.runner.shutdown_and_wait()
    return bench, id_


def test_who_asked_what_and_why_is_kept_with_the_world_before_and_after(
    database: ClusterDatabase,
) -> None:
    """automation 16: one entry a change, written with it."""
    bench, id_ = skipped_by_bob(database)
    found = [
        (e.caller, e.what.removeprefix(f"operation {id_} Breaks: ")) for e in entries(bench, id_)
    ]
    assert found == [
        ("ada", f"enqueued, parameters sha256:{digest({})} ({WORLD})"),
        ("runner", f"began ({WORLD})"),
        ("runner", f"FAILED ({WORLD})"),
        ("bob", "skip 1/1: done by hand"),
        ("runner", f"SUCCEEDED ({WORLD})"),
    ]
    lines = [line.line for line in bench.store.log(id_, after=0, limit=100)]
    assert "skip 1/1: done by hand, asked for by bob" in lines


def test_one_row_that_is_deleted_breaks_the_chain(database: ClusterDatabase) -> None:
    """automation 16: any of them, the last one included; the verb says which."""
    bench, id_ = skipped_by_bob(database)
    chain = Audit(database)
    assert chain.verify().why is None
    for entry in entries(bench, id_):
        with database.transaction() as connection:
            row = connection.execute(
                text("SELECT * FROM audit_entry WHERE seq = :seq"), {"seq": entry.seq}
            ).one()
            connection.execute(text("DELETE FROM audit_entry WHERE seq = :seq"), {"seq": entry.seq})
        verdict = chain.verify()
        assert verdict.broken_at == entry.seq
        assert verdict.why is not None
        assert "missing" in verdict.why
        with database.transaction() as connection:
            columns = ", ".join(f":{name}" for name in row._mapping)
            connection.execute(
                text(f"INSERT INTO audit_entry VALUES ({columns})"), dict(row._mapping)
            )
        assert chain.verify().why is None


def test_a_secret_in_a_reason_is_kept_nowhere(database: ClusterDatabase) -> None:
    """automation 25: neither with the task, nor in the log, nor in the audit log."""
    bench, id_ = skipped_by_bob(database, "by hand at postgresql://app:hunter2@db/orders")
    lines = [line.line for line in bench.store.log(id_, after=0, limit=100)]
    kept = f"{lines} {bench.get(id_)} {entries(bench, id_)}"
    assert "hunter2" not in kept
    assert kept.count("by hand at postgresql://app:***@db/orders") >= 3


def test_secrets_are_refused_as_parameters_and_kept_out_of_logs(
    database: ClusterDatabase, tmp_path: Path
) -> None:
    """automation 25: parameters hold references; what a task says is redacted."""
    url = "postgresql://app:hunter2@db/orders"

    def talks(handle: TaskHandle) -> str:
        handle.log(f"connects to {url}")
        return f"connected to {url}"

    bench = Bench(database, {"Talks": FunctionTask(talks), "FileTask": FileTask(tmp_path / "e")})
    with pytest.raises(InvalidArgumentError, match="a password stands in label") as caught:
        bench.service.enqueue_cluster_operation("FileTask", {"label": url})
    assert "hunter2" not in caught.value.message
    bench.runner.run()
    found = bench.ended(bench.enqueue("Talks"))
    assert bench.runner.shutdown_and_wait()
    lines = [line.line for line in bench.store.log(found.id, after=0, limit=100)]
    assert "connects to postgresql://app:***@db/orders" in lines
    assert "hunter2" not in f"{lines} {found} {entries(bench, found.id)}"
