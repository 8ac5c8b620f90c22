"""The gate: its table, who it names, and that a cluster under it never runs two versions."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from make_cluster import add, program, versions
from tidegate.cluster import gate
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.extensions import Extensions, Relation
from tidegate.cluster.gate import Decision, Other, Verdict, Versions
from tidegate.cluster.member_store import MemberStore
from tidegate.errors import (
    InconsistentVersionsError,
    MemberEvictedError,
    NodeBehindError,
    SchemaVersionError,
    SomeNodesAreBehindError,
)

LISTS = st.lists(st.sampled_from("abcd"), unique=True).map(Extensions.of)
VERSIONS = st.builds(Versions, st.integers(0, 3), LISTS)
OTHERS = st.lists(st.builds(Other, st.sampled_from(["m1", "m2", "m3"]), VERSIONS), max_size=6)


@given(VERSIONS, VERSIONS)
def test_what_is_newer_to_one_is_older_to_the_other(one: Versions, other: Versions) -> None:
    mirror = {Relation.NEWER: Relation.OLDER, Relation.OLDER: Relation.NEWER}
    seen = gate.relation(one, other)
    assert gate.relation(other, one) is mirror.get(seen, seen)
    assert (seen is Relation.EQUAL) == (one == other)


@given(VERSIONS, OTHERS, st.randoms())
def test_the_answer_does_not_depend_on_the_order(
    own: Versions, others: list[Other], random: Any
) -> None:
    answer = gate.decide(own, others)
    random.shuffle(others)
    shuffled = gate.decide(own, others)
    assert shuffled.verdict is answer.verdict
    assert sorted(map(str, shuffled.who)) == sorted(map(str, answer.who))


@given(VERSIONS, OTHERS)
def test_the_gravest_relation_decides_and_all_who_have_it_are_named(
    own: Versions, others: list[Other]
) -> None:
    found = {other: gate.relation(own, other.versions) for other in others}
    relations = set(found.values())
    if Relation.NEWER in relations:
        wanted, because = Verdict.BEHIND, Relation.NEWER
    elif Relation.DIVERGED in relations:
        wanted, because = Verdict.INCONSISTENT, Relation.DIVERGED
    elif Relation.OLDER in relations:
        wanted, because = Verdict.WAIT, Relation.OLDER
    else:
        wanted, because = Verdict.READY, None
    answer = gate.decide(own, others)
    assert answer.verdict is wanted
    assert set(answer.who) == {other for other, each in found.items() if each is because}
    assert answer.is_ready == (wanted is Verdict.READY)
    if not answer.is_ready:
        error = answer.error()
        assert all(name in error.message for name in answer.names)
        assert error.next_step
        assert error.retryable == (wanted is Verdict.WAIT)


@given(VERSIONS, OTHERS)
def test_of_two_nodes_at_most_one_waits_for_the_other(own: Versions, others: list[Other]) -> None:
    """No two nodes wait for each other, or neither would ever go on."""
    for other in others:
        mine = gate.decide(own, [Other("them", other.versions)]).verdict
        theirs = gate.decide(other.versions, [Other("me", own)]).verdict
        assert (mine, theirs) != (Verdict.WAIT, Verdict.WAIT)
        assert (mine is Verdict.WAIT) == (theirs is Verdict.BEHIND)


@pytest.mark.parametrize(
    ("other", "error", "words"),
    [
        ((3, 1), NodeBehindError, "behind, please upgrade: b has schema version 3"),
        ((1, 1), SomeNodesAreBehindError, "some nodes are behind this node's version: b has"),
        ((3, 0), InconsistentVersionsError, "nodes have inconsistent versions: b has"),
    ],
)
def test_the_refusal_says_who_has_what(
    other: tuple[int, int], error: type[Exception], words: str
) -> None:
    answer = gate.decide(versions((2, 1)), [Other("b", versions(other))])
    with pytest.raises(error, match=words):
        raise answer.error()


def test_lists_of_one_length_that_differ_say_where() -> None:
    own = Versions(1, Extensions.of(["a", "b"]))
    answer = gate.decide(own, [Other("n", Versions(1, Extensions.of(["a", "c"])))])
    assert answer.error().message.endswith("; b here is c on n")


def test_of_several_ledgers_the_gravest_answer_counts() -> None:
    answers = [Decision(verdict, versions((1, 1))) for verdict in Verdict]
    for some in itertools.chain.from_iterable(
        itertools.permutations(answers, n) for n in range(1, 5)
    ):
        want = max(some, key=lambda each: list(Verdict).index(each.verdict))
        assert gate.gravest(some) is want


PAIRS = ((1, 1), (1, 2), (2, 2), (3, 2), (3, 3))
"""Versions of one line of programs, in the order in which they were released."""

NODES = ("n1", "n2", "n3", "n4")


class Cluster(RuleBasedStateMachine):
    """Nodes of one database that are upgraded, downgraded, killed and evicted at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.database = ClusterDatabase.open(f"sqlite:///{Path(self.folder.name)}/cluster.db")
        assert program(self.database, PAIRS[0]).ensure_schema("n1").is_ready
        store = MemberStore(self.database)
        store.evict(store.all()[0])
        self.installed = dict.fromkeys(NODES, 0)
        self.running = dict.fromkeys(NODES, 0)
        self.schema = 1
        for name in NODES:
            add(self.database, name, name, PAIRS[0])

    def start(self, name: str) -> bool:
        """Start a node's program; whether it runs."""
        self.running.pop(name, None)
        pair = PAIRS[self.installed[name]]
        try:
            answer = program(self.database, pair).ensure_schema(name, name=name)
        except SchemaVersionError:
            return False
        if answer.is_ready:
            self.running[name] = self.installed[name]
            self.schema = max(self.schema, pair[0])
        return answer.is_ready

    @rule(name=st.sampled_from(NODES), release=st.integers(0, len(PAIRS) - 1))
    def install_and_restart(self, name: str, release: int) -> None:
        if name in self.installed:
            self.installed[name] = release
            self.start(name)

    @rule(name=st.sampled_from(NODES))
    def restart(self, name: str) -> None:
        if name in self.installed:
            self.start(name)

    @rule(name=st.sampled_from(NODES))
    def kill(self, name: str) -> None:
        self.running.pop(name, None)

    @precondition(lambda self: len(self.installed) > 2)
    @rule(name=st.sampled_from(NODES))
    def evict(self, name: str) -> None:
        if name not in self.installed:
            return
        store = MemberStore(self.database)
        store.evict(store.by_name(name))
        # Whoever serves under an evicted row is stopped by its next heartbeat.
        self.running.pop(name, None)
        del self.installed[name]
        with pytest.raises(MemberEvictedError, match=f"the member {name}"):
            program(self.database, PAIRS[0]).ensure_schema(name, name=name)

    @invariant()
    def all_that_run_are_of_one_version(self) -> None:
        assert len(set(self.running.values())) <= 1

    @invariant()
    def nobody_runs_on_a_schema_it_does_not_know(self) -> None:
        assert all(PAIRS[release][0] >= self.schema for release in self.running.values())

    def teardown(self) -> None:
        """Whatever happened, one version for all ends it: each is started twice at most."""
        newest = max(self.installed.values(), default=0)
        newest = max(newest, next(n for n, pair in enumerate(PAIRS) if pair[0] >= self.schema))
        for name in self.installed:
            self.installed[name] = newest
            self.start(name)
        assert all([self.start(name) for name in self.installed])  # noqa: C419 - every one starts
        assert set(self.running) == set(self.installed)
        self.database.close()
        self.folder.cleanup()


Cluster.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestCluster = Cluster.TestCase
