"""Which tenants come next: waves, and the gate between them.

A run is cut into *waves* before it begins: perhaps a canary of a few, then batches. Everything in
here is a pure function of values; :func:`decide` is asked again and again and answers with what to
do now. The rules:

* A tenant begins when its wave is worked on, a place is free, and its time has come.
* A wave is a gate: the next one opens when all of its tenants are over, and the pause has passed.
* ``max_failures`` failed tenants in one wave stop the run; so does a wave in which tenants failed
  and not one could be upgraded. The rest stays untouched, and a person decides.
* Failures that a person has seen (``forgiven``) do not stop the run a second time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tidegate.bootstrap.tenants.model import ItemState, Wish
from tidegate.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime, timedelta

    from tidegate.bootstrap.tenants.model import Item

CANARY: Final = "canary:"
ALL: Final = "all"
WAVES_MAX: Final = 100_000


@dataclass(frozen=True, slots=True)
class Share:
    """So many tenants: a count, a percentage of all, or those with these names."""

    count: int | None = None
    percent: float | None = None
    names: tuple[str, ...] = ()

    def of(self, total: int) -> int:
        """How many of ``total`` that is; a percentage is at least one."""
        if self.percent is not None:
            return min(total, max(1, math.ceil(total * self.percent / 100)))
        return min(total, self.count if self.count is not None else len(self.names))


@dataclass(frozen=True, slots=True)
class WaveSpec:
    """How a run is cut: the first wave, if it is another, and the size of the others."""

    first: Share | None = None
    then: Share | None = None
    """None: all that are left make one wave."""


def parse_share(text: str, *, allow_names: bool) -> Share | None:
    """Read ``5``, ``10%``, ``all``, or names with commas where those are allowed.

    Raises:
        InvalidArgumentError: it is none of these.
    """
    given = text.strip()
    if given == ALL:
        return None
    number = given.removesuffix("%").strip()
    if number.isascii() and number.isdigit() and len(number) < 19 and not given.endswith("%"):
        if int(number) > 0:
            return Share(count=int(number))
    elif given.endswith("%") and number.replace(".", "", 1).isdigit() and number.isascii():
        if 0 < float(number) <= 100:
            return Share(percent=float(number))
    elif allow_names and given and not given.endswith("%"):
        names = tuple(dict.fromkeys(n.strip() for n in given.split(",") if n.strip()))
        if names:
            return Share(names=names)
    forms = "5, 10%, all" + (", or names with commas" if allow_names else "")
    raise InvalidArgumentError(f"{text!r} is no size of a wave", next_step=f"write {forms}")


def parse_waves(wave: str | None, then: str | None) -> WaveSpec:
    """Read ``--wave`` (``canary:5``, ``canary:10%``, ``canary:acme,globex``) and ``--then``.

    Raises:
        InvalidArgumentError: one of them is none.
    """
    first = None
    if wave is not None:
        first = parse_share(wave.removeprefix(CANARY), allow_names=wave.startswith(CANARY))
    rest = parse_share(then, allow_names=False) if then is not None else None
    return WaveSpec(first, rest)


def plan_waves(names: Sequence[str], spec: WaveSpec) -> tuple[tuple[str, ...], ...]:
    """Cut tenants into waves: each is in exactly one, in the given order but for named ones.

    Raises:
        InvalidArgumentError: a named canary is not among them.
    """
    left = list(names)
    waves: list[tuple[str, ...]] = []
    if spec.first is not None and left:
        strangers = sorted(set(spec.first.names) - set(left))
        if strangers:
            raise InvalidArgumentError(
                f"the canary {', '.join(strangers)} is not among the tenants of the run",
                next_step="name tenants that need the upgrade: tidegate tenant list",
            )
        first = spec.first.names or tuple(left[: spec.first.of(len(left))])
        chosen = set(first)
        waves.append(first)
        left = [name for name in left if name not in chosen]
    size = len(left) if spec.then is None else spec.then.of(len(names))
    while left:
        waves.append(tuple(left[: max(1, size)]))
        left = left[max(1, size) :]
    assert len(waves) <= WAVES_MAX
    return tuple(waves)


@dataclass(frozen=True, slots=True)
class Start:
    """Begin with these tenants now."""

    tenant_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """There is nothing to begin: outcomes are awaited, or a time."""

    until: datetime | None


@dataclass(frozen=True, slots=True)
class OpenWave:
    """The wave before is over: go to this one, whose tenants may begin at that time."""

    wave: int
    opens_at: datetime


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop: too many failed."""

    message: str


@dataclass(frozen=True, slots=True)
class Obey:
    """Nobody is at work any more: do what was wished."""

    wish: Wish


@dataclass(frozen=True, slots=True)
class Finish:
    """All waves are over."""

    failed: int


type Decision = Start | Wait | OpenWave | Stop | Obey | Finish


@dataclass(frozen=True, slots=True)
class View:
    """What a decision is made of: the run, and the items of the wave that is worked on."""

    wave: int
    waves: int
    items: tuple[Item, ...]
    """Of this wave only."""
    failed_before: int
    """Failed tenants of earlier waves."""
    opens_at: datetime | None
    max_failures: int
    forgiven: int
    pause: timedelta
    wish: Wish


def count(items: Iterable[Item]) -> Mapping[ItemState, int]:
    """How many items are in each state."""
    found = dict.fromkeys(ItemState, 0)
    for item in items:
        found[item.state] += 1
    return found


def must_stop(failed: int, done: int, *, over: bool, max_failures: int, forgiven: int) -> bool:
    """Whether the failures of a wave stop the run.

    Args:
        failed: tenants of the wave that failed.
        done: tenants of the wave that were upgraded.
        over: nothing of the wave is left to do.
        max_failures: so many stop it.
        forgiven: failures that stop nothing.
    """
    counted = failed - forgiven
    return counted >= max_failures or (counted > 0 and over and not done)


def decide(view: View, now: datetime, free: int) -> Decision:
    """What to do now, with so many free places."""
    counts = count(view.items)
    running, pending = counts[ItemState.RUNNING], counts[ItemState.PENDING]
    failed, done = counts[ItemState.FAILED], counts[ItemState.DONE]
    is_over = not running and not pending
    stops = must_stop(
        failed, done, over=is_over, max_failures=view.max_failures, forgiven=view.forgiven
    )
    if running and (stops or view.wish is not Wish.NONE):
        return Wait(None)
    if view.wish is not Wish.NONE:
        return Obey(view.wish)
    if stops:
        return Stop(_why(view.wave, failed - view.forgiven, done))
    if is_over:
        return _after(view, now, failed)
    if view.opens_at is not None and now < view.opens_at:
        return Wait(view.opens_at)
    return _next(view.items, now, free)


def _after(view: View, now: datetime, failed: int) -> OpenWave | Finish:
    if view.wave + 1 >= view.waves:
        return Finish(view.failed_before + failed)
    return OpenWave(view.wave + 1, now + view.pause if view.items else now)


def _next(items: Sequence[Item], now: datetime, free: int) -> Start | Wait:
    pending = [item for item in items if item.state is ItemState.PENDING]
    ready = [item for item in pending if item.next_at is None or item.next_at <= now]
    if ready and free > 0:
        # Those that were not tried yet come first, so that one that fails holds up no other.
        ready.sort(key=lambda item: (item.attempts, item.ordinal))
        return Start(tuple(item.tenant_id for item in ready[:free]))
    if ready:
        return Wait(None)
    return Wait(min((item.next_at for item in pending if item.next_at), default=None))


def _why(wave: int, failed: int, done: int) -> str:
    tenants = "1 tenant" if failed == 1 else f"{failed} tenants"
    none = "" if done else ", and none could be upgraded"
    return f"{tenants} failed in wave {wave + 1}{none}"
