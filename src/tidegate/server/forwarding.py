"""Any member answers: what only the owner can do is passed on to it.

Decides which requests are answered here and how the others travel: over the members' own TLS, once
(a request that was passed on is never passed on again), with the body bounded and the answer
streamed. The token was checked where the request came in; between members the certificate counts.

An answer is waited for as long as the member it was asked of owns the work, however long the verb
takes. A member that goes silent loses its lease within seconds, and then the caller is told so.
A request that comes while one owner follows another waits for the successor, for seconds.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tidegate.cluster.certificates import member_context
from tidegate.cluster.identity import IdentityFolder
from tidegate.errors import InvalidArgumentError, NoOwnerError, TidegateError
from tidegate.server import problems
from tidegate.server.access import caller_of, told
from tidegate.server.runtime import Stage

if TYPE_CHECKING:
    import httpx2
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tidegate.server.runtime import Runtime

FORWARDED_HEADER: Final = "tidegate-forwarded-by"
CALLER_HEADER: Final = "tidegate-caller"
"""Whose request it is; only a member may say so."""
BODY_MAX_BYTES: Final = 16 * 1024 * 1024
CONNECT_TIMEOUT_S: Final = 3.0
ANSWER_TIMEOUT_S: Final = 3600.0
"""As long as the command line waits for a verb; every wait behind it has a bound of its own."""
LOOK_S: Final = 1.0
"""Between two looks whether the member that was asked still owns the work."""
LAST_WORD_S: Final = 3.0
"""How long a member may still answer that does not own the work any more."""
UNKNOWN_S: Final = 30.0
"""How long an answer is waited for while nobody is known to own the work."""
ELECTION_S: Final = 5.0
"""How long a request that nobody has begun waits for an owner: a successor needs seconds."""
ELECTION_LOOK_S: Final = 0.1

_HOP = frozenset((b"connection", b"keep-alive", b"transfer-encoding", b"te", b"upgrade", b"host"))
_READS = frozenset(("GET", "HEAD"))
_HERE = (
    "/livez",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/v1/node",
    "/v1/cluster",
    "/v1/routes",
    "/v1/routers",
)


def answered_here(path: str) -> bool:
    """Whether every member answers this path itself."""
    return any(path == here or path.startswith(f"{here}/") for here in _HERE)


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The owner is another member.

    Attributes:
        name: the member's.
        address: HOST:PORT of its peers' listener.
    """

    name: str
    address: str


class Forward:
    """ASGI middleware in front of the API: passes on what this member does not answer itself.

    A node that waits for others to be upgraded passes reads on and refuses the rest.
    """

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self._app = app
        self._runtime = runtime
        self._clients: dict[str, httpx2.AsyncClient] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or answered_here(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            owner = await self._elected(scope)
        except TidegateError as error:
            await problems.answer(error)(scope, receive, send)
            return
        if owner is None:
            await self._app(scope, receive, send)
            return
        await self._pass_on(owner, scope, receive, send)

    async def _elected(self, scope: Scope) -> Elsewhere | None:
        """Where a request has to go; None: here. Waits while one owner follows another."""
        given_up_at = time.monotonic() + ELECTION_S
        while True:
            try:
                return await asyncio.to_thread(self._owner, scope)
            except NoOwnerError:
                if _was_forwarded(scope) or time.monotonic() >= given_up_at:
                    raise
            await asyncio.sleep(ELECTION_LOOK_S)

    def _owner(self, scope: Scope) -> Elsewhere | None:
        """Where a request has to go; None: here."""
        condition = self._runtime.condition
        if condition.stage is Stage.WAITING:
            if scope["method"] not in _READS:
                raise condition.refusal()
            if scope["path"] == "/v1/upgrade":  # the owner knows another program's answer
                return None
        owner = condition.owner()
        if owner is None and condition.services is None:
            raise condition.refusal()
        if owner is not None and _was_forwarded(scope):
            raise NoOwnerError(
                f"the owner changed meanwhile, to member {owner.name}", next_step="try again"
            )
        return owner

    async def _pass_on(self, owner: Elsewhere, scope: Scope, receive: Receive, send: Send) -> None:
        import httpx2  # noqa: PLC0415 - only a member passes requests on

        started = False

        async def counted(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            body = await _body_of(receive)
            request = self._request(owner, scope, body)
            passing = asyncio.ensure_future(self._stream(owner, request, counted))
            leaving = asyncio.ensure_future(_left(receive))
            try:
                answered = await self._answered(owner, passing, leaving)
            finally:
                leaving.cancel()
                passing.cancel()
            if answered:
                passing.result()
            elif not leaving.done() and not started:
                raise _went_silent(owner, scope)
        except TidegateError as error:
            await problems.answer(error)(scope, receive, send)
        except httpx2.HTTPError as error:
            if started:
                raise  # the answer was cut off; the caller sees it cut off too
            unknown = not isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
            await problems.answer(_unreachable(owner, unknown=unknown))(scope, receive, send)

    async def _answered(
        self, owner: Elsewhere, passing: asyncio.Future[None], leaving: asyncio.Future[None]
    ) -> bool:
        """Wait for the answer; False when the caller has gone, or the owner has gone silent."""
        lost_at: float | None = None
        while not leaving.done():
            done, _ = await asyncio.wait(
                {passing, leaving}, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED
            )
            if passing in done:
                return True
            patience_s = await asyncio.to_thread(self._patience_s, owner)
            now = time.monotonic()
            if patience_s is None:
                lost_at = None
            elif now - (lost_at := lost_at or now) >= patience_s:
                break
        return False

    def _patience_s(self, owner: Elsewhere) -> float | None:
        """How long a member may still take to answer; None: it owns the work, so any time."""
        try:
            found = self._runtime.condition.owner()
        except TidegateError:
            return UNKNOWN_S
        return None if found is not None and found.name == owner.name else LAST_WORD_S

    def _request(self, owner: Elsewhere, scope: Scope, body: bytes) -> httpx2.Request:
        query = scope.get("query_string", b"").decode("latin-1")
        url = f"https://{owner.address}{scope.get('raw_path', b'').decode('latin-1')}"
        headers = [
            (name, value)
            for name, value in scope["headers"]
            if name not in _HOP and name not in (b"authorization", CALLER_HEADER.encode())
        ]
        identity = self._runtime.identity
        assert identity is not None, "only a member knows an owner elsewhere"
        headers.append((FORWARDED_HEADER.encode(), identity.name.encode()))
        headers.append((CALLER_HEADER.encode(), told(caller_of(scope))))
        return self._client(owner).build_request(
            scope["method"], f"{url}?{query}" if query else url, headers=headers, content=body
        )

    def _client(self, owner: Elsewhere) -> httpx2.AsyncClient:
        """A client for one address; those of earlier owners are few and idle."""
        found = self._clients.get(owner.address)
        if found is None:
            import httpx2  # noqa: PLC0415 - same

            timeout = httpx2.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
            folder = IdentityFolder(self._runtime.settings.state_dir).path
            context = member_context(ssl.Purpose.SERVER_AUTH, folder)
            # Followers hold connections for hours. The listener bounds their number; a second bound
            # here would make every other request wait for one of them to end.
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
            found = httpx2.AsyncClient(
                verify=context, timeout=timeout, limits=limits, trust_env=False
            )
            self._clients[owner.address] = found
        return found

    async def _stream(self, owner: Elsewhere, request: httpx2.Request, send: Send) -> None:
        response = await self._client(owner).send(request, stream=True)
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": response.status_code,
                    "headers": [
                        (name.lower(), value)
                        for name, value in response.headers.raw
                        if name.lower() not in _HOP
                    ],
                }
            )
            async for block in response.aiter_raw():
                await send({"type": "http.response.body", "body": block, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await response.aclose()


def _was_forwarded(scope: Scope) -> bool:
    return any(name == FORWARDED_HEADER.encode() for name, _ in scope["headers"])


async def _body_of(receive: Receive) -> bytes:
    blocks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(blocks)
        blocks.append(message.get("body", b""))
        size += len(blocks[-1])
        if size > BODY_MAX_BYTES:
            raise InvalidArgumentError(
                f"the request's body is larger than {BODY_MAX_BYTES} bytes",
                next_step="send less at once",
            )
        if not message.get("more_body", False):
            return b"".join(blocks)


async def _left(receive: Receive) -> None:
    """Return when the caller has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _went_silent(owner: Elsewhere, scope: Scope) -> TidegateError:
    verb = f"{scope['method']} {scope['path']}"
    error = NoOwnerError(
        f"member {owner.name} went silent while it worked on {verb}, and does not own the work any"
        " more; its successor finishes what is past its point of no return and undoes the rest",
        next_step=f"see what became of it (tidegate workflow list), then ask again for {verb}",
        owner=owner.name,
        operation=verb,
    )
    vars(error).update(retryable=False, outcome_unknown=scope["method"] not in _READS)
    return error


def _unreachable(owner: Elsewhere, *, unknown: bool) -> TidegateError:
    error = NoOwnerError(
        f"member {owner.name} at {owner.address} owns the work and does not answer",
        next_step="look at the state before repeating the command: tidegate cluster list"
        if unknown
        else "try again in a few seconds; a successor takes over when it stays away",
        owner=owner.name,
    )
    if unknown:
        vars(error).update(retryable=False, outcome_unknown=True)
    return error
