"""How often, how many, how long: the limits of an owner's scheduling, in ticks and counts."""

from __future__ import annotations

from dataclasses import dataclass

from tidegate.scheduling.captures import COLLECT_STATS_TICKS, HEARTBEAT_TICKS
from tidegate.scheduling.orders import RESEND_TICKS
from tidegate.scheduling.placement import MAX_TASK_CONCURRENCY
from tidegate.scheduling.schedulers import ADD_BATCH, BALANCE_INTERVAL_MS, DRAIN_BATCH


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Of one owner.

    Attributes:
        settle_ticks: no balancing for so long after a capture came or went.
        quiet_ticks: a capture that has not answered for so long is given no span.
        silent_ticks: a capture that has not answered for so long is cut off.
        retry_ticks: pause before a span that could not begin is given to that capture again.
        retry_max_ticks: the longest such pause.
    """

    heartbeat_ticks: int = HEARTBEAT_TICKS
    collect_stats_ticks: int = COLLECT_STATS_TICKS
    add_batch: int = ADD_BATCH
    drain_batch: int = DRAIN_BATCH
    max_task_concurrency: int = MAX_TASK_CONCURRENCY
    balance_interval_ms: int = BALANCE_INTERVAL_MS
    resend_ticks: int = RESEND_TICKS
    settle_ticks: int = 200
    quiet_ticks: int = 40
    silent_ticks: int = 200
    retry_ticks: int = 20
    retry_max_ticks: int = 1200


DEFAULTS = Settings()
