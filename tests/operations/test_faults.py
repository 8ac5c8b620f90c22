"""Every fault at every persisted point of an operation: the points are those that a run reaches."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from make_operations import Bench, FileTask, RootTask, database_in
from tidegate import steps
from tidegate.errors import ClusterDatabaseError, ConflictError
from tidegate.operations import runner, running
from tidegate.operations.model import OperationState, TaskState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tidegate.operations.model import ClusterOperation


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "TICK_S", 0.02)
    monkeypatch.setattr(running, "REPEAT_S", 0.01)
    monkeypatch.setattr(runner, "POLL_S", 0.05)


class Play:
    """One run of the plan in a folder of its own, with a fault at one of its points."""

    def __init__(self, folder: Path, bench: Bench, at: int, fault: str) -> None:
        self.folder, self.bench, self.at, self.fault = folder, bench, at, fault
        self.trace: list[str] = []
        self.second: Bench | None = None
        self.is_away = False

    def tasks(self) -> dict[str, FileTask | RootTask]:
        return {"RootTask": RootTask(), "FileTask": FileTask(self.folder / "effects")}

    def reached(self, name: str) -> None:
        if not name.startswith("operations."):
            return
        self.trace.append(name)
        if len(self.trace) == self.at:
            getattr(self, self.fault)()

    def none(self) -> None:
        """No fault."""

    def cancel(self) -> None:
        with_conflict(lambda: self.bench.service.cancel(self.id_()))

    def pause(self) -> None:
        with_conflict(lambda: self.bench.service.pause(self.id_()))

    def lease_lost(self) -> None:
        self.bench.leases.release_holder("test:1")
        self.second = Bench(self.bench.database, self.tasks(), holder="test:2")
        self.second.runner.run()

    def database_away(self) -> None:
        self.is_away = True
        store, times = self.bench.store, iter(range(3))
        update = store.update

        def refused(*args: object, **options: object) -> ClusterOperation:
            if next(times, None) is not None:
                raise ClusterDatabaseError("the cluster database does not answer")
            return update(*args, **options)  # type: ignore[arg-type]  # handed on as they came

        store.update = refused  # type: ignore[method-assign]  # it is away for a moment

    def id_(self) -> str:
        (found,) = self.bench.service.list()
        return found.id

    def ended(self) -> ClusterOperation:
        """The operation at its end; what was paused is resumed."""
        watching = self.bench
        found = watching.until(
            self.id_(), lambda each: each.has_ended or each.state is OperationState.PAUSED
        )
        if found.state is OperationState.PAUSED:
            assert not found.running()
            watching.service.resume(found.id)
        return watching.ended(found.id)


def with_conflict(ask: Callable[[], object]) -> None:
    """Ask; what has ended meanwhile refuses."""
    with suppress(ConflictError):
        ask()


@contextmanager
def playing(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int, fault: str) -> Iterator[Play]:
    folder.mkdir()
    with database_in(folder) as database, monkeypatch.context() as patch:
        play = Play(folder, Bench(database, {}), at, fault)
        play.bench = Bench(database, play.tasks())
        patch.setattr(steps, "reached", play.reached)
        play.bench.runner.run()
        play.bench.enqueue("RootTask")
        try:
            yield play
        finally:
            # The last thing that the first one does may be to begin the second one.
            assert play.bench.runner.shutdown_and_wait()
            assert play.second is None or play.second.runner.shutdown_and_wait()


@pytest.mark.parametrize("fault", ["cancel", "pause", "lease_lost", "database_away"])
def test_whatever_happens_at_a_persisted_point_every_effect_is_there_once(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """automation 1, 2, 4, 5: a cancel, a pause, a lost lease, a database that is away."""
    with playing(tmp_path / "none", monkeypatch, 0, "none") as play:
        assert play.ended().state is OperationState.SUCCEEDED
    points = len(play.trace)
    assert set(play.trace) == {s.name for s in steps.declared() if s.plan == "operations"}
    for at in range(1, points + 1):
        folder = tmp_path / str(at)
        with playing(folder, monkeypatch, at, fault) as play:
            found = play.ended()
        where = f"{fault} at {play.trace[at - 1]} ({at})"
        effects = []
        if (folder / "effects").exists():
            effects = (folder / "effects").read_text(encoding="utf-8").split("\n")[:-1]
        assert all(times == 1 for times in Counter(effects).values()), where
        done = [t.id for _, t in found.tasks() if t.name == "FileTask" and t.output]
        assert {line.split()[1] for line in effects} >= set(done), where
        assert not found.running(), where
        if fault != "cancel":
            assert found.state is OperationState.SUCCEEDED, where
            assert sorted(line.split()[0] for line in effects) == ["a", "b", "c"], where
        else:
            assert found.state in {OperationState.CANCELLED, OperationState.SUCCEEDED}, where
            began = {t.state for _, t in found.tasks()}
            assert TaskState.FAILED not in began, where
