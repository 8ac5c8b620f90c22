"""A request that is sent twice is done once: ``Idempotency-Key`` on POST.

Decides which requests have a key and what is remembered of them; :mod:`tidegate.cluster.answers`
keeps it. Successes are kept, with their body; failures changed nothing and are forgotten, so that
the same request can be tried again. Only the member that does the work looks at keys.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from tidegate.cluster.answers import Answer, Answers
from tidegate.errors import ConflictError, InvalidArgumentError, TidegateError
from tidegate.server import problems
from tidegate.server.bounds import body_of, replaying

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tidegate.server.runtime import Runtime

HEADER: Final = b"idempotency-key"
SECRET_PATHS: Final = frozenset({"/v1/tokens", "/v1/cluster/tokens"})
"""Their answers hold a secret, which must not be kept."""
REPLAYED: Final = (b"idempotency-replayed", b"true")
#: How long a repetition waits for the first one's answer, and how often it looks.
WAIT_S: Final = 20.0
POLL_S: Final = 0.05

_KEY: Final = re.compile(r"[\x21-\x7e]{8,200}")

log = structlog.get_logger("tidegate.api")


@dataclass
class _Held:
    """An answer on its way, held until it is kept."""

    messages: list[Message] = field(default_factory=list)

    async def send(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def answer(self) -> Answer:
        status = next(
            (int(m["status"]) for m in self.messages if m["type"] == "http.response.start"), 500
        )
        body = b"".join(m.get("body", b"") for m in self.messages)
        return Answer(status, body.decode())


class Idempotency:
    """ASGI middleware between what passes requests on and the API."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self._app = app
        self._runtime = runtime
        self._holder = secrets.token_hex(8)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        key = dict(scope["headers"]).get(HEADER) if scope["type"] == "http" else None
        forgets = scope.get("path") in SECRET_PATHS
        if (
            key is None
            or scope["method"] != "POST"
            or forgets
            or self._runtime.condition.services is None
        ):
            await self._app(scope, receive, send)
            return
        try:
            name, body = _checked(key), await body_of(receive)
            answers = Answers(self._runtime.services.database, self._holder)
            known = await self._known(answers, name, _request_of(scope, body))
        except TidegateError as error:
            await problems.answer(error)(scope, receive, send)
            return
        if known is not None:
            await _send(send, known)
            return
        await self._work(answers, name, scope, replaying(body, receive), send)

    async def _known(self, answers: Answers, key: str, request: str) -> Answer | None:
        """The answer given before; None: the request is to be worked on.

        Raises:
            ConflictError: somebody works on it, for longer than is waited here.
        """
        deadline = time.monotonic() + WAIT_S
        while True:
            found = await asyncio.to_thread(answers.begin, key, request)
            if found is None or found.status:
                return found
            if time.monotonic() > deadline:
                raise ConflictError(
                    "the same request is still being worked on",
                    next_step="send it again with the same key, later",
                    in_progress=True,
                )
            await asyncio.sleep(POLL_S)

    async def _work(
        self, answers: Answers, key: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        held = _Held()
        try:
            await self._app(scope, receive, held.send)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(self._settle, answers, key, None))
            raise
        await asyncio.shield(asyncio.to_thread(self._settle, answers, key, held.answer))
        for message in held.messages:
            await send(message)

    @staticmethod
    def _settle(answers: Answers, key: str, answer: Answer | None) -> None:
        """Keep a success, forget a failure; the work is done, so its answer goes out anyhow."""
        try:
            if answer is not None and 200 <= answer.status < 300:
                answers.finish(key, answer)
            else:
                answers.forget(key)
        except TidegateError as error:
            log.warning("an answer was not kept", key=key, error=str(error))


def _checked(key: bytes) -> str:
    text = key.decode("latin-1")
    if _KEY.fullmatch(text) is None:
        raise InvalidArgumentError(
            "an Idempotency-Key has 8 to 200 visible characters of ASCII",
            next_step="send a UUID, a new one for each request",
        )
    return text


def _request_of(scope: Scope, body: bytes) -> str:
    """A hash of everything the request says."""
    said = hashlib.sha256()
    for part in (scope["path"].encode(), scope.get("query_string", b""), body):
        said.update(len(part).to_bytes(8, "big"))
        said.update(part)
    return said.hexdigest()


async def _send(send: Send, answer: Answer) -> None:
    body = answer.body.encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        REPLAYED,
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
