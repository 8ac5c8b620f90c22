"""Two sockets as one connection: every byte, in order, both ways; ends and errors passed on."""

from __future__ import annotations

import socket
import ssl
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fix_node import until
from tidegate.cluster.dqlite.pump import LIMIT_BYTES, Link

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_dqlite import Authority


class Ends:
    """A link, and the two far ends a test holds."""

    def __init__(self, authority: Authority) -> None:
        tls = authority.tls
        self.near, ours = socket.socketpair()
        wire, wire_peer = socket.socketpair()
        shaken: list[ssl.SSLSocket] = []
        thread = threading.Thread(
            target=lambda: shaken.append(tls.server.wrap_socket(wire_peer, server_side=True))
        )
        thread.start()
        remote = tls.client.wrap_socket(wire)
        thread.join()
        self.far = shaken[0]
        self.link = Link(ours, remote)
        self.near.settimeout(0)
        self.far.settimeout(0)

    def close(self) -> None:
        self.link.close()
        self.near.close()
        self.far.close()


@pytest.fixture
def ends(authority: Authority) -> Iterator[Ends]:
    made = Ends(authority)
    yield made
    made.close()


def take(connection: socket.socket) -> bytes | None:
    """What is there; None at the end."""
    found = b""
    while True:
        try:
            piece = connection.recv(65536)
        except (BlockingIOError, ssl.SSLWantReadError):
            return found
        if not piece:
            return found or None
        found += piece


def give(connection: socket.socket, data: bytes) -> int:
    try:
        return connection.send(data)
    except (BlockingIOError, ssl.SSLWantWriteError):
        return 0


SIZES = st.sampled_from([0, 1, 100, 5_000, LIMIT_BYTES - 1, LIMIT_BYTES + 1, 1_000_000])


@given(there=SIZES, back=SIZES, seed=st.integers(0, 255))
@settings(max_examples=20, deadline=None)
def test_every_byte_arrives_in_order_both_ways_at_once(
    authority: Authority, there: int, back: int, seed: int
) -> None:
    ends = Ends(authority)
    sent = {
        ends.near: bytes((i * 7 + seed) % 251 for i in range(there)),
        ends.far: bytes((i * 11 + seed) % 241 for i in range(back)),
    }
    got = {ends.near: b"", ends.far: b""}
    left = dict(sent)

    def step() -> bool:
        for end in (ends.near, ends.far):
            if left[end]:
                left[end] = left[end][give(end, left[end][:50_000]) :]
            got[end] += take(end) or b""
        ends.link.pump()
        held = len(ends.link.plain.outbox), len(ends.link.remote.outbox)
        assert max(held) < LIMIT_BYTES + 65536
        return got[ends.far] == sent[ends.near] and got[ends.near] == sent[ends.far]

    until(step)
    ends.close()


def test_a_taker_that_does_not_take_stops_the_sender(ends: Ends) -> None:
    total = 0
    while True:
        sent = give(ends.near, b"x" * 65536)
        ends.link.pump()
        total += sent
        if not sent:
            break
        assert total < 64 * 1024 * 1024, "nothing stops the sender"
    assert not ends.link.events(ends.link.plain) & 1, "reading on"
    received = 0

    def drained() -> bool:
        nonlocal received
        received += len(take(ends.far) or b"")
        ends.link.pump()
        return received == total

    until(drained)


def test_an_end_arrives_after_the_bytes_before_it_and_the_other_way_stays_open(ends: Ends) -> None:
    ends.near.sendall(b"question")
    ends.near.shutdown(socket.SHUT_WR)
    ends.link.pump()
    assert until(lambda: take(ends.far)) == b"question"
    assert take(ends.far) is None
    assert ends.link.half_closed
    ends.far.sendall(b"late answer")
    until(lambda: ends.link.pump() or take_all(ends))
    ends.far.close()
    until(lambda: (ends.link.pump(), ends.link.is_closed())[1])
    assert take(ends.near) is None


def take_all(ends: Ends) -> bool:
    return take(ends.near) == b"late answer"


def test_the_end_of_the_remote_side_is_passed_on(ends: Ends) -> None:
    ends.far.sendall(b"bye")
    ends.far.close()
    until(lambda: (ends.link.pump(), ends.link.plain.finished)[1])
    assert take(ends.near) == b"bye"
    assert take(ends.near) is None
    ends.near.close()
    until(lambda: (ends.link.pump(), ends.link.is_closed())[1])


def test_an_error_ends_both_sides(ends: Ends) -> None:
    # What follows is no TLS record.
    with socket.socket(fileno=ends.far.detach()) as raw:
        raw.sendall(b"garbage" * 100)
    until(lambda: (ends.link.pump(), ends.link.is_closed())[1])
    with pytest.raises(OSError, match="Bad file descriptor"):
        ends.link.remote.connection.send(b"x")
    assert take(ends.near) is None
