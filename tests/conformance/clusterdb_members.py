"""Stories of membership: coming, being listed, going, roles, heartbeats and notices.

The rules are those of :mod:`tidegate.cluster.membership`, the acts those of
:mod:`tidegate.server.membership` on a real database. Peers and the engine that replicates answer as
the case says.
"""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from conformance.clusterdb_lab import Lab, Outcome, attempt, check_error, lab
from conformance.scenarios import Facts
from make_cluster import add, extensions
from tidegate.cluster import issuing, member_store, membership
from tidegate.cluster.cluster_settings import UPDATES as SETTINGS_UPDATES
from tidegate.cluster.cluster_settings import ClusterSettings
from tidegate.cluster.dqlite.client import TIMEOUT_S as CALL_S
from tidegate.cluster.identity import Engine, Identity, IdentityFolder
from tidegate.cluster.join_tokens import UPDATES as TOKEN_UPDATES
from tidegate.cluster.members import PLACEHOLDER, Member, MemberState, Role
from tidegate.cluster.membership import Candidate, Leftovers, Status
from tidegate.cluster.schema import Schema
from tidegate.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    MemberVersionError,
    NotFoundError,
    TidegateError,
    UnreachableNodeError,
)
from tidegate.server.api import peers as peer_routes
from tidegate.server.membership import Membership
from tidegate.server.peer_client import PeerClient
from tidegate.server.transitions import name_first, only_member

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from conformance.scenarios import Scenario
    from tidegate.cluster.member_store import MemberStore

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def member(
    number: int,
    pair: Sequence[int] = (1, 1),
    *,
    age_s: float = 0,
    name: str | None = None,
    address: str | None = None,
    role: Role = Role.VOTER,
    state: MemberState = MemberState.ACTIVE,
) -> Member:
    """A member row as a value."""
    return Member(
        id=number,
        name=name or f"node{number}",
        address=address or f"10.0.0.{number}",
        schema_version=pair[0],
        extensions=extensions(pair[1]),
        binary_version="",
        heartbeat_at=NOW - timedelta(seconds=age_s),
        role=role,
        state=state,
        pending_at=NOW,
        active_at=NOW,
        evicted_at=None,
        fingerprint="",
        revision=1,
    )


# -- a node begins a cluster


def is_beginning(case: Scenario) -> bool:
    return any(isinstance(event, str) and "bootstrap(" in event for event in case.events)


def leftovers(words: str) -> Leftovers:
    """What a node finds of itself, by a case's words."""
    found: dict[str, Any] = {}
    for part in re.split(r",\s*", words):
        match part:
            case "address set":
                found["address"] = "1.2.3.4:666"
            case "no address":
                found["address"] = None
            case "leftover cluster.crt" | "leftover cluster.key" | "leftover cluster.ca":
                found["has_certificate"] = True
            case "raft row exists":
                found["is_replicated"] = True
            case "second nodes row":
                found["members"] = 2
            case other:
                raise AssertionError(f"unknown leftovers: {other}")
    return Leftovers(**found)


def play_beginning(case: Scenario) -> None:
    for number in range(len(case.events)):
        event = case.take(number)
        match = re.fullmatch(r"bootstrap\('(\w*)'\)( per row| on a clean addressed node)?", event)
        assert match, f"an unknown event: {event}"
        name, where = match[1], match[2]
        if where == " per row":
            wanted = case.expect["errors"]
            assert len(wanted) == len(case.given["rows"])
            for words, error in zip(case.given["rows"], wanted, strict=True):
                found = leftovers(words)
                check_error(error, attempt(membership.check_beginning, name, found).error)
        elif where:
            begun(name, case.expect["clean"])
        else:
            clean = Leftovers(address="1.2.3.4:666")
            outcome = attempt(membership.check_beginning, name, clean)
            check_error(case.expect["empty name"], outcome.error)


def begun(name: str, wanted: Facts) -> None:
    """Begin a cluster on a real database, with real certificates on the disk."""
    address = "127.0.0.1:7443"
    with lab() as made:
        made.alone((1, 1))
        membership.check_beginning(name, Leftovers(address=address))
        now = datetime.now(UTC)
        authority = issuing.make_authority("a-cluster", now)
        own = issuing.make_member(authority, name, now)
        member = only_member(made.database)
        identity = Identity("a-cluster", member.id, name, address, Engine.SHARED, made.url)
        name_first(made.database, identity, own.certificate)
        folder = IdentityFolder(made.folder)
        folder.prepare(identity, authority, own)
        folder.commit()
        (row,) = made.rows()
        filled = [
            {key: address if value == "<address>" else value for key, value in each.data.items()}
            for each in wanted["nodes"]
        ]
        for each in wanted["nodes"]:
            assert set(each) == {key for key in each if each[key]} == {"id", "name", "address"}
        assert filled == [{"id": row.id, "name": row.name, "address": row.address}]
        votes = [[each.id, each.address] for each in made.rows() if each.role is Role.VOTER]
        assert votes == [
            [number, address if where == "<address>" else where]
            for number, where in wanted["raft_nodes"]
        ]
        assert (folder.read() == identity) is wanted["cluster_cert"]
        again = Leftovers(address=address, is_replicated=True)
        assert attempt(membership.check_beginning, name, again).error is not None


# -- a node is let in

REFUSALS: tuple[tuple[str, type[TidegateError], str], ...] = (
    (
        r"cluster\w* (?:is |was )?(?:not\b|isn't|off|disabled|un)|(?:not|never|un) ?-?clustered",
        FailedPreconditionError,
        "cluster",
    ),
    (r"schema", MemberVersionError, "schema"),
    (r"\bapi\b|extension", MemberVersionError, "API"),
    (r"address", AlreadyExistsError, "address"),
    (r"name", AlreadyExistsError, "name"),
    (r"version|match|mismatch", MemberVersionError, "version"),
)
"""Words of a refusal or of its cause, the error it is, and a word that this error must have."""


def is_accepting(case: Scenario) -> bool:
    return any(isinstance(event, str) and "accept" in event for event in case.events)


def refused(words: str) -> tuple[type[TidegateError], str]:
    for pattern, kind, word in REFUSALS:
        if re.search(pattern, words, re.IGNORECASE):
            return kind, word
    raise AssertionError(f"an unknown refusal: {words}")


def candidate_of(words: str, members: Sequence[Member]) -> tuple[Candidate, list[Member]]:
    """Who asks, and the members, when a case says what is wrong with it."""
    good = Candidate("new", "10.9.9.9", members[0].schema_version, members[0].extensions)
    _, word = refused(words)
    changes: dict[str, dict[str, Any]] = {
        "name": {"name": members[0].name},
        "address": {"address": members[0].address},
        "schema": {"schema_version": good.schema_version + 1},
        "API": {"extensions": extensions(good.extensions.count + 1)},
        "version": {"schema_version": good.schema_version + 1},
    }
    return replace(good, **changes[word]), list(members)


def play_accepting(case: Scenario) -> None:
    """Each row says what is wrong; the refusal has the kind that the expected words have."""
    for event in case.take_all():
        assert re.match(r"accept\b", event), f"an unknown event: {event}"
    members = [member(1, (3, 2)), member(2, (3, 2), role=Role.VOTER)]
    rows = list(case.given["rows"])
    wanted = list(case.expect["errors"])
    words = [row if isinstance(row, str) else row["name"] for row in rows]
    good = [row for row in words if re.search(r"ok|success|clean|fine|all equal", row)]
    words = [row for row in words if row not in good]
    texts = [text for text in wanted if text is not None]
    assert len(words) == len(texts) > 0
    for row, text in zip(words, texts, strict=True):
        kind, word = refused(text)
        if refused(row)[0] is FailedPreconditionError:
            outcome = accepted_alone()
        else:
            asks, present = candidate_of(row, members)
            outcome = attempt(membership.check_acceptable, present, asks, NOW)
        assert isinstance(outcome.error, kind), f"{row}: {outcome.error!r}"
        assert word in outcome.error.message
    success = case.expect.get("success", case.expect.get("accepted"))
    accepted(success if isinstance(success, Facts) else Facts({}))
    if isinstance(success, str):
        assert re.search(r"pending", success), f"unknown words: {success}"


def accepted_alone() -> Outcome:
    """A node on its own is asked to let another one in."""
    with lab() as made:
        made.apply(1)
        Schema((*member_store.UPDATES, *TOKEN_UPDATES, *SETTINGS_UPDATES)).ensure(made.database)
        alone = Membership(made.database, store=made.store, settings=ClusterSettings(made.database))
        return attempt(alone.accept, Candidate("new", "b:1", 1, extensions(1)), "secret", b"")


def accepted(wanted: Facts) -> None:
    """A node that fits is a pending row, and counts for nothing yet."""
    with lab() as made:
        made.alone((1, 1))
        (first,) = made.rows()
        made.store.write(first, replace(first, name="node1", address="10.0.0.1"))
        asks = Candidate("new", "10.9.9.9", 1, extensions(1))
        assert membership.check_acceptable(made.store.all(), asks, NOW) == []
        row = add(made.database, asks.name, asks.address, (1, 1), MemberState.PENDING)
        facts = {
            "pending": not row.is_active,
            "name": row.name,
            "address": row.address,
            "id": row.id,
            "listed": len(made.store.active()) == 2,
        }
        for key in wanted:
            if key not in {"name", "address"}:
                assert facts[key] == wanted[key], key
            else:
                assert wanted[key]
        asks_again = attempt(membership.check_acceptable, made.store.all(), asks, NOW)
        assert isinstance(asks_again.error, AlreadyExistsError)


# -- pending, heartbeat, threshold


def is_pending(case: Scenario) -> bool:
    return case.events[:1] == ["set pending"]


def play_pending(case: Scenario) -> None:
    given, expect = case.given["node"], case.expect
    with lab() as made:
        made.alone((1, 1))
        store = made.store
        for number in range(len(case.events)):
            match case.take(number):
                case "set pending":
                    row = add(
                        made.database, given["name"], given["address"], (1, 1), MemberState.PENDING
                    )
                    assert row.id == given["id"]
                case "list, by name, pending-by-address":
                    listed = [each.name for each in store.active()]
                    assert (row.name in listed) is expect["pending"]["listed"]
                    check_missing(store, row.name, expect["pending"]["by_name"])
                    found = store.pending_by_address(row.address).id
                    assert found == expect["pending"]["pending_by_address"]
                case "clear pending":
                    row = store.activate(row)
                    assert store.by_name(row.name).id == expect["cleared"]["by_name"]
                case str(event) if match := re.fullmatch(
                    r"heartbeat one minute ago, threshold (\d+) s", event
                ):
                    with made.database.transaction() as connection:
                        now = made.database.now(connection)
                        member_store.beat(connection, [row.id], now - timedelta(minutes=1))
                    (entry,) = [
                        each
                        for each in membership.listed(
                            store.all(), now, timedelta(seconds=int(match[1]))
                        )
                        if each.member.id == row.id
                    ]
                    assert (entry.status is Status.OFFLINE) is expect["offline"]
                case str(event) if event.startswith("threshold config "):
                    check_thresholds(event.removeprefix("threshold config "), expect)
                case event:
                    raise AssertionError(f"an unknown event: {event}")


def check_missing(store: MemberStore, name: str, wanted: str) -> None:
    assert wanted == "no such object"
    assert isinstance(attempt(store.by_name, name).error, NotFoundError)


def check_thresholds(words: str, expect: Facts) -> None:
    for setting, wanted in zip(words.split(" / "), expect["threshold_s"], strict=True):
        value = None if setting == "absent" else setting.strip("'")
        if wanted == "error":
            check_error("error", attempt(membership.offline_threshold_s, value).error)
        else:
            assert membership.offline_threshold_s(value) == wanted


# -- lists


def is_list(case: Scenario) -> bool:
    return {"is_outdated() per row", "list()"} & set(map(str, case.events)) != set()


def play_list(case: Scenario) -> None:
    for number in range(len(case.events)):
        match case.take(number):
            case "is_outdated() per row":
                rows = case.given["self_first"]
                for row, wanted in zip(rows, case.expect["outdated"], strict=True):
                    members = [member(at, pair) for at, pair in enumerate(row, start=1)]
                    assert membership.is_outdated(members[0], members) is wanted, row
            case "list()":
                threshold = timedelta(seconds=case.given["threshold_s"])
                members = [
                    member(at, each["v"], age_s=each["heartbeat_age_s"])
                    for at, each in enumerate(case.given["list"], start=1)
                ]
                entries = membership.listed(members, NOW, threshold)
                assert [str(entry.status) for entry in entries] == case.expect["status"]
                assert [entry.message for entry in entries] == case.expect["messages"]
            case event:
                raise AssertionError(f"an unknown event: {event}")


# -- going and roles


class Known:
    """Replication as a case has it; notes what it is asked."""

    has_roles = True

    def __init__(self, members: Sequence[Member]) -> None:
        self.known: dict[int, Role] = {
            each.id: each.role for each in members if each.role is not Role.SPARE
        }
        self.asked: list[tuple[str, int]] = []

    def ids(self) -> Collection[int]:
        return self.known

    def roles(self) -> Mapping[int, Role]:
        return self.known

    def add(self, member_id: int, address: str) -> None:
        raise AssertionError(f"asked to add {member_id} at {address}")

    def assign(self, member_id: int, role: Role) -> None:
        self.asked.append(("assign", member_id))
        self.known[member_id] = role

    def remove(self, member_id: int) -> None:
        self.asked.append(("remove", member_id))
        self.known.pop(member_id, None)


class Peers(PeerClient):
    """Members that answer as a case says: not at all, with a failure, or well."""

    def __init__(self, answers: Mapping[str, TidegateError | None]) -> None:
        self.answers = answers
        self.called: list[tuple[str, str]] = []

    def call(
        self,
        address: str,
        method: str,  # noqa: ARG002 - as the real one
        path: str,
        body: dict[str, Any] | None = None,  # noqa: ARG002 - as the real one
        *,
        timeout_s: float = 1.0,  # noqa: ARG002 - as the real one
    ) -> dict[str, Any]:
        self.called.append((address, path))
        error = self.answers.get(address)
        if error is not None:
            raise error
        return {}


def stored(made: Lab, members: Sequence[Member]) -> None:
    """Real rows that say what these values say."""
    Schema((*member_store.UPDATES, *TOKEN_UPDATES, *SETTINGS_UPDATES)).ensure(made.database)
    for each in members:
        row = made.store.add(
            name=each.name,
            address=each.address,
            schema_version=each.schema_version,
            extensions=each.extensions,
            binary_version="",
            state=each.state,
            role=each.role,
        )
        assert row.id == each.id
    with made.database.transaction() as connection:
        now = made.database.now(connection)
        for each in members:
            member_store.beat(connection, [each.id], now - (NOW - each.heartbeat_at))


def node_of(
    made: Lab, me: Member, *, known_to: Known | None = None, peers: Peers | None = None
) -> Membership:
    """The verbs of membership on one of the members."""
    return Membership(
        made.database,
        store=made.store,
        settings=ClusterSettings(made.database),
        identity=Identity("a-cluster", me.id, me.name, me.address, Engine.DQLITE),
        peers=peers,
        replication=known_to,
    )


def is_going(case: Scenario) -> bool:
    return "target_voters" in case.given


def play_going(case: Scenario) -> None:
    assert case.given["target_voters"] == membership.VOTERS
    members = [
        member(at, name=name, address=address, role=Role(role))
        for at, (name, address, role) in enumerate(case.given["cluster"], start=1)
    ]
    leaves = iter(case.expect["leave"])
    for number in range(len(case.events)):
        event = case.take(number)
        if event.startswith("leave"):
            check_leaving(event, members, next(leaves))
        elif event.startswith("promote: "):
            for words, wanted in zip(
                event.removeprefix("promote: ").split(" / "), case.expect["promote"], strict=True
            ):
                check_promotion(words, members, wanted)
        elif event.startswith("rebalance: "):
            for words, wanted in zip(
                event.removeprefix("rebalance: ").split(" / "),
                case.expect["rebalance"],
                strict=True,
            ):
                check_balance(words, members, wanted)
        else:
            raise AssertionError(f"an unknown event: {event}")
    assert next(leaves, None) is None


def check_leaving(event: str, members: list[Member], wanted: str) -> None:
    names = {
        "leave unknown": "nobody",
        "leave last node without force": members[0].name,
        "leave node1 (voter)": members[0].name,
        "leave a non-voter": members[1].name,
    }
    present = members[:1] if "last node" in event else members
    with lab() as made:
        stored(made, present)
        replication = Known(present)
        node = node_of(made, present[-1], known_to=replication, peers=Peers({}))
        going: list[Member] = []
        outcome = attempt(lambda: going.append(node.remove(names[event], force=False)))
        if wanted.startswith("error"):
            check_error(wanted, outcome.error)
            assert replication.asked == []
            assert len(made.store.active()) == len(present)
            return
        assert outcome.error is None, outcome
        asked = re.fullmatch(r"raft removal asked for id (\d+), (\d+) s, returns ([\d.]+)", wanted)
        if asked:
            assert int(asked[2]) <= CALL_S, "one call to Raft is bounded"
            assert replication.asked == [("remove", int(asked[1]))]
            assert going[0].address == asked[3]
        else:
            assert wanted == "no raft call, returns address"
            assert replication.asked == []
            assert going[0].address == present[1].address
        assert going[0].name not in {each.name for each in made.store.active()}


def check_promotion(words: str, members: list[Member], wanted: str) -> None:
    spare = members[1]
    present = {
        "already voter": replace(spare, role=Role.VOTER),
        "no address": replace(spare, address=PLACEHOLDER),
        "not in list": spare,
        "wipe fails": spare,
    }[words]
    listed = {members[0].id} if words == "not in list" else {members[0].id, spare.id}
    outcome = attempt(membership.check_promotable, present, listed)
    if wanted == "nothing is wiped":
        assert outcome.error is None
        with lab() as made:
            stored(made, members)
            replication = Known(members)
            replication.known[spare.id] = Role.SPARE
            after = node_of(made, members[0], known_to=replication).set_role(spare.name, Role.VOTER)
            assert (after.role, replication.asked) == (Role.VOTER, [("assign", spare.id)])
        return
    check_error(wanted, outcome.error)


def check_balance(words: str, members: list[Member], wanted: list[Any]) -> None:
    """Who gets a vote, and who votes afterwards."""
    online, spare = members
    present = {
        "spare online": [online, spare],
        "spare offline": [online, replace(spare, heartbeat_at=NOW - timedelta(minutes=5))],
        "three voters": [online, *(member(at) for at in (3, 4)), spare],
    }[words]
    present = [replace(each, id=at) for at, each in enumerate(present, start=1)]
    with lab() as made:
        stored(made, present)
        replication = Known(present)
        changed = node_of(made, present[0], known_to=replication).rebalance()
        promoted = [at for what, at in replication.asked if what == "assign"]
        assert changed == len(promoted)
        rows = {each.id: each for each in made.store.active()}
        address = rows[promoted[0]].address if promoted else ""
        voters = [[at, rows[at].address] for at in sorted(replication.known)] if promoted else []
        assert [address, voters] == wanted
        assert all(rows[at].role is Role.VOTER for at in promoted)


# -- heartbeats and notices


def is_beating(case: Scenario) -> bool:
    return "all_marked_down" in case.given


def play_beating(case: Scenario) -> None:
    threshold = timedelta(seconds=case.given["threshold_s"])
    age_s = 2 * case.given["threshold_s"] if case.given["all_marked_down"] else 0
    members = [member(at, age_s=age_s) for at in range(1, case.given["nodes"] + 1)]
    for number in range(len(case.events)):
        match case.take(number):
            case "heartbeat on leader":
                assert case.expect["leader"] == "all heartbeats fresh"
                assert fresh_after(members, threshold, {}) == [each.id for each in members]
            case "heartbeat on follower":
                assert case.expect["follower"] == "no-op"
                assert fresh_after(members, threshold, None) == []
            case "peer answers 500":
                assert case.expect["peer 500"] == "that row unchanged"
                broken = {members[1].address: TidegateError("500")}
                fresh = fresh_after(members, threshold, broken)
                assert fresh == [each.id for each in members if each.id != members[1].id]
            case "notify all / notify alive with one peer down":
                assert case.expect["notify_all_down"] == "error: peer node is down, nobody called"
                assert case.expect["notify_alive_down"] == "1 peer called"
                check_notices(threshold)
            case "upgraded notification":
                assert case.expect["upgraded"] == "waiting node wakes"
                check_waking()
            case event:
                raise AssertionError(f"an unknown event: {event}")


def fresh_after(
    members: list[Member], threshold: timedelta, answers: Mapping[str, TidegateError] | None
) -> list[int]:
    """Who looks alive after a round; None: of a member that does not own the rounds."""
    with lab() as made:
        stored(made, members)
        peers = Peers(answers or {})
        node = node_of(made, members[0], peers=peers)
        if answers is not None:
            node.beat()
        assert len(peers.called) == (0 if answers is None else len(members) - 1)
        now = made.database.now()
        entries = membership.listed(made.store.all(), now, threshold)
        return [entry.member.id for entry in entries if entry.status is not Status.OFFLINE]


def check_notices(threshold: timedelta) -> None:
    """Three members, one of which is down: all or nobody, or those that live."""
    members = [member(1), member(2), member(3, age_s=threshold.total_seconds() * 3)]
    entries = membership.listed(members, NOW, threshold)
    outcome = attempt(membership.called, entries, 1, everybody=True)
    assert isinstance(outcome.error, FailedPreconditionError)
    assert re.search(r"peer node .* is down", outcome.error.message)
    with lab() as made:
        stored(made, members)
        peers = Peers({})
        assert node_of(made, members[0], peers=peers).tell_upgraded() == 1
        assert peers.called == [(members[1].address, "/peer/upgraded")]
        lost = Peers({members[1].address: UnreachableNodeError("lost")})
        assert node_of(made, members[0], peers=lost).tell_upgraded() == 0


class Waiting:
    """What the route of a notice sees of a node that waits."""

    def __init__(self) -> None:
        self.look_again = threading.Event()


def check_waking() -> None:
    node = Waiting()
    woken = threading.Event()

    def wait() -> None:
        if node.look_again.wait(20):
            woken.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert not woken.is_set()
    peer_routes.upgraded(node)  # type: ignore[arg-type]
    waiter.join(20)
    assert woken.is_set()
