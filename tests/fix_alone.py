"""Which process runs which test, and when: long ones early, those that hold a bound in time alone.

Files go to processes whole, because their tests share databases. Files whose tests share nothing
and take long, such as those that start clusters, are dealt out test by test, from the beginning on,
to half of the processes: otherwise one process would be busy with one file long after the others.

Beside three other tests every bound is a matter of luck. Such a test is marked ``alone``. Spread
over several processes (``-n``), the others run first, file by file; then all processes but one end,
with their servers, and the last one runs what is marked. It stays one run, with one summary. A test
that ran so has ``@alone`` at the end of its name. Without ``-n`` every test runs alone anyway.
"""

from __future__ import annotations

from typing import Any, Final

import pytest
from xdist.scheduler.loadfile import LoadFileScheduling

SUFFIX: Final = "@alone"
LONG: Final = tuple(
    f"tests/{name}"
    for name in (
        "bootstrap/test_kills",
        "dataplane/test_exactly_once",
        "dataplane/test_faults",
        "server/test_evicted",
        "server/test_members",
        "server/test_owner_",
        "server/test_partition",
        "server/test_recovery",
        "server/test_restore",
        "server/test_rolling_upgrade",
        "workflow/test_crashes",
        "workflow/test_shapes_judged",
        "workflow/test_silent_predecessors",
    )
)
"""How the names of files begin whose tests are dealt out one by one."""


class AloneLast(LoadFileScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """Files to processes, and the tests marked ``alone`` to the last process that is left."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        if nodeid.endswith(SUFFIX):
            return file + SUFFIX
        return nodeid if nodeid.startswith(LONG) else file

    def _next(self) -> str | None:
        """The next file or long test for any process; None when only the others are left."""
        units = [unit for unit in self.workqueue if not unit.endswith(SUFFIX)]
        busy = sum(
            any(unit.startswith(LONG) and not all(tests.values()) for unit, tests in work.items())
            for work in self.assigned_work.values()
        )
        wants_long = 2 * busy < len(self.nodes)
        return min(units, key=lambda unit: unit.startswith(LONG) != wants_long, default=None)

    def _assign_work_unit(self, node: Any) -> None:
        unit = self._next()
        if unit is not None:
            self.workqueue.move_to_end(unit, last=False)
        elif len(self.nodes) > 1:
            return  # remove_node() looks again
        super()._assign_work_unit(node)

    def _reschedule(self, node: Any) -> None:
        waits_for_others = self.workqueue and self._next() is None and len(self.nodes) > 1
        if not waits_for_others:
            super()._reschedule(node)
        elif node is not self.nodes[0] and not node.shutting_down:
            node.shutdown()

    def remove_node(self, node: Any) -> str | None:
        crashed: str | None = super().remove_node(node)
        if self.workqueue and len(self.nodes) == 1:
            for _ in range(2):  # a process holds its last test back until it knows the next
                self._reschedule(self.nodes[0])
        return crashed


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> AloneLast | None:
    return AloneLast(config, log) if config.option.dist == "loadfile" else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The process that distributes the tests knows them by their names only."""
    if hasattr(config, "workerinput"):
        for item in items:
            if item.get_closest_marker("alone"):
                item._id = item.id.parse(item.nodeid + SUFFIX)
