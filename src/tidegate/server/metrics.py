"""What ``/metrics`` shows, in Prometheus' text form: workflows, workers, routes, routers, requests.

Decides names, labels and meaning; each is also in ``docs/reference/metrics.md``. Values are read
when they are asked for, so that an idle node does nothing for them.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Info, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

import tidegate
from tidegate.server.workflow_figures import WorkflowFigures

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from tidegate.server.services import Services

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
OTHER = "other"
"""Label of a method or route that is none of ours, so that strangers make no new series."""


class Metrics:
    """The metrics of one node."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._workflows = WorkflowFigures(services)
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        build = Info("tidegate_build", "The program that runs.", registry=self._registry)
        build.info({"version": tidegate.__version__, "python": platform.python_version()})
        self.requests = Counter(
            "tidegate_http_requests",
            "Requests answered, by method, route and status.",
            ["method", "route", "status"],
            registry=self._registry,
        )

    def text(self) -> bytes:
        """All metrics now."""
        found: bytes = generate_latest(self._registry)
        return found

    def describe(self) -> Iterator[Metric]:
        """Nothing is read when the collector is registered."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Read the values that are not counted on the way."""
        spans = self._services.supervisor.status()
        up = GaugeMetricFamily("tidegate_span_up", "A worker runs for the span.", labels=["span"])
        held = GaugeMetricFamily(
            "tidegate_span_held", "The span waits for a person to start it.", labels=["span"]
        )
        failures = GaugeMetricFamily(
            "tidegate_span_failures", "Failures of the worker in a row.", labels=["span"]
        )
        for span in spans:
            up.add_metric([span["span"]], float(span["pid"] is not None))
            held.add_metric([span["span"]], float(span["held"]))
            failures.add_metric([span["span"]], float(span["failures"]))
        ends = CounterMetricFamily("tidegate_worker_ends", "Workers that ended, however.")
        ends.add_metric([], float(self._services.supervisor.ends))
        revision = self._services.feed.current().revision
        routes = GaugeMetricFamily("tidegate_topology_revision", "Revision of the routes.")
        routes.add_metric([], float(revision))
        behind = GaugeMetricFamily(
            "tidegate_router_behind", "Revisions a router is behind.", labels=["router"]
        )
        for router in self._services.routers.heard().routers:
            behind.add_metric([router.name], float(max(0, revision - router.revision)))
        yield from (up, held, failures, ends, routes, behind)
        yield from self._slots()
        yield from self._workflows.collect()

    def _slots(self) -> Iterator[Metric]:
        """As the slots were seen last, half a minute ago at most."""
        labels = ["workflow", "source", "slot"]
        retained = GaugeMetricFamily(
            "tidegate_slot_retained_bytes", "Log the source keeps for the slot.", labels=labels
        )
        limit = GaugeMetricFamily(
            "tidegate_slot_limit_bytes", "So much log is an alarm, where known.", labels=labels
        )
        alarm = GaugeMetricFamily(
            "tidegate_slot_alarm", "The log kept has reached its limit.", labels=labels
        )
        for each in self._services.slots.observed():
            place = [each.workflow, each.slot.source, each.slot.slot]
            retained.add_metric(place, float(each.slot.retained_bytes))
            alarm.add_metric(place, float(bool(each.slot.alarm)))
            if each.slot.limit_bytes is not None:
                limit.add_metric(place, float(each.slot.limit_bytes))
        yield from (retained, limit, alarm)
