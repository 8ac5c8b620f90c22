"""Resources of the node itself: health, metrics, version, workers, routes, routers, doctor."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse
from pydantic import Field

import tidegate
from tidegate.server import doctor, metrics
from tidegate.server.access import OPERATE, READ
from tidegate.server.api.common import Body, DryRun, Json, Node, Now, many, one
from tidegate.server.headers import LARGEST, whole_number

router = APIRouter(prefix="/v1", tags=["node"])
health = APIRouter(tags=["health"])

API_LEVEL = 1


RouterName = Annotated[str, Path(pattern="^[A-Za-z0-9._-]{1,200}$")]


class RouterBody(Body):
    """What a router reports."""

    revision: int = Field(ge=0, le=LARGEST)


@health.get("/livez")
def livez() -> Json:
    """The process answers."""
    return {"status": "alive"}


@health.get("/readyz")
def readyz(now: Now) -> JSONResponse:
    """The node can take work: its cluster database answers and what a crash left is taken up."""
    missing = now.not_ready()
    status = {"status": "ready"} if missing is None else {"status": "not ready", "why": missing}
    return JSONResponse(status, status_code=200 if missing is None else 503)


@health.get("/metrics", response_class=Response)
def show_metrics(now: Now) -> Response:
    """Metrics in Prometheus' text form."""
    found = now.condition.metrics
    if found is None:
        raise now.condition.refusal()
    return Response(found.text(), media_type=metrics.CONTENT_TYPE)


@router.get("/node", dependencies=[READ])
def show_node(now: Now) -> Json:
    """Version, start time, state directory, and how far the node is."""
    services = now.condition.services
    return one(
        {
            "version": tidegate.__version__,
            "api_level": API_LEVEL,
            "started_at": now.started_at,
            "state_dir": str(now.settings.state_dir),
            **now.show(),
            "revision": services.feed.current().revision if services else None,
        }
    )


@router.get("/spans", dependencies=[READ])
def list_spans(node: Node) -> Json:
    """The worker processes."""
    return many(node.supervisor.status())


@router.get("/doctor", dependencies=[READ])
def examine(node: Node) -> Json:
    """What a person should look at: databases, slots by the log they retain, workers."""
    return one(doctor.examine(node))


@router.get("/routes", responses={200: {"content": {"text/event-stream": {}}}}, dependencies=[READ])
def show_routes(
    node: Node,
    watch: Annotated[bool, Query(description="Stay and send an event for each change.")] = False,
    router: Annotated[
        str | None,
        Query(
            description="With watch: count this follower as a router of that name.",
            pattern="^[A-Za-z0-9._-]{1,200}$",
        ),
    ] = None,
    last_event_id: Annotated[str | None, Header(description="The revision seen last.")] = None,
) -> Response:
    """The routes: the topology as routers follow it, and every table already resolved.

    With ``watch`` the answer is a stream of server-sent events ``routes``, whose data is the whole
    topology and whose id is its revision; the present one comes first unless it was seen.
    """
    if watch:
        seen = whole_number(last_event_id) if last_event_id else None
        return EventSourceResponse(
            node.feed.follow(seen, router),
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
    current = node.feed.current()
    headers = {"ETag": f'"{current.revision}"'}
    return Response(current.text, media_type="application/json", headers=headers)


@router.get("/routers", dependencies=[READ])
def list_routers(node: Node) -> Json:
    """The routers that reported in the last minute, the revision each serves, and its state.

    ``following``: it answers and serves the routes of now. ``behind``: it serves earlier ones.
    ``late``: it has missed three reports.
    """
    revision, heard = node.store.revision(), node.routers.heard()
    return many(router.to_json(revision, heard.now_ms) for router in heard.routers)


@router.post("/routers/{name}", dependencies=[READ])
def report_router(node: Node, name: RouterName, body: RouterBody) -> Json:
    """A router says which revision it serves."""
    node.routers.report(name, body.revision)
    return one({"router": name, "revision": body.revision})


@router.delete("/routers/{name}", dependencies=[OPERATE])
def delete_router(node: Node, name: RouterName, dry_run: DryRun = False) -> Json:
    """A router has ended, or somebody says so for it: no switch asks it any more."""
    if not dry_run:
        node.routers.goodbye(name)
    return one({"router": name}, dry_run=dry_run)
