"""Requests no client of ours sends: each is answered with what is wrong with it, never with 500."""

from __future__ import annotations

import json
import socket
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from fix_node import NodeProcess
from tidegate.client import token_of
from tidegate.errors import InvalidArgumentError
from tidegate.server.bounds import DEPTH_MAX, check_json
from tidegate.server.headers import whole_number

if TYPE_CHECKING:
    from collections.abc import Iterator

HALF = "\\ud800"


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """A node whose limits are small enough to be met at once."""
    environment = {
        "TIDEGATE_REQUEST_S": "1",
        "TIDEGATE_IDLE_S": "1",
        "TIDEGATE_CONNECTIONS_MAX": "8",
    }
    made = NodeProcess(tmp_path_factory.mktemp("bounded") / "state", environment).start()
    yield made
    made.stop()


def ask(
    node: NodeProcess,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, bytes] | None = None,
) -> tuple[int, dict[str, Any]]:
    """One request, byte for byte as written here."""
    words = {
        "Authorization": f"Bearer {token_of(node.token)}".encode(),
        "Content-Length": str(len(body)).encode(),
        **(headers or {}),
    }
    with closing(dial(node)) as line:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode()
        head += b"".join(name.encode() + b": " + value + b"\r\n" for name, value in words.items())
        line.sendall(head + b"\r\n" + body)
        answer = rest_of(line)
    status, _, text = answer.partition(b"\r\n")[0].decode().partition(" ")[2].partition(" ")
    content = answer.partition(b"\r\n\r\n")[2]
    return int(status), json.loads(content) if content.startswith(b"{") else {"text": text}


def dial(node: NodeProcess) -> socket.socket:
    host, _, port = node.url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def rest_of(line: socket.socket) -> bytes:
    """All that is sent until the other side closes."""
    parts = []
    with suppress(ConnectionResetError):
        while part := line.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("number", [b"\xb2", b"5" * 5000, b"-1", b"+1", b"1e3", b"0x1", b" "])
@pytest.mark.parametrize("header", ["Tidegate-Api-Level", "If-Match", "Last-Event-ID"])
def test_a_header_that_is_no_number_is_refused_or_left_out(
    node: NodeProcess, header: str, number: bytes
) -> None:
    """Situation 29: `²` is a digit to `str.isdigit`, and 5,000 digits are too many for `int`."""
    value = b'"%b"' % number if header == "If-Match" else number
    for method, path, body in (
        ("GET", "/v1/routes", b""),
        ("POST", "/v1/workflows/none/none/stop", b"{}"),
    ):
        status, found = ask(node, method, path, body, {header: value})
        assert status in {200, 400, 404}, found
        if header == "Tidegate-Api-Level" and number.strip():
            assert status == 400
            assert found["code"] in {"TG-ARG-001", "TG-API-003"}


def test_only_ascii_digits_write_a_number() -> None:
    """Situation 29: whatever Unicode calls a digit, and however many there are."""
    assert whole_number("42") == 42
    assert whole_number("0") == 0
    assert whole_number("9223372036854775807") == 2**63 - 1
    for text in ("²", "٤٢", "9223372036854775808", "1" * 5000, "-1", "", " ", "4_2", "1.0"):
        assert whole_number(text) is None, text
    assert whole_number("65536", largest=65535) is None


BODIES = {
    "half of a surrogate pair": f'{{"name": "a{HALF}"}}'.encode(),
    "half of a surrogate pair as bytes": b'{"name": "a\xed\xa0\x80"}',
    "half of a surrogate pair as a key": f'{{"name": "a", "{HALF}": 1}}'.encode(),
    "a NUL": b'{"name": "a\\u0000b"}',
    "not UTF-8": b'{"name": "a\xff"}',
    "UTF-16": '{"name": "a"}'.encode("utf-16"),
    "no JSON": b"{",
    "not a number": b'{"name": NaN}',
    "infinite": b'{"name": -Infinity}',
    "too large a number": b'{"name": 1e999}',
    "5,000 digits": b'{"name": ' + b"1" * 5000 + b"}",
    "deep": b'{"name": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("what", BODIES)
@pytest.mark.parametrize("path", ["/v1/cells", "/v1/vindex/map", "/v1/tablets", "/v1/movetables"])
def test_a_body_nothing_can_hold_is_refused_before_it_is_read(
    node: NodeProcess, path: str, what: str
) -> None:
    """Situation 29: surrogates, NULs and numbers that are none, in any body."""
    body = BODIES[what]
    status, found = ask(node, "POST", path, body, {"Content-Type": b"application/json"})
    assert status == 400, found
    assert found["code"] == "TG-ARG-001"
    assert found["next_step"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": "\xf0\x9f\x90\x98 \\ud83d\\udc18"}',
        b"[1, 2.5, null]",
        b'"x"',
        b"18446744073709551615",
    ],
)
def test_what_json_may_say_passes(body: bytes) -> None:
    check_json(body)


def test_nesting_has_a_bound() -> None:
    check_json(b"[" * DEPTH_MAX + b"]" * DEPTH_MAX)
    with pytest.raises(InvalidArgumentError, match="nested"):
        check_json(b"[" * (DEPTH_MAX + 2) + b"]" * (DEPTH_MAX + 2))


@pytest.mark.parametrize("path", ["/v1/keyspaces/a%00b", "/v1/tablets?keyspace=a%00"])
def test_a_nul_in_an_address_is_refused(node: NodeProcess, path: str) -> None:
    """Situation 29: what no database can look up."""
    assert ask(node, "GET", path)[0] == 400


def test_a_number_a_column_cannot_hold_is_refused(node: NodeProcess) -> None:
    """Situation 29: JSON's numbers have no end, the database's have."""
    body = b'{"revision": %d}' % 10**30
    assert ask(node, "POST", "/v1/routers/r", body, {"Content-Type": b"application/json"})[0] == 400


def test_a_body_of_200_mib_is_refused_at_its_first_mib(node: NodeProcess) -> None:
    """Situation 29: announced or not, and the node's memory does not grow by it."""
    announced = {"Content-Length": str(200 * 1024**2).encode()}
    status, found = ask(node, "POST", "/v1/cells", b"x", announced)
    assert (status, found["code"]) == (413, "TG-ARG-003")
    with closing(dial(node)) as line:
        line.sendall(
            b"POST /v1/cells HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
            b"Authorization: Bearer " + token_of(node.token).encode() + b"\r\n\r\n"
        )
        sent = 0
        with suppress(OSError):
            while sent < 200 * 1024**2:
                line.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                sent += 0x10000
        assert sent < 64 * 1024**2, "the node stopped listening"


def test_headers_have_a_bound(node: NodeProcess) -> None:
    """Situation 29: 16 KiB of headers, then no more is read."""
    assert ask(node, "GET", "/livez", headers={"X": b"x" * 8000})[0] == 200
    assert ask(node, "GET", "/livez", headers={"X": b"x" * 40_000})[0] == 400


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /liv",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Half: ",
        b"POST /v1/cells HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nhalf",
        b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /liv",
    ],
)
def test_a_request_that_is_half_sent_is_ended(bounded: NodeProcess, sent: bytes) -> None:
    """Situation 29: a connection is not held by whoever never finishes a sentence."""
    token = b"Authorization: Bearer " + token_of(bounded.token).encode() + b"\r\n"
    with closing(dial(bounded)) as line:
        began = time.monotonic()
        line.sendall(sent.replace(b"Host: x\r\n", b"Host: x\r\n" + token))
        rest_of(line)
        assert time.monotonic() - began < 10


def test_a_request_sent_by_the_byte_is_ended(bounded: NodeProcess) -> None:
    """Situation 29: a byte now and then does not move the deadline."""
    with closing(dial(bounded)) as line:
        began = time.monotonic()
        line.sendall(b"GET /livez HTTP/1.1\r\n")
        with suppress(OSError):
            while time.monotonic() - began < 15:
                line.sendall(b"X-A: b\r\n")
                time.sleep(0.1)
        assert time.monotonic() - began < 10


def test_an_idle_connection_is_closed(bounded: NodeProcess) -> None:
    """Situation 29: after an answer, too."""
    with closing(dial(bounded)) as line:
        began = time.monotonic()
        line.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"alive" in rest_of(line)
        assert 0.5 < time.monotonic() - began < 10


def test_connections_have_a_bound_and_are_given_back(bounded: NodeProcess) -> None:
    """Situation 29: the ninth of eight is told so, and comes in when another has gone."""
    lines = [dial(bounded) for _ in range(8)]
    try:
        with closing(dial(bounded)) as line:
            assert rest_of(line).startswith(b"HTTP/1.1 503 ")
    finally:
        for line in lines:
            line.close()
    deadline = time.monotonic() + 10
    while ask(bounded, "GET", "/livez")[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_methods_and_routes_of_strangers_are_one_label(node: NodeProcess) -> None:
    """Situation 29: 3,000 invented methods are one series."""
    with httpx2.Client(base_url=node.url, trust_env=False) as http:
        for number in range(50):
            http.request(f"X{number}", "/livez")
            http.get(f"/nowhere/{number}")
            http.request(f"Y{number}", f"/v1/cells/{number}")
        series = [
            line
            for line in http.get("/metrics").text.splitlines()
            if line.startswith("tidegate_http_requests_total")
        ]
    assert any('method="other"' in line for line in series)
    assert not any("X1" in line or "Y1" in line or "/nowhere" in line for line in series)
    assert len(series) < 40
