"""What every family of resources shares: the services, lists, dry runs, preconditions.

Decides the envelope of answers: ``schema_version`` in each, ``items`` in lists, ``dry_run`` where
nothing was changed.
"""

from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from datetime import datetime
from enum import Enum
from typing import Annotated, Any

from fastapi import Depends, Query, Request
from pydantic import BaseModel, ConfigDict

from tidegate.errors import ConflictError, InvalidArgumentError
from tidegate.server.headers import whole_number
from tidegate.server.node_cluster import NodeCluster
from tidegate.server.runtime import Runtime
from tidegate.server.services import Services

SCHEMA_VERSION = 1

type Json = dict[str, Any]


def runtime(request: Request) -> Runtime:
    """What this node is at this moment."""
    found: Runtime = request.app.state.runtime
    return found


def services(request: Request) -> Services:
    """The services of this node.

    Raises:
        NotReadyError: it has none yet.
    """
    return runtime(request).services


def cluster(request: Request) -> NodeCluster:
    """This node as a member of its cluster."""
    return runtime(request).cluster


Node = Annotated[Services, Depends(services)]
ClusterNode = Annotated[NodeCluster, Depends(cluster)]
Now = Annotated[Runtime, Depends(runtime)]
DryRun = Annotated[bool, Query(description="Check everything and change nothing.")]


class Body(BaseModel):
    """A request's body; a key that means nothing is refused, so that a misspelt one is noticed."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def one(value: Json, *, dry_run: bool = False) -> Json:
    """An object's envelope."""
    envelope: Json = {"schema_version": SCHEMA_VERSION, **plain(value)}
    if dry_run:
        envelope["dry_run"] = True
    return envelope


def many(values: Iterable[Any]) -> Json:
    """A list's envelope."""
    return {"schema_version": SCHEMA_VERSION, "items": [plain(value) for value in values]}


def plain(value: Any) -> Any:
    """A value as JSON has it: records as objects, times in RFC 3339 UTC, sets sorted."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset | list | tuple):
        items = [plain(item) for item in value]
        return sorted(items) if isinstance(value, set | frozenset) else items
    return value


def check_version(if_match: str | None, version: int, what: str) -> None:
    """Refuse a change to another version than the caller saw (``If-Match``).

    Raises:
        InvalidArgumentError: the header is no entity tag of ours.
        ConflictError: the version has moved on.
    """
    if if_match is None or if_match.strip() == "*":
        return
    wanted = whole_number(if_match.strip().removeprefix("W/").strip('"'))
    if wanted is None:
        raise InvalidArgumentError(
            f"If-Match {if_match!r} is not an entity tag of this API",
            next_step="send back the ETag of an earlier answer",
        )
    if wanted != version:
        raise ConflictError(
            f"{what} is at version {version}, not {wanted}: it was changed meanwhile",
            next_step="look at it again and repeat the command",
            version=version,
        )
