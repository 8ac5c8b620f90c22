"""Whether the routers follow: tested before writers are refused, shown after traffic has moved.

Decides which routers keep a switch from going on, and how long they are waited for. It must not
touch traffic. Before the fence a router that does not answer, or serves old routes, would meet the
fence and wait behind it for nothing, so the switch does not begin. Afterwards nobody is waited for
to any effect: the fence keeps a late router harmless.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import structlog

from tidegate.errors import RoutersBehindError, TidegateError

if TYPE_CHECKING:
    from tidegate.topology.followers import Heard, RouterReport, RouterReports
    from tidegate.workflow.work import Work

ANSWER_WAIT_S: Final = 2.0
"""How long routers may take to reach the routes of now, before anything is changed."""
FOLLOW_WAIT_S: Final = 1.0
"""How long they are watched after traffic has moved."""
POLL_S: Final = 0.02

TEST_LINE: Final = "test that every router answers and serves the routes of now"

log = structlog.get_logger("tidegate.workflow")


def require_answering(
    reports: RouterReports, revision: int, wait_s: float = ANSWER_WAIT_S
) -> Heard:
    """Every router that was heard lately answers, and serves the topology at ``revision``.

    Raises:
        RoutersBehindError: naming those that do not.
        ClusterDatabaseError: the reports cannot be read.
    """
    deadline = time.monotonic() + wait_s
    while True:
        heard = reports.heard()
        missing = heard.missing(revision)
        if not missing:
            return heard
        if time.monotonic() >= deadline:
            raise _behind(missing, revision, heard.now_ms)
        time.sleep(POLL_S)


def _behind(missing: tuple[RouterReport, ...], revision: int, now_ms: int) -> RoutersBehindError:
    named = ", ".join(
        f"{each.name} (silent for {each.age_s(now_ms):.0f} s)"
        if each.is_late(now_ms)
        else f"{each.name} (serves revision {each.revision} of {revision})"
        for each in missing
    )
    return RoutersBehindError(
        f"routers do not follow the routes: {named}; writes were not switched",
        routers=[each.to_json(revision, now_ms) for each in missing],
        revision=revision,
    )


def followed(work: Work, wait_s: float = FOLLOW_WAIT_S) -> list[dict[str, Any]]:
    """Who serves the routes that this piece of work made, and after how long; never fails.

    Waits for those that answer, and no longer than ``wait_s`` after the routes were changed.
    """
    if work.routed_at is None:
        return []
    deadline = work.routed_at.monotonic_s + wait_s
    revision = work.routed_at.revision
    try:
        while True:
            heard = work.cluster.routers.heard()
            waiting = [r for r in heard.missing(revision) if not r.is_late(heard.now_ms)]
            if not waiting or time.monotonic() >= deadline:
                break
            time.sleep(POLL_S)
    except TidegateError as error:
        log.warning("workflow.routers_not_seen", workflow=work.workflow.key, error=str(error))
        return []
    return [_shown(each, revision, work.routed_at.at_ms) for each in heard.routers]


def _shown(report: RouterReport, revision: int, routed_ms: int) -> dict[str, Any]:
    follows = report.revision >= revision
    return {
        "router": report.name,
        "revision": report.revision,
        "follows": follows,
        "followed_after_ms": max(0, report.since_ms - routed_ms) if follows else None,
    }
