"""Watches the log that sources keep for every slot, whether a worker runs for it or not.

Decides when to look, and what becomes an event: an alarm begins, is repeated while it lasts, and
ends. A worker watches its own slot and stops in time (:mod:`tidegate.dataplane.retention`); a
stream that a person has stopped, that failed, or whose worker is refused has none, and its slot
keeps log all the same. It must not touch a slot: the log is what the stream needs to go on, so
whoever reads the alarm starts the workflow, makes room, or cancels it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import psycopg
import structlog

from tidegate.errors import TidegateError
from tidegate.topology.refusals import Refusals
from tidegate.workflow.sessions import Sessions, endpoints_of
from tidegate.workflow.status import slot_places, slot_statuses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tidegate.engines.postgres.capacity import Disk
    from tidegate.topology.store import TopologyStore
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.status import SlotStatus
    from tidegate.workflow.store import WorkflowStore

WATCH_S: Final = 30.0
UNWANTED_S: Final = 1.0
"""Between two questions whether this node is the one to look."""
REPEAT_S: Final = 600.0
"""An alarm that lasts is said again so often."""

NEXT_STEP: Final = (
    "start the workflow so that its streams catch up, with a larger --log-budget if that is the"
    " bound; or make room at the source; or cancel the workflow, which drops the slot"
)

log = structlog.get_logger("tidegate.slots")


@dataclass(frozen=True, slots=True)
class Observed:
    """One slot of a workflow as it was seen last."""

    workflow: str
    slot: SlotStatus

    def to_json(self) -> dict[str, Any]:
        """As the doctor shows it."""
        return {"workflow": self.workflow, **asdict(self.slot)}


@dataclass(frozen=True, slots=True)
class News:
    """What is worth saying about a slot: ``begins``, ``lasts`` or ``ends``."""

    what: str
    slot: str


def news(
    said_at: Mapping[str, float], alarms: Iterable[str], now: float, repeat_s: float = REPEAT_S
) -> tuple[list[News], dict[str, float]]:
    """What to say of the alarms there are now, and when each was said last.

    Args:
        said_at: by slot, when its alarm was said last.
        alarms: the slots that have an alarm now.
        now: in the clock of ``said_at``.
        repeat_s: how often an alarm that lasts is said.
    """
    present = sorted(set(alarms))
    found = [News("ends", slot) for slot in sorted(said_at) if slot not in present]
    then = {slot: at for slot, at in said_at.items() if slot in present}
    for slot in present:
        if slot not in then:
            found.append(News("begins", slot))
        elif now - then[slot] >= repeat_s:
            found.append(News("lasts", slot))
        else:
            continue
        then[slot] = now
    return found, then


class SlotWatch:
    """Looks again and again; started once, closed any number of times."""

    def __init__(
        self,
        topology: TopologyStore,
        records: WorkflowStore,
        *,
        is_wanted: Callable[[], bool] = lambda: True,
        interval_s: float = WATCH_S,
    ) -> None:
        """Nothing happens yet.

        Args:
            topology: where databases are.
            records: the workflows.
            is_wanted: whether this node is the one to look.
            interval_s: between two looks.
        """
        self._topology, self._records = topology, records
        self._is_wanted, self._interval_s = is_wanted, interval_s
        self._refusals = Refusals()
        self._seen: dict[str, dict[str, Observed]] = {}
        self._said_at: dict[str, float] = {}
        self._disks: dict[str, Disk] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="slot-watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def is_wanted(self) -> bool:
        """Whether this node is the one to look."""
        return self._is_wanted()

    def observed(self) -> list[Observed]:
        """Every slot as it was seen last, by name."""
        found = [each for slots in list(self._seen.values()) for each in slots.values()]
        return sorted(found, key=lambda each: each.slot.slot)

    def alarms(self, workflow_uuid: str) -> list[str]:
        """The alarms of a workflow, a sentence each."""
        slots = self._seen.get(workflow_uuid, {}).values()
        return [f"{s.slot.source}: {s.slot.alarm}" for s in slots if s.slot.alarm]

    def look(self) -> None:
        """Look once at every slot of every workflow; what cannot be seen stays as it was."""
        seen: dict[str, dict[str, Observed]] = {}
        workflows = self._records.all()
        if not workflows:
            self._seen = seen
            self._say({})
            return
        snapshot = self._topology.read()
        endpoints = {w.uuid: endpoints_of(snapshot, w) for w in workflows}
        failed: dict[str, Exception] = {}
        looked: dict[tuple[str, str], list[Workflow]] = {}
        for workflow in workflows:
            if not self._refusals.allow(workflow.uuid, endpoints[workflow.uuid]):
                seen[workflow.uuid] = self._seen.get(workflow.uuid, {})
                continue
            seen[workflow.uuid] = {}
            for place in slot_places(workflow):
                looked.setdefault(place, []).append(workflow)
        with Sessions(snapshot, purpose="slots") as sessions:
            for place, users in looked.items():
                if self._closing.is_set():
                    return
                found, errors = self._slots_at(place, users, sessions)
                failed |= errors
                for uuid, slots in found.items():
                    seen[uuid] |= slots
        for uuid in {workflow.uuid for users in looked.values() for workflow in users}:
            self._refusals.note(uuid, endpoints[uuid], failed.get(uuid))
        self._seen = seen
        names = {name for slots in seen.values() for name in slots}
        self._disks = {name: disk for name, disk in self._disks.items() if name in names}
        self._say({each.slot.slot: each for each in self.observed()})

    def _slots_at(
        self, place: tuple[str, str], workflows: Sequence[Workflow], sessions: Sessions
    ) -> tuple[dict[str, dict[str, Observed]], dict[str, Exception]]:
        """The slots of workflows at one shard, by workflow, and why some could not be seen.

        All in one transaction: an idle shard is asked as little as possible.
        """
        found: dict[str, dict[str, Observed]] = {}
        failed: dict[str, Exception] = {}
        keyspace, shard = place
        try:
            session = sessions.get(keyspace, shard)
            with session.transaction():
                for workflow in workflows:
                    try:
                        with session.transaction():
                            slots = slot_statuses(
                                session, workflow, keyspace, shard, room=True, disks=self._disks
                            )
                    except (TidegateError, psycopg.Error) as error:
                        failed[workflow.uuid] = error
                    else:
                        found[workflow.uuid] = {
                            slot.slot: Observed(workflow.key, slot) for slot in slots
                        }
        except (TidegateError, psycopg.Error) as error:
            failed |= {workflow.uuid: error for workflow in workflows}
        for uuid in failed:
            before = self._seen.get(uuid, {})
            at = f"{keyspace}/{shard}"
            found[uuid] = {name: each for name, each in before.items() if each.slot.source == at}
        return found, failed

    def _say(self, slots: Mapping[str, Observed]) -> None:
        alarms = [name for name, each in slots.items() if each.slot.alarm]
        found, self._said_at = news(self._said_at, alarms, time.monotonic())
        for each in found:
            known = slots.get(each.slot)
            if each.what == "ends" or known is None:
                log.info("log retention alarm ended", slot=each.slot)
                continue
            log.error(
                "log retention alarm",
                slot=each.slot,
                workflow=known.workflow,
                source=known.slot.source,
                alarm=known.slot.alarm,
                retained_bytes=known.slot.retained_bytes,
                limit_bytes=known.slot.limit_bytes,
                active=known.slot.active,
                next_step=NEXT_STEP,
            )

    def _watch(self) -> None:
        while not self._closing.is_set():
            wanted = self._is_wanted()
            try:
                if wanted:
                    self.look()
                else:
                    self._seen, self._said_at = {}, {}
            except Exception:
                # A look that fails must not be the last one.
                log.exception("slots could not be watched")
            self._closing.wait(self._interval_s if wanted else UNWANTED_S)
