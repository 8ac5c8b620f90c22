"""Which calls the audit log has, and when: before a call is done, and when its outcome is known.

Decides that nothing is changed that was not written down first: when the entry cannot be written,
the call is refused. Calls that every reader may make are left out. Of a body only names are kept
(:data:`NAMED`), so nothing secret gets into the log. A call that closes the cluster database under
itself (it makes this node a member, or lets it go) may lack its end.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from typing import TYPE_CHECKING, Any, Final

import structlog

from tidegate.cluster.audit import BEGUN, Audit, Call
from tidegate.errors import TidegateError
from tidegate.server import problems
from tidegate.server.access import AccessRole, caller_of
from tidegate.server.bounds import body_of, replaying

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tidegate.server.runtime import Runtime

NAMED: Final = (
    "name",
    "names",
    "alias",
    "keyspace",
    "shard",
    "workflow",
    "source_keyspace",
    "target_keyspace",
    "source_shard",
    "source_tablet",
    "target_shard",
    "source_shards",
    "target_shards",
    "tables",
    "exclude_tables",
    "all_tables",
    "tablet_types",
    "cells",
    "tenants",
    "role",
    "task",
    "container",
    "dry_run",
)
"""Fields of a body that say what a call is about and hold no secret."""

_UNSAFE: Final = frozenset({"DELETE", "PATCH", "POST", "PUT"})

log = structlog.get_logger("tidegate.audit")


class Auditing:
    """ASGI middleware on the member that does the work."""

    def __init__(
        self, app: ASGIApp, runtime: Runtime, needed: Callable[[Scope], AccessRole | None]
    ) -> None:
        self._app = app
        self._runtime = runtime
        self._needed = needed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["method"] not in _UNSAFE:
            await self._app(scope, receive, send)
            return
        if self._needed(scope) in {None, AccessRole.READ}:
            await self._app(scope, receive, send)
            return
        body = await body_of(receive)
        call = self._call(scope, body)
        try:
            await asyncio.to_thread(self._append, call, BEGUN)
        except TidegateError as error:
            await problems.answer(error)(scope, receive, send)
            return

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                await asyncio.to_thread(self._end, call, message["status"])
            await send(message)

        await self._app(scope, replaying(body, receive), noted)

    def _call(self, scope: Scope, body: bytes) -> Call:
        caller, identity = caller_of(scope), self._runtime.identity
        query = scope.get("query_string", b"").decode("latin-1")
        what = f"{scope['method']} {scope['path']}{f'?{query}' if query else ''}"
        if named := names_in(body):
            what += f" {json.dumps(named, sort_keys=True)}"
        member = identity.name if identity else socket.gethostname()
        return Call(caller.name, caller.role, caller.origin, member, secrets.token_hex(8), what)

    def _append(self, call: Call, outcome: int) -> None:
        services = self._runtime.condition.services
        if services is None:  # what a node does before its cluster database is open, or without it
            log.warning("not in the audit log", what=call.what, caller=call.caller, outcome=outcome)
            return
        entry = Audit(services.database).append(call, outcome)
        log.info(
            "audit",
            seq=entry.seq,
            hash=entry.hash,
            caller=call.caller,
            origin=call.origin,
            what=call.what,
            outcome=outcome,
        )

    def _end(self, call: Call, status: int) -> None:
        """Note the outcome; the call has been done, so it is answered anyhow."""
        try:
            self._append(call, status)
        except TidegateError as error:
            log.warning("outcome not in the audit log", what=call.what, error=str(error))


def names_in(body: bytes) -> dict[str, Any]:
    """The fields of a body that may be kept."""
    try:
        said = json.loads(body or b"{}")
    except ValueError:
        return {}
    if not isinstance(said, dict):
        return {}
    return {key: said[key] for key in NAMED if said.get(key) not in (None, "", [], False)}
