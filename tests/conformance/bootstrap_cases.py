"""Checks of the system "bootstrap-upgrade": which play understands which story.

A play is chosen by the words that a story gives, never by its id. A story for which no play has the
words, or more than one, is not understood, and fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance import bootstrap_start, bootstrap_tales, bootstrap_upgrades
from conformance.scenarios import Facts

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.scenarios import Scenario

SYSTEM = "bootstrap-upgrade"

#: Words of `given`, any of which calls for the play.
PLAYS: tuple[tuple[Callable[[Scenario], None], frozenset[str]], ...] = (
    (
        bootstrap_start.first_start,
        frozenset(
            {
                "marker_database",
                "marker_visible_from_check",
                "first_init_statement_fails_once_with",
                "first_state_check_fails_once_with",
                "error",
                "init_body",
                "lock_service",
                "core_tables",
            }
        ),
    ),
    (bootstrap_upgrades.upgrade_pass, frozenset({"version_row"})),
    (bootstrap_upgrades.drain_loop, frozenset({"pass_results"})),
    (bootstrap_upgrades.claims, frozenset({"tasks"})),
    (bootstrap_upgrades.entries, frozenset({"entry", "gated_entry"})),
    (bootstrap_tales.lock_lease, frozenset({"owner", "owner_disk"})),
    (bootstrap_tales.many_nodes, frozenset({"nodes"})),
    (bootstrap_tales.login, frozenset({"login_transaction"})),
)


def run(case: Scenario) -> None:
    """Play one story; one that nobody understands fails."""
    given = set(case.given)
    called = [play for play, wanted in PLAYS if wanted & given]
    if "step" in given and {"task", "tenant"} <= given:
        called = [bootstrap_upgrades.worker_passes]
    elif (
        "step" in given and isinstance(case.given["step"], Facts) and "total" in case.given["step"]
    ):
        called = [bootstrap_upgrades.counted_step]
    called = called or bootstrap_tales.by_words(case)
    assert called, f"nobody understands {case.id}: {sorted(given)} {case.events}"
    assert len(called) == 1, f"more than one play for {case.id}"
    called[0](case)
