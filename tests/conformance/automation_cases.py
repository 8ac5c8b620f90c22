"""Checks of the area "automation": cluster operations, their graphs and calls, and the runner.

A case of the kind ``runner`` is played on a cluster database of its own, with the product's runner
and with tasks that do what the case says. Every key is read; what is not known fails the case.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from conformance.scenarios import Facts
from tidegate.cluster import updates
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.leases import Leases
from tidegate.cluster.schema import Schema
from tidegate.errors import ConnectError, TidegateError
from tidegate.operations import stored
from tidegate.operations.handle import RunningTask
from tidegate.operations.model import (
    ClusterOperation,
    OperationState,
    TaskContainer,
    TaskState,
    add_task,
    new_task_container,
)
from tidegate.operations.runner import OperationRunner
from tidegate.operations.service import OperationService
from tidegate.operations.store import OperationStore
from tidegate.operations.tasks import Parameter, Task, TaskCatalogue, TaskResult
from tidegate.workflow.tasks.composites import catalogue
from tidegate.workflow.tasks.leaves import LEAVES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tidegate.operations.tasks import TaskHandle
    from tidegate.workflow.tasks.calls import ServiceCall

AREA: Final = "automation"
SECTION: Final = "cases"
SETTLES_S: Final = 20.0
STEADY_S: Final = 0.4
RETURNS_S: Final = 1.0


def run(case: dict[str, Any]) -> None:
    facts = Facts(case)
    _ = facts["id"], facts.get("title"), facts.get("gap")
    KINDS[facts["kind"]](facts)
    assert not facts.unread(), f"unknown checks: {facts.unread()}"


# -- tasks, graphs, calls


@dataclass
class RecordedServices:
    """Takes calls down; fails when told to."""

    fails: bool = False
    calls: list[dict[str, Any]] = field(default_factory=list)

    def check(self, call: ServiceCall) -> None:
        assert call.verb

    def servers(self, call: ServiceCall) -> Sequence[str]:
        assert call.verb
        return ("db1:5432",)

    def call(self, call: ServiceCall, handle: TaskHandle) -> str:
        assert handle.task_id
        self.calls.append(
            {"verb": call.verb, "options": dict(call.options), "args": list(call.args)}
        )
        if self.fails:
            raise TidegateError("the service failed")
        return "done"


def handle() -> RunningTask:
    return RunningTask("operation", {}, "task", "1/1")


def plain(value: Any) -> Any:
    """A value of a case as it was written; everything in it counts as read."""
    if isinstance(value, Facts):
        return {key: plain(value[key]) for key in value}
    return [plain(each) for each in value] if isinstance(value, list) else value


def check_registered(facts: Facts) -> None:
    assert list(catalogue(RecordedServices()).operations) == sorted(facts["names"])


def check_task(facts: Facts) -> None:
    task = catalogue(RecordedServices()).find(facts["task"])
    assert {each.name for each in task.required_parameters()} == set(facts["required"])
    assert {each.name for each in task.optional_parameters()} == set(facts["optional"])


def check_graph(facts: Facts) -> None:
    task = catalogue(RecordedServices()).find(facts["task"])
    result = task.run(plain(facts["parameters"]), handle())
    found = [
        [{"name": each.name, "parameters": dict(each.parameters)} for each in container.tasks]
        for container in result.containers
    ]
    assert found == plain(facts["containers"])


def check_call(facts: Facts) -> None:
    services = RecordedServices(fails=facts["remote_fails"])
    task = catalogue(services).find(facts["task"])
    raises = pytest.raises(TidegateError, match="the service failed")
    with raises if services.fails else contextlib.nullcontext():
        task.run(plain(facts["parameters"]), handle())
    assert services.calls == plain(facts["calls"])


# -- the runner


@dataclass
class Stage:
    """What the tasks of a case share: who runs, who is released, how often somebody failed."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    order: list[str] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    blocked: set[str] = field(default_factory=set)
    most: int = 0
    released: set[str] = field(default_factory=set)
    failed: dict[str, int] = field(default_factory=dict)


class CaseTask(Task):
    """A task that does what the case says."""

    def __init__(self, stage: Stage) -> None:
        self.acting = stage

    def required_parameters(self) -> Sequence[Parameter]:
        return (Parameter("label"), Parameter("do"))

    def optional_parameters(self) -> Sequence[Parameter]:
        return tuple(map(Parameter, ("text", "error", "times", "containers")))

    def run(self, parameters: Mapping[str, str], handle: TaskHandle) -> TaskResult:
        label = parameters["label"]
        with self.acting.lock:
            self.acting.order.append(label)
            self.acting.running.add(label)
            self.acting.most = max(self.acting.most, len(self.acting.running))
        try:
            return self._act(label, parameters, handle)
        finally:
            with self.acting.lock:
                self.acting.running.discard(label)
                self.acting.blocked.discard(label)

    def _act(self, label: str, given: Mapping[str, str], handle: TaskHandle) -> TaskResult:
        match given["do"]:
            case "echo":
                return TaskResult(given.get("text", ""))
            case "fail":
                raise CaseFailedError(given["error"])
            case "flaky":
                with self.acting.lock:
                    times = self.acting.failed.get(label, 0)
                    self.acting.failed[label] = times + 1
                if times < int(given["times"]):
                    raise ConnectError("a server is away for a moment")
                return TaskResult("came through")
            case "crash":
                raise RuntimeError("nobody expects this")
            case "block":
                self.acting.blocked.add(label)
                while label not in self.acting.released:
                    handle.wait(0.02)
                return TaskResult("released")
            case "emit":
                return TaskResult("", containers_of(json.loads(given["containers"])))
        raise AssertionError(given["do"])


class CaseFailedError(TidegateError):
    """What a failing task raises; never retried."""

    code = "TG-TEST-001"


TASK: Final = "CaseTask"
ACTS: Final = {
    "echo": {"text"},
    "fail": {"error"},
    "flaky": {"times"},
    "crash": set(),
    "block": set(),
    "emit": {"containers"},
}


def containers_of(given: Sequence[Mapping[str, Any]]) -> tuple[TaskContainer, ...]:
    """The containers of a case as the product has them."""
    found = []
    for each in given:
        assert set(each) == {"concurrency", "tasks"}, each
        container = new_task_container(each["concurrency"])
        for task in each["tasks"]:
            container = _with_task(container, dict(task))
        found.append(container)
    return tuple(found)


def _with_task(container: TaskContainer, task: dict[str, Any]) -> TaskContainer:
    label, do = task.pop("label"), task.pop("do")
    if do in {"unregistered", "lacks"}:
        assert not task, f"unknown keys of a task: {task}"
        name = "NobodyImplementsThis" if do == "unregistered" else TASK
        return add_task(container, name, {"label": label})
    assert set(task) == ACTS[do], f"a task that does {do} has {sorted(task)}"
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in task.items()}
    return add_task(container, TASK, {"label": label, "do": do, **texts})


class Play:
    """One case of the runner on a database of its own."""

    def __init__(self, facts: Facts, folder: Path) -> None:
        given = facts["given"]
        self.containers = plain(given["operation"]["containers"]) if "operation" in given else None
        self.database = ClusterDatabase.open(f"sqlite:///{folder}/cluster.db")
        Schema([*updates.UPDATES, *stored.UPDATES]).ensure(self.database)
        self.acting = Stage()
        product = catalogue(RecordedServices())
        tasks = {name: product.find(name) for name in NAMES}
        self.catalogue = TaskCatalogue({**tasks, TASK: CaseTask(self.acting)}, product.operations)
        self.ids: list[str] = []
        self.named: dict[str, str] = {}
        self.current: str | None = None
        self.error: TidegateError | None = None
        self.took_s = 0.0
        self.runs = 0
        self._open()

    def _open(self) -> None:
        self.service = OperationService(OperationStore(self.database), self.catalogue)
        self.runner = OperationRunner(
            self.service, Leases(self.database), holder=f"case:{self.runs}"
        )

    def close(self) -> None:
        self.runner.shutdown_and_wait()
        self.database.close()

    # -- events

    def event(self, event: Facts) -> None:
        self.error = None
        started = time.monotonic()
        try:
            EVENTS[event["op"]](self, event)
        except TidegateError as error:
            self.error = error
        self.took_s = time.monotonic() - started

    def start(self, _event: Facts) -> None:
        if self.service.is_closed:  # as after a restart of the process
            self.runs += 1
            self._open()
        self.runner.run()

    def shutdown(self, _event: Facts) -> None:
        self.runner.shutdown_and_wait()

    def enqueue(self, event: Facts) -> None:
        key, name = event.get("key"), event.get("as")
        if "task" in event:
            task, parameters = event["task"], plain(event["parameters"])
            added = self.service.enqueue_cluster_operation(task, parameters, key=key)
        else:
            assert self.containers is not None, "the case gives no operation"
            added = self.service.enqueue(
                "given operation", {}, containers_of(self.containers), key=key
            )
        self.current = added.id
        if added.id not in self.ids:
            self.ids.append(added.id)
        if name is not None:
            self.named[name] = added.id

    def release(self, event: Facts) -> None:
        self.acting.released.add(event["label"])
        self._wait(lambda: event["label"] not in self.acting.blocked, "a task goes on")

    def until(self, event: Facts) -> None:
        label, state = event["label"], TaskState(event["state"])
        self._wait(lambda: self.task(label).state is state, f"{label} {state}")

    def ask(self, event: Facts) -> None:
        name = event.get("as")
        id_ = self.named[name] if name is not None else self.current
        assert id_ is not None, "no operation"
        self.current = id_
        getattr(self.service, event["op"])(id_)

    # -- looking

    def operation(self) -> ClusterOperation:
        assert self.current is not None, "no operation"
        return self.service.get_cluster_operation_details(self.current)

    def task(self, label: str) -> Any:
        found = {each.parameters.get("label"): each for _, each in self.operation().tasks()}
        assert label in found, f"no task {label}"
        return found[label]

    def settle(self) -> None:
        """Wait until nothing moves: all has ended or is paused, or a task blocks."""
        if not self.runner.is_running:
            return

        def is_still() -> bool:
            every = [self.service.get_cluster_operation_details(each) for each in self.ids]
            if all(each.has_ended or each.state is OperationState.PAUSED for each in every):
                return True
            if not self.acting.blocked:
                return False
            versions = [each.version for each in every]
            time.sleep(STEADY_S)
            return bool(self.acting.blocked) and versions == [
                self.service.get_cluster_operation_details(each).version for each in self.ids
            ]

        self._wait(is_still, "operations settle")

    @staticmethod
    def _wait(condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SETTLES_S
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain: {what}"
            time.sleep(0.01)

    # -- expectations

    def expect(self, wanted: Facts) -> None:
        _ = wanted["after"]
        self.settle()
        for key in wanted:
            if key != "after":
                CHECKS[key](self, wanted[key])

    def check_result(self, wanted: str) -> None:
        assert wanted in {"accepted", "refused"}, wanted
        assert (self.error is not None) is (wanted == "refused"), self.error

    def check_names(self, wanted: list[str]) -> None:
        assert self.error is not None, "nothing was refused"
        for word in wanted:
            assert word in self.error.message

    def check_same_as(self, wanted: str) -> None:
        assert self.current == self.named[wanted]

    def check_states(self, wanted: Facts) -> None:
        found = {label: self.task(label).state.value for label in wanted}
        assert found == plain(wanted)

    def check_operation(self, wanted: str) -> None:
        operation = self.operation()
        assert operation.state == wanted, f"{operation.why} {operation.error}"

    def check_order(self, wanted: list[str]) -> None:
        assert self.acting.order == wanted

    def check_most_at_once(self, wanted: int) -> None:
        assert self.acting.most == wanted

    def check_failures(self, wanted: list[str]) -> None:
        found = [task.parameters["label"] for _, task in self.operation().failures()]
        assert sorted(found) == sorted(wanted)

    def check_error_contains(self, wanted: Facts) -> None:
        for label in wanted:
            assert wanted[label] in self.task(label).error

    def check_output_contains(self, wanted: Facts) -> None:
        for label in wanted:
            assert wanted[label] in self.task(label).output

    def check_containers(self, wanted: int) -> None:
        assert len(self.operation().serial_tasks) == wanted

    def check_returned(self, wanted: bool) -> None:
        assert (self.took_s < RETURNS_S) is wanted

    def check_next_operation(self, wanted: str) -> None:
        container = containers_of(
            [{"concurrency": 0, "tasks": [{"label": "next", "do": "echo", "text": ""}]}]
        )
        id_ = self.service.enqueue("next operation", {}, container).id
        get = self.service.get_cluster_operation_details
        self._wait(lambda: get(id_).has_ended, "the next operation ends")
        assert get(id_).state == wanted

    def check_attempts(self, wanted: Facts) -> None:
        found = {label: self.task(label).attempts for label in wanted}
        assert found == plain(wanted)


NAMES: Final = ("HorizontalReshardingTask", "VerticalSplitTask", *LEAVES)
EVENTS: Final[dict[str, Callable[[Play, Facts], None]]] = {
    "run": Play.start,
    "shutdown": Play.shutdown,
    "enqueue": Play.enqueue,
    "release": Play.release,
    "until": Play.until,
    "pause": Play.ask,
    "resume": Play.ask,
    "cancel": Play.ask,
    "retry": Play.ask,
}
CHECKS: Final[dict[str, Callable[[Play, Any], None]]] = {
    "result": Play.check_result,
    "names": Play.check_names,
    "same_as": Play.check_same_as,
    "states": Play.check_states,
    "operation": Play.check_operation,
    "order": Play.check_order,
    "most_at_once": Play.check_most_at_once,
    "failures": Play.check_failures,
    "error_contains": Play.check_error_contains,
    "output_contains": Play.check_output_contains,
    "containers": Play.check_containers,
    "returned": Play.check_returned,
    "next_operation": Play.check_next_operation,
    "attempts": Play.check_attempts,
}


def check_runner(facts: Facts) -> None:
    with tempfile.TemporaryDirectory() as folder:
        play = Play(facts, Path(folder))
        try:
            events, expected = facts["events"], facts["expect"]
            for number, event in enumerate(events):
                play.event(event)
                wanted = [each for each in expected if each["after"] == number]
                if play.error is not None and not any("result" in each for each in wanted):
                    raise play.error
                for each in wanted:
                    play.expect(each)
            assert all(0 <= each["after"] < len(events) for each in expected)
        finally:
            play.close()


KINDS: Final[dict[str, Callable[[Facts], None]]] = {
    "registered": check_registered,
    "task": check_task,
    "graph": check_graph,
    "call": check_call,
    "runner": check_runner,
}
