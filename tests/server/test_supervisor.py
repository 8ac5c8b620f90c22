from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tidegate.dataplane.model import Direction, SpanSpec
from tidegate.errors import ConnectError
from tidegate.server import processes
from tidegate.server.supervision import Policy, Process
from tidegate.server.supervisor import DesiredSpan, Supervisor
from tidegate.topology.connections import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOY = (sys.executable, "-S", str(Path(__file__).with_name("toy_worker.py")))
FAST = Policy(first_delay_s=0.02, longest_delay_s=0.1, stop_timeout_s=0.3, done_again_s=30)


def span(behaviour: str = "run", number: int = 1) -> SpanSpec:
    return SpanSpec(
        workflow_uuid=f"00000000-0000-0000-0000-{number:012d}",
        workflow=behaviour,
        direction=Direction.FORWARD,
        source_keyspace="a",
        source_shard="0",
        source=Endpoint("host=nowhere"),
        target_keyspace="b",
        slot="s",
        publication="p",
        tables=(),
        targets=(),
        epoch=0,
    )


class Bench:
    """A supervisor over toy workers, and what it should want."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spans: list[DesiredSpan] = []
        self.epochs = itertools.count(1)
        self.unreachable = False
        self.all: list[Supervisor] = []

    def prepare(self, spec: SpanSpec) -> SpanSpec:
        if self.unreachable:
            raise ConnectError("the target is down")
        return replace(spec, epoch=next(self.epochs))

    def supervisor(self) -> Supervisor:
        made = Supervisor(
            self.folder,
            desired=lambda: list(self.spans),
            prepare=self.prepare,
            command=TOY,
            policy=FAST,
        )
        made.start()
        self.all.append(made)
        return made

    def want(self, *specs: SpanSpec, generation: int = 0) -> None:
        self.spans = [DesiredSpan(spec, generation) for spec in specs]

    def events(self, spec: SpanSpec) -> list[dict[str, object]]:
        files = processes.SpanFiles(self.folder, spec.span_id)
        return [json.loads(line) for line in files.tail_events() if line]

    def starts(self, spec: SpanSpec) -> int:
        return sum(event["event"] == "started" for event in self.events(spec))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "spans")
    yield made
    for supervisor in made.all:
        supervisor.stop()


def until[T](check: Callable[[], T | None], timeout_s: float = 15.0) -> T:
    deadline = time.monotonic() + timeout_s
    while not (found := check()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)
    return found


def pid_of(supervisor: Supervisor, spec: SpanSpec) -> int | None:
    pids = [row["pid"] for row in supervisor.status() if row["span"] == spec.span_id]
    return pids[0] if pids else None


def test_a_worker_runs_while_its_span_is_wanted_and_leaves_nothing_behind(bench: Bench) -> None:
    spec = span()
    bench.want(spec)
    supervisor = bench.supervisor()
    pid = until(lambda: pid_of(supervisor, spec))
    until(lambda: bench.events(spec)[-1:] == [{"event": "running", "epoch": 1}])
    assert os.getsid(pid) == pid, "a signal to the node's terminal must not reach the worker"
    bench.want()
    until(lambda: not supervisor.status())
    assert processes.start_ticks(pid) is None
    assert list(bench.folder.iterdir()) == []


def test_a_killed_worker_comes_back_under_a_higher_epoch(bench: Bench) -> None:
    spec = span()
    bench.want(spec)
    supervisor = bench.supervisor()
    pid = until(lambda: pid_of(supervisor, spec))
    until(lambda: bench.events(spec)[-1:] == [{"event": "running", "epoch": 1}])
    os.kill(pid, signal.SIGKILL)
    until(lambda: bench.events(spec)[-1:] == [{"event": "running", "epoch": 2}])
    assert until(lambda: pid_of(supervisor, spec)) != pid


def test_a_fatal_end_stays_down_until_the_span_is_started_again(bench: Bench) -> None:
    spec = span("exit3")
    bench.want(spec)
    supervisor = bench.supervisor()
    until(lambda: [row["held"] for row in supervisor.status()] == [True])
    other = span("exit1", 2)
    bench.want(spec, other)
    until(lambda: bench.starts(other) >= 4)
    assert bench.starts(spec) == 1
    bench.want(spec, generation=1)
    until(lambda: bench.starts(spec) == 2)


def test_a_lost_epoch_and_a_crash_are_tried_again(bench: Bench) -> None:
    lost, crash = span("exit4", 1), span("exit1", 2)
    bench.want(lost, crash)
    bench.supervisor()
    until(lambda: bench.starts(lost) >= 3 and bench.starts(crash) >= 3)


def test_an_unreachable_server_delays_a_start_and_stops_no_other(bench: Bench) -> None:
    spec = span()
    bench.unreachable = True
    bench.want(spec)
    supervisor = bench.supervisor()
    until(lambda: any(row["error"] == "the target is down" for row in supervisor.status()))
    assert bench.starts(spec) == 0
    bench.unreachable = False
    until(lambda: pid_of(supervisor, spec))


def test_a_worker_that_ignores_the_request_to_stop_is_killed(bench: Bench) -> None:
    spec = span("stubborn")
    bench.want(spec)
    supervisor = bench.supervisor()
    until(lambda: [e["event"] for e in bench.events(spec)] == ["started", "running"])
    pid = pid_of(supervisor, spec)
    assert pid is not None
    bench.want()
    until(lambda: processes.start_ticks(pid) is None)


def test_an_orderly_stop_ends_every_worker(bench: Bench) -> None:
    specs = [span(number=number) for number in range(1, 5)]
    bench.want(*specs)
    supervisor = bench.supervisor()
    pids = [until(lambda spec=spec: pid_of(supervisor, spec)) for spec in specs]  # type: ignore[misc]
    supervisor.stop()
    assert [processes.start_ticks(pid) for pid in pids] == [None] * 4
    supervisor.stop()


NODE = """
import sys
sys.path[:0] = {path!r}
import test_supervisor as t
from pathlib import Path
bench = t.Bench(Path({folder!r}))
spec = t.span({behaviour!r})
bench.want(spec)
supervisor = bench.supervisor()
t.until(lambda: bench.events(spec)[-1:] == [{{"event": "running", "epoch": 1}}])
print("pid", t.pid_of(supervisor, spec), flush=True)
sys.stdin.read()
"""


def killed_node(bench: Bench, behaviour: str = "run") -> int:
    """Run a supervisor in a process of its own, SIGKILL it; the pid of the worker it leaves."""
    code = NODE.format(
        path=[str(Path(__file__).parent)], folder=str(bench.folder), behaviour=behaviour
    )
    node = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert node.stdout is not None
    assert node.stdin is not None
    line = next(line for line in node.stdout if line.startswith(b"pid "))
    pid = int(line.split()[1])
    node.kill()
    node.wait()
    node.stdin.close()
    node.stdout.close()
    return pid


def test_a_worker_survives_the_death_of_its_node_and_is_adopted(bench: Bench) -> None:
    pid = killed_node(bench)
    assert processes.start_ticks(pid) is not None
    spec = span()
    bench.want(spec)
    supervisor = bench.supervisor()
    assert pid_of(supervisor, spec) == pid
    assert [row["adopted"] for row in supervisor.status()] == [True]
    os.kill(pid, signal.SIGKILL)
    until(lambda: bench.starts(spec) == 2)
    assert until(lambda: pid_of(supervisor, spec)) != pid


def test_an_adopted_worker_whose_span_is_no_longer_wanted_is_stopped(bench: Bench) -> None:
    pid = killed_node(bench)
    bench.supervisor()
    until(lambda: processes.start_ticks(pid) is None)


def test_a_worker_that_died_with_its_node_is_started_anew(bench: Bench) -> None:
    pid = killed_node(bench)
    os.kill(pid, signal.SIGKILL)
    until(lambda: processes.start_ticks(pid) is None)
    spec = span()
    bench.want(spec)
    supervisor = bench.supervisor()
    until(lambda: bench.starts(spec) == 2)
    assert until(lambda: pid_of(supervisor, spec)) != pid


def test_a_process_that_only_has_the_same_number_is_never_touched(bench: Bench) -> None:
    innocent = subprocess.Popen(["sleep", "60"])
    try:
        ticks = processes.start_ticks(innocent.pid)
        assert ticks is not None
        stale = processes.Record(
            span().span_id, innocent.pid, ticks - 1, processes.boot_id(), "x", 0, 1
        )
        bench.folder.mkdir()
        processes.SpanFiles(bench.folder, stale.span_id).write_record(stale)
        bench.supervisor()
        assert not processes.send_signal(stale.process, signal.SIGKILL)
        assert not processes.send_signal(Process(2**22 + 1, 1), signal.SIGKILL)
        assert innocent.poll() is None
        assert list(bench.folder.glob("*.json")) == []
    finally:
        innocent.kill()
        innocent.wait()


def test_a_worker_that_gets_no_span_ends(tmp_path: Path) -> None:
    done = subprocess.run(TOY, stdin=subprocess.DEVNULL, cwd=tmp_path, check=False)
    assert done.returncode == 1


def test_event_files_stay_bounded_while_their_writer_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "EVENTS_BYTES_MAX", 1000)
    files = processes.SpanFiles(tmp_path, "w")
    with files.events.open("ab", buffering=0) as writer:
        for number in range(200):
            writer.write(json.dumps({"n": number}).encode() + b"\n")
            files.bound_sizes()
            assert files.events.stat().st_size <= 1010
        assert files.last_event() == {"n": 199} or not files.tail_events()[-1:]
