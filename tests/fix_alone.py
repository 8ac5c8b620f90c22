"""Tests that hold the product to a bound in time run alone, after all others, in the same run.

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


class AloneLast(LoadFileScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """Files to processes, and the tests marked ``alone`` to the last process that is left."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return file + SUFFIX if nodeid.endswith(SUFFIX) else file

    def _next(self) -> str | None:
        """The next file for any process; None when only tests that run alone are left."""
        return next((unit for unit in self.workqueue if not unit.endswith(SUFFIX)), None)

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
