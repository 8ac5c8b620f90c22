"""What a run looks like to people and programs: counts by wave, failures, the slowest tenants."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from tidegate.bootstrap.tenants.model import ItemState

if TYPE_CHECKING:
    from tidegate.bootstrap.tenants.model import Item, Run
    from tidegate.bootstrap.tenants.runs import RunStore

FAILED_SHOWN: Final = 50
RETRYING_SHOWN: Final = 20
MISSING_SHOWN: Final = 20
SLOWEST_SHOWN: Final = 5


def brief(run: Run) -> dict[str, Any]:
    """A run without its tenants."""
    return {
        "id": run.id,
        "source": run.source.name,
        "target": run.target,
        "state": run.state.value,
        "wish": run.wish.value,
        "message": run.message,
        "wave": run.wave + 1,
        "wave_opens_at": run.wave_opens_at,
        "at_target": run.at_target,
        "created_at": run.created_at,
        "ended_at": run.ended_at,
    }


def report(runs: RunStore, run: Run) -> dict[str, Any]:
    """A run with what matters of its tenants; all of them are a question of their own."""
    counted = runs.counts(run.id)
    waves = [
        {
            "wave": wave + 1,
            **{state.value: counted.get((wave, state), 0) for state in ItemState},
        }
        for wave in range(run.waves)
    ]
    totals = {
        state.value: sum(n for (_, each), n in counted.items() if each is state)
        for state in ItemState
    }
    failed = runs.some_items(run.id, ItemState.FAILED, limit=FAILED_SHOWN)
    retrying = runs.some_items(run.id, ItemState.PENDING, limit=RETRYING_SHOWN, with_reason=True)
    skipped = runs.some_items(run.id, ItemState.SKIPPED, limit=MISSING_SHOWN)
    slowest = runs.some_items(run.id, ItemState.DONE, limit=SLOWEST_SHOWN, slowest=True)
    return {
        **brief(run),
        "options": asdict(run.options),
        "selection": dict(run.selection),
        "total": sum(totals.values()),
        "counts": totals,
        "waves": waves,
        "failed": [shown(item) for item in failed],
        "retrying": [shown(item) for item in retrying],
        "skipped": [shown(item) for item in skipped],
        "slowest": [shown(item) for item in slowest],
    }


def shown(item: Item) -> dict[str, Any]:
    """One tenant of a run."""
    return {
        "tenant": item.name,
        "wave": item.wave + 1,
        "state": item.state.value,
        "attempts": item.attempts,
        "next_at": item.next_at,
        "from_version": item.from_version,
        "to_version": item.to_version,
        "code": item.reason,
        "message": item.message,
        "took_ms": round(item.took_ms, 1),
    }
