"""The HTTP API as one application: resources, authentication, errors, description.

Decides what every request passes: the API level it asks for, its token (health and metrics are
open), whether the owner has to answer it, whether it was answered before, and the counting of
answers. It must not decide anything
about resources.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.routing import Match

import tidegate
from tidegate.errors import ApiLevelError, InvalidArgumentError, TidegateError
from tidegate.server import metrics, problems
from tidegate.server.access import CALLER_STATE, AccessRole, Caller, heard, role_of
from tidegate.server.api import (
    audit,
    operations,
    schemas,
    tenants,
    tokens,
    topology,
    upgrade,
    vdiffs,
    workflows,
)
from tidegate.server.api import cluster as cluster_api
from tidegate.server.api import node as node_api
from tidegate.server.auditing import Auditing
from tidegate.server.bounds import Bounds, check_headers
from tidegate.server.description import describe
from tidegate.server.forwarding import CALLER_HEADER, Forward
from tidegate.server.headers import whole_number
from tidegate.server.idempotency import Idempotency
from tidegate.server.peers import peer_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tidegate.server.runtime import Runtime

LEVEL_HEADER = "Tidegate-Api-Level"
ROUTERS = (
    node_api.health,
    node_api.router,
    cluster_api.router,
    tokens.router,
    audit.router,
    topology.router,
    schemas.router,
    workflows.router,
    workflows.verbs,
    vdiffs.router,
    operations.router,
    tenants.router,
    upgrade.router,
)
_ROUTES = [
    (route, role_of(route.dependencies))
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute)
]
OPEN_PATHS = frozenset({"/livez", "/readyz", "/metrics", "/openapi.json"})


def create_app(runtime: Runtime | None) -> FastAPI:
    """The application; without a node it can only describe itself."""
    app = FastAPI(
        title="Tidegate",
        version=str(node_api.API_LEVEL),
        summary=tidegate.__doc__,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=operation_id,
    )
    for router in ROUTERS:
        app.include_router(router)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]  # FastAPI's own way
    problems.install(app)
    if runtime is not None:
        app.state.runtime = runtime
        app.add_middleware(Idempotency, runtime=runtime)
        app.add_middleware(Auditing, runtime=runtime, needed=needed_role)
        app.add_middleware(Forward, runtime=runtime)
        app.add_middleware(Bounds, body_max_bytes=runtime.settings.limits.body_max_bytes)
        app.add_middleware(Gate, runtime=runtime)
    return app


def needed_role(scope: Scope) -> AccessRole | None:
    """The role that the route of a request declares; None where there is no such route."""
    for route, role in _ROUTES:
        if route.matches(scope)[0] is Match.FULL:
            return role
    return None


def operation_id(route: APIRoute) -> str:
    """Names of operations in the description: the function's, which is unique."""
    return route.name


class Gate:
    """Lets a request pass or answers it at once; plain ASGI, so that streams pass unbuffered."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self._app = app
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[LEVEL_HEADER] = str(node_api.API_LEVEL)
                route = getattr(scope.get("route"), "path", metrics.OTHER)
                method = scope["method"] if scope["method"] in metrics.METHODS else metrics.OTHER
                counting = self._runtime.condition.metrics
                if counting is not None:
                    counting.requests.labels(method, route, message["status"]).inc()
            await send(message)

        try:
            await self._check(Request(scope))
        except TidegateError as error:
            await problems.answer(error)(scope, receive, counted)
            return
        await self._app(scope, receive, counted)

    async def _check(self, request: Request) -> None:
        check_headers(request.scope, self._runtime.settings.headers_max_bytes)
        if request.url.path in OPEN_PATHS:
            return
        caller = await self._caller(request)
        request.scope.setdefault("state", {})[CALLER_STATE] = caller
        needed = needed_role(request.scope)
        if needed is not None:
            caller.check(needed)
        level = request.headers.get(LEVEL_HEADER)
        wanted = whole_number(level) if level else 0
        if wanted is None:
            raise InvalidArgumentError(
                f"the header {LEVEL_HEADER} is no whole number",
                next_step=f"send {LEVEL_HEADER}: {node_api.API_LEVEL}, or leave it out",
            )
        if wanted > node_api.API_LEVEL:
            raise ApiLevelError(
                f"the request needs API level {wanted}, this node has {node_api.API_LEVEL}",
                next_step="bring node and command line to the same version",
            )

    async def _caller(self, request: Request) -> Caller:
        peer = peer_of(request.scope)
        if peer is not None:  # it has checked the token before it passed the request on
            return heard(request.headers.get(CALLER_HEADER), peer)
        return await asyncio.to_thread(
            self._runtime.tokens.check,
            request.headers.get("Authorization"),
            request.client.host if request.client else "",
        )
