"""What a request may be before anything reads it: its size, its time, its characters and numbers.

Decides the limits of the API and refuses what passes them: a body that is too large, JSON that is
not UTF-8, text that no database can store (NUL, half of a surrogate pair), numbers that are none
(NaN, Infinity). Everything behind may rely on it. It knows no resource.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Never

from tidegate.errors import InvalidArgumentError, TidegateError, TooLargeError
from tidegate.server import problems

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_MAX_BYTES: Final = 1024 * 1024
HEADERS_MAX_BYTES: Final = 16 * 1024
IDLE_S: Final = 60.0
REQUEST_S: Final = 30.0
CONNECTIONS_MAX: Final = 256
DEPTH_MAX: Final = 64

_NUL: Final = b"%00"


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the API's listener.

    Attributes:
        body_max_bytes: of one request.
        headers_max_bytes: of one request, its first line included.
        idle_s: how long a connection may be open between two requests.
        request_s: how long a request may take to arrive as a whole.
        connections_max: open at a time.
    """

    body_max_bytes: int = BODY_MAX_BYTES
    headers_max_bytes: int = HEADERS_MAX_BYTES
    idle_s: float = IDLE_S
    request_s: float = REQUEST_S
    connections_max: int = CONNECTIONS_MAX


class Bounds:
    """ASGI middleware: reads the body whole, checks it, hands it on."""

    def __init__(self, app: ASGIApp, body_max_bytes: int = BODY_MAX_BYTES) -> None:
        self._app = app
        self._body_max_bytes = body_max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            check_target(scope)
            body = await self._body_of(scope, receive)
            if body is None:
                return  # the caller has gone
            if body:
                check_json(body)
        except TidegateError as error:
            await problems.answer(error)(scope, receive, send)
            return
        await self._app(scope, replaying(body, receive), send)

    async def _body_of(self, scope: Scope, receive: Receive) -> bytes | None:
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and (len(announced) > 18 or int(announced) > self._body_max_bytes):
            raise self._too_large()
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > self._body_max_bytes:
                raise self._too_large()
        return b"".join(parts)

    def _too_large(self) -> TooLargeError:
        return TooLargeError(
            f"the request's body is larger than {self._body_max_bytes} bytes",
            next_step="send less at once, or raise body_max_bytes in the node's configuration",
        )


async def body_of(receive: Receive) -> bytes:
    """The body, once its size has been checked."""
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            break  # the client has gone; what it said so far is no whole request
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def replaying(body: bytes, receive: Receive) -> Receive:
    """The body once more, then what the server says."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def check_target(scope: Scope) -> None:
    """Refuse a path or query with a NUL in it.

    Raises:
        InvalidArgumentError: it has one.
    """
    if _NUL in scope.get("raw_path", b"") or _NUL in scope.get("query_string", b""):
        raise InvalidArgumentError(
            "the request's address contains a NUL character", next_step="leave it out"
        )


def check_headers(scope: Scope, headers_max_bytes: int) -> None:
    """Refuse headers that are too large; the parser only bounds those that come in pieces.

    Raises:
        InvalidArgumentError: they are.
    """
    size = len(scope.get("raw_path", b"")) + len(scope.get("query_string", b""))
    size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if size > headers_max_bytes:
        raise InvalidArgumentError(
            f"the request's address and headers are larger than {headers_max_bytes} bytes",
            next_step="send less, or raise headers_max_bytes in the node's configuration",
        )


def check_json(body: bytes) -> None:
    """Refuse a body that is no JSON, or says what nothing behind can hold.

    Raises:
        InvalidArgumentError: naming what it is.
    """
    try:
        # of bytes, json would take other encodings and halves of surrogate pairs
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise _unreadable("is not UTF-8") from None
    except RecursionError:
        raise _unreadable(f"is nested deeper than {DEPTH_MAX}") from None
    except ValueError as error:
        raise _unreadable(f"cannot be read as JSON: {error}") from None
    _check(value, DEPTH_MAX)


def _check(value: Any, depth: int) -> None:
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise _unreadable("contains a number that is too large")
    elif isinstance(value, list | dict):
        if not depth:
            raise _unreadable(f"is nested deeper than {DEPTH_MAX}")
        members = [*value, *value.values()] if isinstance(value, dict) else value
        for each in members:
            _check(each, depth - 1)


def check_text(text: str) -> None:
    """Refuse text that no database can store.

    Raises:
        InvalidArgumentError: it has a NUL, or half of a surrogate pair.
    """
    if "\0" in text:
        raise _unreadable("contains a NUL character")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise _unreadable("contains half of a surrogate pair")


def _no_constant(name: str) -> Never:
    raise ValueError(f"{name} is no number")


def _unreadable(why: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the request's body {why}", next_step="send JSON in UTF-8, as /openapi.json describes it"
    )
