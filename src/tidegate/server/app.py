"""The HTTP API as one application: resources, authentication, errors, description.

Decides what every request passes: the API level it asks for, its token (health and metrics are
open), whether the owner has to answer it, whether it was answered before, and the counting of
answers. It must not decide anything
about resources.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.requests import Request

import tidegate
from tidegate.errors import ApiLevelError, InvalidArgumentError, TidegateError
from tidegate.server import metrics, problems
from tidegate.server.api import cluster as cluster_api
from tidegate.server.api import node as node_api
from tidegate.server.api import tenants, topology, upgrade, vdiffs, workflows
from tidegate.server.bounds import Bounds, check_headers
from tidegate.server.forwarding import Forward
from tidegate.server.headers import whole_number
from tidegate.server.idempotency import Idempotency
from tidegate.server.peers import peer_of

if TYPE_CHECKING:
    from fastapi.routing import APIRoute
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tidegate.server.runtime import Runtime

LEVEL_HEADER = "Tidegate-Api-Level"
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
    app.include_router(node_api.health)
    app.include_router(node_api.router)
    app.include_router(cluster_api.router)
    app.include_router(topology.router)
    app.include_router(workflows.router)
    app.include_router(workflows.verbs)
    app.include_router(vdiffs.router)
    app.include_router(tenants.router)
    app.include_router(upgrade.router)
    problems.install(app)
    if runtime is not None:
        app.state.runtime = runtime
        app.add_middleware(Idempotency, runtime=runtime)
        app.add_middleware(Forward, runtime=runtime)
        app.add_middleware(Bounds, body_max_bytes=runtime.settings.limits.body_max_bytes)
        app.add_middleware(Gate, runtime=runtime)
    return app


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
            self._check(Request(scope))
        except TidegateError as error:
            await problems.answer(error)(scope, receive, counted)
            return
        await self._app(scope, receive, counted)

    def _check(self, request: Request) -> None:
        check_headers(request.scope, self._runtime.settings.headers_max_bytes)
        if request.url.path in OPEN_PATHS:
            return
        if peer_of(request.scope) is None:  # a member has checked the token before it passed on
            self._runtime.tokens.check(request.headers.get("Authorization"))
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
