"""How a run of tenant upgrades is shown, and which exit status it ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tidegate.cli.output import Column, Json, duration, table_text
from tidegate.errors import CancelledError, ExitStatus, TidegateError

if TYPE_CHECKING:
    from tidegate.cli.common import Common


class TenantsFailedError(TidegateError):
    """Of several tenants some could not be upgraded; the others were, or wait."""

    code = "TG-TEN-001"
    exit_status = ExitStatus.PARTLY_FAILED


STATES: Final = ("pending", "running", "done", "failed", "skipped")
OVER: Final = frozenset({"paused", "stopped", "done", "partly_failed", "cancelled"})

RUN_COLUMNS: Final = (
    Column("RUN", "id"),
    Column("SOURCE", "source"),
    Column("TARGET", "target"),
    Column("STATE", "state"),
    Column("STARTED", "created_at"),
    Column("ENDED", "ended_at"),
    Column("MESSAGE", "message", wide=True),
)
WAVE_COLUMNS: Final = (
    Column("WAVE", "wave"),
    *(Column(state.upper(), state) for state in STATES),
)
ITEM_COLUMNS: Final = (
    Column("TENANT", "tenant"),
    Column("WAVE", "wave"),
    Column("STATE", "state"),
    Column("FROM", "from_version"),
    Column("TO", "to_version"),
    Column("ATTEMPTS", "attempts"),
    Column("TOOK", lambda item: duration(item["took_ms"] / 1000) if item["took_ms"] else "-"),
    Column("CODE", "code"),
    Column("MESSAGE", "message", wide=True),
)
WAVES_SHOWN: Final = 12


def percent(counts: Json) -> float:
    """How much of a wave, or of all, is over."""
    total = sum(counts[state] for state in STATES)
    over = total - counts["pending"] - counts["running"]
    return 100.0 * over / total if total else 100.0


def notes(counts: Json) -> str:
    """The counts that are not zero, in words."""
    shown = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    return ", ".join(shown) or "nothing to do"


def emit(common: Common, run: Json) -> None:
    """Print a run with its report."""
    rows: list[tuple[str, Any]] = [
        ("run", run["id"]),
        ("source", run["source"]),
        ("target", run["target"]),
        ("state", f"{run['state']} ({run['wish']} asked for)" if run["wish"] else run["state"]),
        ("message", run["message"]),
        ("wave", f"{run['wave']} of {len(run['waves'])}"),
        ("tenants", notes(run["counts"])),
        ("at target before", run["at_target"]),
        ("started", run["created_at"]),
        ("ended", run["ended_at"]),
    ]
    common.one(run, rows, str(run["id"]), more=details(run))


def details(run: Json) -> str:
    """Waves, failures and the slowest tenants."""
    parts: list[str] = []
    if 1 < len(run["waves"]) <= WAVES_SHOWN:
        parts += ["", table_text(run["waves"], WAVE_COLUMNS)]
    for title, items in (
        ("failed", run["failed"]),
        ("tried again later", run["retrying"]),
        ("left out", run["skipped"]),
    ):
        if items:
            parts += ["", f"{title}:"]
            parts += [f"  {item['tenant']}  {item['code']}  {item['message']}" for item in items]
    more = run["counts"]["failed"] - len(run["failed"])
    parts += [f"  and {more} more: tidegate tenant run {run['id']} --all"] if more > 0 else []
    if run["slowest"]:
        named = ", ".join(f"{i['tenant']} {duration(i['took_ms'] / 1000)}" for i in run["slowest"])
        parts += ["", f"slowest: {named}"]
    return "\n".join(parts)


def judge(run: Json) -> None:
    """Let failures, and an end before the end, be seen in the exit status.

    Raises:
        TenantsFailedError: tenants failed, or the run stopped or was paused.
        CancelledError: it was cancelled.
    """
    number, counts = run["id"], run["counts"]
    left = counts["pending"] + counts["running"]
    if run["state"] == "cancelled":
        raise CancelledError(
            f"run {number} was cancelled; {counts['done']} tenants were upgraded, {left} were not",
            next_step="tidegate tenant upgrade",
        )
    if run["state"] == "paused":
        raise TenantsFailedError(
            f"run {number} is paused; {left} tenants wait",
            next_step=f"tidegate tenant resume {number}",
        )
    if run["state"] == "stopped":
        raise TenantsFailedError(
            f"run {number} stopped: {run['message']}; {left} tenants are untouched",
            next_step=f"mend the cause, then: tidegate tenant retry {number}"
            f" (or skip, resume, cancel)",
        )
    if counts["failed"]:
        raise TenantsFailedError(
            f"run {number}: {run['message']}; {counts['done']} were upgraded",
            next_step=f"mend the cause, then: tidegate tenant retry {number}",
        )
