"""Stories of several nodes by name that are upgraded, die, are evicted or go back.

A sentence is an event: ``A restarts with [2,1]``, ``C finishes``, ``evict C --force``,
``restart all nodes with the old binary, one by one``. Each opening is a real one on one database.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from conformance.clusterdb_lab import DECISIONS, Lab, Outcome, check_error, known, lab
from conformance.scenarios import Facts
from make_cluster import add
from tidegate.cluster import member_store, membership
from tidegate.cluster.gate import Verdict
from tidegate.cluster.members import MemberState
from tidegate.errors import SchemaVersionError
from tidegate.server.serving import LOOKS_AGAIN_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conformance.scenarios import Scenario

NAMES = ("A", "B", "C", "D", "E")
PAIR = r"\[\s*(\d+)\s*,\s*(\d+)\s*\]"
WHO = r"(?P<who>[A-Z](?:(?:,\s*|\s+and\s+)[A-Z])*|all (?:other )?nodes|every node|all|everybody)"
STARTS = re.compile(
    rf"(?:(?:re)?starts?|upgrades?|retry|retries) {WHO}"
    rf"|{WHO.replace('who', 'whom')} (?:is |are )?"
    r"(?:(?:re)?start(?:s|ed)?|upgraded?s?|retr(?:y|ies)|finish(?:es)?|opens?|tries)(?: again)?"
    rf"|{WHO.replace('who', 'caller')}\.ensure_schema\(\)"
)
EVICTS = re.compile(
    r"evict(?:s|ed|ion of)?\(?[ '\"]*(?P<who>[A-Z])\b|(?P<whom>[A-Z]) (?:is )?evicted"
)
DIES = re.compile(r"(?P<who>[A-Z]) (?:is )?(?:dies|dead|killed|crashe[sd]|goes down|stops|is down)")


def is_rolling(case: Scenario) -> bool:
    """Several nodes by name."""
    if {"all_nodes", "notification", "row"} & set(case.given):
        return True
    sentences = [event for event in case.events if isinstance(event, str)]
    return len(sentences) == len(case.events) > 0 and all(
        STARTS.search(each) or EVICTS.search(each) or DIES.search(each) for each in sentences
    )


@dataclass
class Fleet:
    """Nodes on one database: what is installed on each, and how each last opening ended."""

    made: Lab
    old: list[int]
    new: list[int]
    names: list[str]
    installed: dict[str, list[int]] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)

    def settle(self, versions: dict[str, list[int]]) -> None:
        """Members that run what they have."""
        self.made.apply(min(pair[0] for pair in versions.values()))
        for name, pair in versions.items():
            add(self.made.database, name, f"{name}:1", pair)
        self.installed = dict(versions)

    def start(self, name: str, pair: list[int] | None = None) -> Outcome:
        self.installed[name] = pair or self.installed[name]
        outcome = self.made.open(self.installed[name], f"{name}:1", name=name)
        self.outcomes[name] = outcome
        row = next(each for each in self.made.rows() if each.name == name)
        assert known(row) == self.installed[name], "what runs is recorded, whatever the answer"
        return outcome

    def evict(self, name: str) -> None:
        self.made.store.evict(self.made.store.by_name(name))
        self.names.remove(name)
        self.dead.discard(name)

    def is_ready(self, name: str) -> bool:
        return name in self.outcomes and self.outcomes[name].is_ready


def all_at(names: Sequence[str], pair: list[int]) -> dict[str, list[int]]:
    """Nodes that all run one version."""
    return {name: list(pair) for name in names}


def versions_of(given: Facts) -> dict[str, list[int]]:
    """The nodes of a story; a list of pairs has the names A, B, C."""
    for key in ("nodes", "cluster", "members"):
        if key in given:
            nodes = given[key]
            if isinstance(nodes, Facts):
                return {name: pair_of(nodes[name]) for name in nodes}
            if isinstance(nodes, int):
                return all_at(NAMES[:nodes], [1, 1])
            if all(isinstance(node, str) for node in nodes):
                return all_at(nodes, [1, 1])
            return {
                (node.get("name", name) if isinstance(node, Facts) else name): pair_of(node)
                for name, node in zip(NAMES, nodes, strict=False)
            }
    return all_at(NAMES[:3], [1, 1])


def pair_of(node: Any) -> list[int]:
    if isinstance(node, Facts):
        for key in ("state", "alive", "dead", "heartbeat_age_s"):
            node.get(key)
        return list(node["version"] if "version" in node else node["v"])
    return list(node)


def play_rolling(case: Scenario) -> None:
    given = case.given
    if "all_nodes" in given:
        play_going_back(case)
    elif "row" in given:
        play_stale_pending(case)
    elif "notification" in given:
        play_lost_notice(case)
    else:
        play_sentences(case)


def play_sentences(case: Scenario) -> None:
    """Every event in turn; expectations are looked at at the end, or one for each event."""
    versions = versions_of(case.given)
    new = next(
        (
            list(case.given[key])
            for key in ("binary", "new_binary", "new", "upgrade_to", "target")
            if key in case.given
        ),
        [2, 1],
    )
    with lab() as made:
        fleet = Fleet(made, [1, 1], new, list(versions))
        fleet.settle(versions)
        for key in case.given:
            if key in {"dead", "down", "offline"}:
                value = case.given[key]
                fleet.dead |= {value} if isinstance(value, str) else set(value)
        results = [play_sentence(fleet, sentence) for sentence in case.take_all()]
        for key in case.expect:
            check_end(key, case.expect[key], fleet, results)


def play_sentence(fleet: Fleet, sentence: str) -> Outcome | None:
    pair = re.search(PAIR, sentence)
    version = [int(pair[1]), int(pair[2])] if pair else None
    if match := EVICTS.search(sentence):
        fleet.evict(match["who"] or match["whom"])
        return None
    if match := DIES.search(sentence):
        fleet.dead.add(match["who"])
        return None
    match = STARTS.search(sentence)
    assert match, f"an unknown event: {sentence}"
    who = match["who"] or match["whom"] or match["caller"]
    alive = [name for name in fleet.names if name not in fleet.dead]
    names = re.findall(r"\b[A-Z]\b", who) or alive
    if "other" in who:
        names = [name for name in names if name not in fleet.outcomes]
    if version is None and not re.search(r"again|retr", sentence) and "()" not in sentence:
        version = fleet.new
    outcome = None
    for name in names:
        outcome = fleet.start(name, version)
    return outcome


def check_end(key: str, wanted: Any, fleet: Fleet, results: Sequence[Outcome | None]) -> None:
    """One expectation: by names, for each event, or of all at the end."""
    names = re.fullmatch(r"([A-Z](?:_[A-Z])*)(?:_(\w+))?", key)
    if names and set(names[1].split("_")) <= {*fleet.names, *fleet.outcomes}:
        for name in names[1].split("_"):
            check_node(fleet, name, wanted)
        return
    for pattern, check in ENDS:
        if re.fullmatch(pattern, key):
            check(wanted, fleet, results)
            return
    raise AssertionError(f"an unknown expectation: {key}")


def check_each(wanted: list[Any], _fleet: Fleet, results: Sequence[Outcome | None]) -> None:
    """The answer to each event; events that open nothing have none."""
    for outcome, each in zip(results, wanted, strict=True):
        if outcome is None:
            assert each is None, "nothing was opened"
        else:
            check_answer(outcome, each)


def check_all(wanted: Any, fleet: Fleet, _results: Sequence[Outcome | None]) -> None:
    """All that live, once those that wait have looked again."""
    for name in fleet.names:
        if name not in fleet.dead:
            check_node(fleet, name, wanted)


def check_rows(wanted: Any, fleet: Fleet, _results: Sequence[Outcome | None]) -> None:
    rows = {row.name: known(row) for row in fleet.made.rows()}
    if isinstance(wanted, Facts):
        assert rows == {name: wanted[name] for name in wanted}
    else:
        assert list(rows.values()) == wanted


def check_schema(wanted: int, fleet: Fleet, _results: Sequence[Outcome | None]) -> None:
    assert fleet.made.recorded[-1] == wanted


def check_once(wanted: Any, fleet: Fleet, _results: Sequence[Outcome | None]) -> None:
    """Every update was applied, and each once."""
    assert wanted in {True, "once", fleet.new[0] - 1}, wanted
    assert fleet.made.recorded == list(range(1, fleet.new[0] + 1))


ENDS: tuple[tuple[str, Callable[[Any, Fleet, Sequence[Outcome | None]], None]], ...] = (
    (r"decisions?|results?|ready|answers?", check_each),
    (r"end|all|final|finally|all\w*ready", check_all),
    (r"rows|versions|recorded", check_rows),
    (r"schema|schema_version|schema_after", check_schema),
    (r"updates_run|updates_applied|applied_once|applied", check_once),
)


def settle(fleet: Fleet, name: str) -> None:
    """A node that waits looks again by itself."""
    if name in fleet.outcomes and fleet.outcomes[name].verdict is Verdict.WAIT:
        fleet.start(name)


def check_node(fleet: Fleet, name: str, wanted: Any) -> None:
    settle(fleet, name)
    check_answer(fleet.outcomes[name], wanted)


def check_answer(outcome: Outcome, wanted: Any) -> None:
    if isinstance(wanted, bool):
        assert outcome.is_ready is wanted, outcome
    elif isinstance(wanted, (int, float)):
        assert outcome.is_ready
        assert wanted >= LOOKS_AGAIN_S
    elif wanted in DECISIONS:
        assert outcome.verdict is DECISIONS[wanted], outcome
    else:
        check_error(wanted, outcome.error)


def play_going_back(case: Scenario) -> None:
    """All nodes get an older program again, one after the other."""
    assert case.take_all() == ["restart all nodes with the old binary, one by one"]
    new, old = list(case.given["all_nodes"]), list(case.given["old_binary"])
    assert case.expect["rows_recorded"] == "always, also when behind"
    assert case.expect["end"] == "ready (same schema, fewer extensions)"
    assert case.expect["if_schema_lower"] == "refuse with an explanation"
    assert new[0] == old[0]
    with lab() as made:
        fleet = Fleet(made, new, old, list(NAMES[:3]))
        fleet.settle(all_at(NAMES[:3], new))
        answers = [fleet.start(name, old).verdict for name in fleet.names]
        assert answers == [Verdict.BEHIND, Verdict.BEHIND, Verdict.READY]
        assert all(fleet.start(name).is_ready for name in fleet.names)
    with lab() as made:
        lower = [old[0] - 1, new[1]]
        fleet = Fleet(made, new, lower, list(NAMES[:3]))
        fleet.settle(all_at(NAMES[:3], new))
        for name in (*fleet.names, *fleet.names):
            outcome = fleet.start(name, lower)
            assert isinstance(outcome.error, SchemaVersionError)
            assert outcome.error.next_step
        assert made.recorded[-1] == new[0]


def play_stale_pending(case: Scenario) -> None:
    """A node that was accepted and never came keeps nobody from being upgraded."""
    row = case.given["row"]
    assert row["pending"] is True
    (event,) = case.take_all()
    pair = re.fullmatch(rf"upgrade all other nodes to {PAIR}", event)
    assert pair, f"an unknown event: {event}"
    new = [int(pair[1]), int(pair[2])]
    with lab() as made:
        fleet = Fleet(made, row["version"], new, ["A", "B"])
        fleet.settle(all_at(fleet.names, list(row["version"])))
        pending = add(made.database, row["name"], "x:1", row["version"], MemberState.PENDING)
        assert fleet.start("A", new).verdict is Verdict.WAIT
        assert fleet.outcomes["A"].decision is not None
        counted = pending.name in fleet.outcomes["A"].decision.names
        assert counted is case.expect["gate_counts_pending"]
        assert fleet.start("B", new).is_ready
        assert fleet.start("A").is_ready
        assert case.expect["stale_pending"] == "expires and is listed"
        late = pending.pending_at + timedelta(seconds=membership.PENDING_EXPIRES_S + 1)
        rows = made.store.all()
        (entry,) = [
            each
            for each in membership.listed(rows, late, timedelta(seconds=30))
            if each.member.id == pending.id
        ]
        assert (entry.status, entry.message) == ("pending", "was accepted and never joined")
        again = membership.Candidate(row["name"], "y:1", new[0], rows[0].extensions)
        assert membership.check_acceptable(rows, again, late) == [pending]


def play_lost_notice(case: Scenario) -> None:
    """Nobody is told; who waits looks again by itself before long."""
    assert case.given["notification"] == "lost"
    with lab() as made:
        fleet = Fleet(made, [1, 1], [2, 1], list(NAMES[:3]))
        fleet.settle(all_at(NAMES[:3], [1, 1]))
        assert fleet.start("A", [2, 1]).verdict is Verdict.WAIT
        assert fleet.start("B", [2, 1]).verdict is Verdict.WAIT
        for sentence in case.take_all():
            play_sentence(fleet, sentence)
        assert fleet.is_ready("C")
        assert case.expect["A_B_ready_within_s"] >= LOOKS_AGAIN_S
        assert fleet.start("A").is_ready
        assert fleet.start("B").is_ready
        assert member_store.active(made.store.all()) == made.store.active()
