"""What ``/metrics`` shows of workflows, by their names: progress, lag, age of the proof, state.

Decides how old the figures may be and how long a scrape waits for them. They are read from the
shards when somebody asks, never otherwise, by one thread at a time; a scrape does not wait for a
server that is away.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psycopg
import structlog
from prometheus_client.core import GaugeMetricFamily

from tidegate.errors import TidegateError
from tidegate.workflow.readiness import verified_age_s
from tidegate.workflow.sessions import Sessions
from tidegate.workflow.status import read_status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from tidegate.server.services import Services
    from tidegate.topology.model import Snapshot
    from tidegate.workflow.model import Workflow

READ_AGAIN_S: Final = 10.0
WAIT_S: Final = 3.0
"""A scrape waits so long for new figures; those of a slow server come with the next one."""
KEPT_S: Final = 120.0
"""Older figures are not shown: a gap says more than what was once true."""

log = structlog.get_logger("tidegate.metrics")


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one workflow; None where it is unknown."""

    workflow: str
    state: str
    copied: float
    lag_s: float | None
    vdiff_age_s: float | None
    read_at: float


class WorkflowFigures:
    """Of all workflows of a node that is owner."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lock = threading.Lock()
        self._known: dict[str, Figures] = {}
        self._read_at = float("-inf")
        self._done = threading.Event()
        self._done.set()

    def now(self) -> list[Figures]:
        """The figures, as new as they may be had without a long wait."""
        with self._lock:
            if self._done.is_set() and time.monotonic() - self._read_at > READ_AGAIN_S:
                self._done.clear()
                threading.Thread(target=self._read, name="figures", daemon=True).start()
        self._done.wait(WAIT_S)
        oldest = time.monotonic() - KEPT_S
        found = [each for each in list(self._known.values()) if each.read_at > oldest]
        return sorted(found, key=lambda each: each.workflow)

    def collect(self) -> Iterator[Metric]:
        """As Prometheus has them."""
        state = GaugeMetricFamily(
            "tidegate_workflow_state", "1 for the state it is in.", labels=["workflow", "state"]
        )
        copied = _gauge("copied_ratio", "Share of the bytes copied, 0 to 1.")
        lag = _gauge("lag_seconds", "Largest lag of the streams that run; absent while unknown.")
        age = _gauge("vdiff_age_seconds", "Since the last VDiff that found all equal.")
        for each in self.now():
            state.add_metric([each.workflow, each.state], 1.0)
            copied.add_metric([each.workflow], each.copied)
            if each.lag_s is not None:
                lag.add_metric([each.workflow], each.lag_s)
            if each.vdiff_age_s is not None:
                age.add_metric([each.workflow], each.vdiff_age_s)
        yield from (state, copied, lag, age)

    def _read(self) -> None:
        try:
            workflows = self._services.records.all() if self._services.slots.is_wanted() else []
            snapshot = self._services.store.read()
            with Sessions(snapshot, purpose="metrics") as sessions:
                for workflow in workflows:
                    self._known[workflow.key] = _figures(snapshot, workflow, sessions)
            keys = {workflow.key for workflow in workflows}
            self._known = {key: each for key, each in self._known.items() if key in keys}
        except TidegateError as error:
            log.warning("figures of workflows not read", error=str(error))
        except Exception:
            log.exception("figures of workflows not read")
        finally:
            self._read_at = time.monotonic()
            self._done.set()


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tidegate_workflow_{name}", text, labels=["workflow"])


def _figures(snapshot: Snapshot, workflow: Workflow, sessions: Sessions) -> Figures:
    status = read_status(snapshot, workflow, sessions)
    try:
        age_s = None if status.unreachable else verified_age_s(sessions, workflow)
    except (TidegateError, psycopg.Error):
        age_s = None
    total = sum(table.bytes_total for table in status.tables)
    done = sum(table.bytes_total * table.percent / 100 for table in status.tables)
    shares = [table.percent / 100 for table in status.tables]
    plain = sum(shares) / len(shares) if shares else 0.0
    return Figures(
        workflow.key,
        str(status.condition.state),
        done / total if total else plain,
        status.condition.max_lag_s,
        age_s,
        time.monotonic(),
    )
