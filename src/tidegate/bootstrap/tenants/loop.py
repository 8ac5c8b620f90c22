"""Works on one run: observe, decide, persist, act, until it is over or somebody else's.

Decides nothing itself: :mod:`.waves` says what comes next, :mod:`.outcomes` what an outcome means.
The loop holds the run's lease, and everything it writes proves it. What it has in memory is what it
last wrote; when a person's verb has changed the run, it is read again.

A tenant's version is stored after the tenant's commit, many at once. Whoever takes up a run after a
crash finds items in the state *running*: these are tried again, and the look into the tenant, under
its lock, says what was committed.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

from tidegate import steps
from tidegate.bootstrap.tenants import waves
from tidegate.bootstrap.tenants.crew import Crew
from tidegate.bootstrap.tenants.model import Item, ItemState, Run, RunState, Wish
from tidegate.bootstrap.tenants.outcomes import Outcome, Result, Verdict, judge
from tidegate.bootstrap.tenants.runs import Progress
from tidegate.cluster.keeper import LeaseKeeper
from tidegate.errors import ClusterDatabaseBusyError, ConflictError, LeaseLostError, TidegateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from tidegate.bootstrap.tenants.hands import Hand, Job
    from tidegate.bootstrap.tenants.runs import RunStore
    from tidegate.bootstrap.tenants.store import Complete
    from tidegate.cluster.leases import Leases

LEASE_TTL_S: Final = 10.0
IDLE_S: Final = 0.25
"""How often a person's wish is looked for while nothing happens."""
BUSY_S: Final = 0.05
"""How long outcomes are gathered before they are written."""
WRITE_ATTEMPTS: Final = 5
SWEEPS_MAX: Final = 5
"""How often tenants are looked for that were registered while the run went on."""

CLAIMED = steps.declare(
    "tenant.items.claimed",
    runs_in="node",
    plan="tenant",
    description="tenants of a run are marked as being worked on; none of them was begun",
)
STORED = steps.declare(
    "tenant.outcomes.stored",
    runs_in="node",
    plan="tenant",
    description="outcomes and versions of some tenants are in the cluster database",
)
WAVE_OPENED = steps.declare(
    "tenant.wave.opened",
    runs_in="node",
    plan="tenant",
    description="a wave is over and the next one may begin",
)
SWEPT = steps.declare(
    "tenant.run.swept",
    runs_in="node",
    plan="tenant",
    description="tenants that were registered during a run were added to it as a last wave",
)
ENDED = steps.declare(
    "tenant.run.ended",
    runs_in="node",
    plan="tenant",
    description="a run is over, stopped, paused or cancelled, and nobody works on it",
)


class Ground(Protocol):
    """What the loop needs to know of the world, as the service gives it."""

    backlog: int
    """Jobs that may wait for each thread."""

    def make_hand(self) -> Hand:
        """A hand for one thread."""

    def jobs(self, ids: Sequence[str]) -> dict[str, Job | Outcome]:
        """The tenants as they are registered now; an outcome for one that cannot be begun."""

    def late(self, known: set[str]) -> list[Item]:
        """Tenants that belong to the run by now, are behind, and are not known to it."""

    def complete(self, tenants: Iterable[str]) -> Complete:
        """Tenants that have everything up to the target."""

    def hash_of(self, version: str) -> str:
        """The hash of a version's text; empty when its source has none."""


class RunLoop:
    """One run, worked on by this process.

    Args:
        runs: the store.
        leases: of the same database.
        run_id: which run.
        holder: this process's name among all that hold leases.
        ground: the world.
        chance: between 0 and 1, anew at each call.
        closing: set when the process ends; the run stays to be taken up.
    """

    def __init__(
        self,
        runs: RunStore,
        leases: Leases,
        run_id: int,
        *,
        holder: str,
        ground: Callable[[Run], Ground],
        chance: Callable[[], float],
        closing: threading.Event,
    ) -> None:
        self._runs = runs
        self._leases = leases
        self._run_id = run_id
        self._holder = holder
        self._make_ground = ground
        self._chance = chance
        self._closing = closing
        self._lock = threading.Lock()
        self._failed = 0
        self._noticed: set[str] = set()
        self._sweeps = 0

    def work(self) -> Run:
        """Work until the run needs nobody any more; the run as it is then.

        Raises:
            ConflictError: somebody else works on it.
            LeaseLostError: somebody else took it over; nothing more was written.
        """
        with LeaseKeeper(
            self._leases, f"tenant-run/{self._run_id}", self._holder, LEASE_TTL_S
        ) as self._keeper:
            self._reload()
            if self._run.state is not RunState.RUNNING:
                return self._run
            self._take_up()
            try:
                self._ground = self._make_ground(self._run)
            except TidegateError as error:
                return self._end(RunState.STOPPED, error.message)
            with Crew(
                self._run.options.jobs,
                self._ground.make_hand,
                self._notice,
                backlog=self._ground.backlog,
            ) as self._crew:
                while self._run.state is RunState.RUNNING and self._step():
                    pass
            return self._run

    def _reload(self) -> None:
        self._run = self._runs.get(self._run_id)
        self._items = {item.tenant_id: item for item in self._runs.items(self._run_id)}
        self._sort()

    def _sort(self) -> None:
        """Note the items of the wave that is worked on, and what failed in it and before."""
        wave = self._run.wave
        self._current = [item.tenant_id for item in self._items.values() if item.wave == wave]
        failed = [i.wave for i in self._items.values() if i.state is ItemState.FAILED]
        self._failed_before = sum(1 for each in failed if each < wave)
        with self._lock:
            self._failed = sum(1 for each in failed if each == wave)

    def _take_up(self) -> None:
        """What somebody worked on who is no more is to be looked at again."""
        left = [i for i in self._items.values() if i.state is ItemState.RUNNING]
        self._write([(i, replace(i, state=ItemState.PENDING, next_at=None)) for i in left])

    def _step(self) -> bool:
        """One turn; False when the process ends."""
        if self._closing.is_set():
            self._crew.halt.set()
        self._settle(self._crew.collect(self._pause_s()))
        if self._keeper.is_lost:
            raise LeaseLostError(f"run {self._run_id} is somebody else's now")
        if self._closing.is_set():
            return self._crew.in_flight > 0
        version, self._now = self._runs.observe(self._run_id)
        if version != self._run.version:
            self._reload()
        self._follow_wish()
        self._act(waves.decide(self._view(), self._now, self._crew.free))
        return True

    def _follow_wish(self) -> None:
        with self._lock:
            stops = self._too_many()
        if stops or self._run.wish is not Wish.NONE:
            self._crew.halt.set()
        else:
            self._crew.halt.clear()

    def _pause_s(self) -> float:
        if self._crew.in_flight:
            return BUSY_S if self._crew.free < self._crew.capacity // 2 else IDLE_S
        wait = self._until - self._now if self._until is not None else timedelta(0)
        return min(IDLE_S, max(0.0, wait.total_seconds()))

    def _view(self) -> waves.View:
        run = self._run
        return waves.View(
            wave=run.wave,
            waves=run.waves,
            items=tuple(self._items[each] for each in self._current),
            failed_before=self._failed_before,
            opens_at=run.wave_opens_at,
            max_failures=run.options.max_failures,
            forgiven=run.forgiven,
            pause=timedelta(seconds=run.options.pause_s),
            wish=run.wish,
        )

    def _act(self, decision: waves.Decision) -> None:
        self._until = None
        match decision:
            case waves.Start(ids):
                self._start(ids)
            case waves.Wait(until):
                self._until = until or self._now + timedelta(seconds=IDLE_S)
            case waves.OpenWave(wave, opens_at):
                self._swap(replace(self._run, wave=wave, wave_opens_at=opens_at, forgiven=0))
                steps.reached(WAVE_OPENED)
            case waves.Stop(message):
                self._end(RunState.STOPPED, message)
            case waves.Obey(Wish.CANCEL):
                self._end(RunState.CANCELLED, "cancelled by a person")
            case waves.Obey():
                self._end(RunState.PAUSED, "paused by a person")
            case waves.Finish(failed):
                self._finish(failed)

    def _start(self, ids: Sequence[str]) -> None:
        found = self._ground.jobs(ids)
        begun = []
        for tenant_id in ids:
            item, job = self._items[tenant_id], found[tenant_id]
            name = item.name if isinstance(job, Outcome) else job.name
            state = ItemState.RUNNING
            begun.append((item, replace(item, state=state, attempts=item.attempts + 1, name=name)))
        if not self._write(begun):
            return
        steps.reached(CLAIMED)
        self._crew.put([job for job in found.values() if not isinstance(job, Outcome)])
        ended = {each: job for each, job in found.items() if isinstance(job, Outcome)}
        self._settle_items([(self._items[each], outcome) for each, outcome in ended.items()])

    def _notice(self, job: Job, outcome: Outcome) -> None:
        """In a thread of the crew: halt it at once when this failure is one too many."""
        item = self._items[job.tenant_id]
        if self._judge(item, outcome).state is ItemState.FAILED:
            with self._lock:
                self._noticed.add(job.tenant_id)
                if self._too_many():
                    self._crew.halt.set()

    def _too_many(self) -> bool:
        """Whether failures stop the wave: those that were written, and those only noticed yet."""
        counted = self._failed + len(self._noticed) - self._run.forgiven
        return counted >= self._run.options.max_failures

    def _judge(self, item: Item, outcome: Outcome) -> Verdict:
        retries = self._run.options.retries
        return judge(outcome, item.attempts, retries, self._now, self._chance())

    def _settle(self, ended: Sequence[tuple[Job, Outcome]]) -> None:
        self._settle_items([(self._items[job.tenant_id], outcome) for job, outcome in ended])

    def _settle_items(self, ended: Sequence[tuple[Item, Outcome]]) -> None:
        """Write what outcomes mean."""
        if not ended:
            return
        changes: list[tuple[Item, Item]] = []
        versions: dict[str, str] = {}
        hashes: dict[str, str] = {}
        for item, outcome in ended:
            changes.append((item, self._after(item, outcome)))
            if outcome.to_version:
                versions[item.tenant_id] = outcome.to_version
            hashes |= {each: self._ground.hash_of(each) for each in outcome.applied}
        done = [item.tenant_id for item, outcome in ended if outcome.result is Result.DONE]
        complete = self._ground.complete(done)
        known = {version: sha256 for version, sha256 in hashes.items() if sha256}
        if not self._write(changes, versions, known, complete):
            # Nobody but the lease's holder changes what is being worked on. Begin again from rows.
            raise ConflictError(
                f"outcomes of run {self._run_id} could not be written",
                next_step="it is begun again",
            )
        steps.reached(STORED)
        with self._lock:
            self._noticed -= {before.tenant_id for before, _ in changes}
            wave = self._run.wave
            self._failed += sum(
                1 for _, each in changes if each.state is ItemState.FAILED and each.wave == wave
            )

    def _after(self, item: Item, outcome: Outcome) -> Item:
        verdict = self._judge(item, outcome)
        if outcome.result is Result.UNTOUCHED:
            return replace(item, state=ItemState.PENDING, attempts=item.attempts - 1)
        return replace(
            item,
            state=verdict.state,
            next_at=verdict.next_at,
            from_version=outcome.from_version or item.from_version,
            to_version=outcome.to_version or item.to_version,
            reason=verdict.reason,
            message=outcome.message,
            took_ms=item.took_ms + outcome.took_ms,
        )

    def _write(
        self,
        changes: Sequence[tuple[Item, Item]],
        versions: dict[str, str] | None = None,
        hashes: dict[str, str] | None = None,
        complete: Complete | None = None,
    ) -> bool:
        """Write changed items; False when somebody changed one of them, and all were read again."""
        step = Progress(
            tuple((before.state, after) for before, after in changes), versions, hashes, complete
        )
        for attempt in range(WRITE_ATTEMPTS):
            try:
                self._now = self._runs.progress(self._run, self._keeper.lease, step)
                break
            except LeaseLostError:
                raise
            except (ConflictError, ClusterDatabaseBusyError) as error:
                if attempt + 1 < WRITE_ATTEMPTS:
                    continue
                if isinstance(error, ConflictError):
                    self._reload()
                    return False
                raise
        for _, after in changes:
            self._items[after.tenant_id] = after
        return True

    def _swap(self, after: Run, *, added: Sequence[Item] = ()) -> bool:
        """Write the run's row; False when a person's verb was quicker, and it was read again."""
        try:
            self._run = self._runs.swap(self._run, after, lease=self._keeper.lease, added=added)
        except LeaseLostError:
            raise
        except ConflictError:
            self._reload()
            return False
        self._items |= {item.tenant_id: item for item in added}
        self._sort()
        return True

    def _end(self, state: RunState, message: str) -> Run:
        if self._swap(replace(self._run, state=state, message=message, wish=Wish.NONE)):
            steps.reached(ENDED)
        return self._run

    def _finish(self, failed: int) -> None:
        late = self._ground.late(set(self._items)) if self._sweeps < SWEEPS_MAX else []
        if late:
            self._sweeps += 1
            wave = self._run.waves
            added = [replace(item, wave=wave, ordinal=n) for n, item in enumerate(late)]
            if self._swap(replace(self._run, waves=wave + 1), added=added):
                steps.reached(SWEPT)
            return
        if failed:
            total = f"{failed} of {len(self._items)} tenants failed"
            self._end(RunState.PARTLY_FAILED, total)
        else:
            self._end(RunState.DONE, "")

    _run: Run
    _items: dict[str, Item]
    _current: list[str]
    _failed_before: int
    _crew: Crew
    _ground: Ground
    _keeper: LeaseKeeper
    _now: datetime
    _until: datetime | None = None
