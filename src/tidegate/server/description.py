"""The OpenAPI document: what FastAPI derives from the routes, corrected to what is true.

Decides how every failure is described (``problem+json``, never 422, which is not sent), which
answers have which shape (:mod:`tidegate.server.shapes`), and that health and metrics need no token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi.openapi.utils import get_openapi

from tidegate.server import problems
from tidegate.server.shapes import OTHERS, SHAPES, schemas

if TYPE_CHECKING:
    from fastapi import FastAPI

type Json = dict[str, Any]

#: Every failure of a resource, by status. Which error it is, its ``code`` says.
FAILURES: Final = {
    "400": "The request cannot be right; nothing was changed.",
    "401": "There is no token, or it is none of ours.",
    "403": "The token's role may not do this.",
    "404": "Something the request names does not exist.",
    "409": "A name is taken, or somebody else changed or holds what was wanted.",
    "412": "Something else has to be done first; nothing was changed.",
    "413": "The body is larger than the node takes.",
    "500": "Something failed that the request could not know; the body says what.",
    "502": "A database cannot be reached, or refuses.",
    "503": "The node, its owner or the cluster database cannot answer now.",
    "504": "A wait ended; the body says what goes on.",
}

PROBLEM: Final[Json] = {
    "title": "Problem",
    "description": "A failure, as RFC 9457 has it; `code` never changes its meaning.",
    "type": "object",
    "required": [
        "type",
        "title",
        "status",
        "detail",
        "code",
        "next_step",
        "retryable",
        "outcome_unknown",
        "exit_status",
        "details",
    ],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What happened, to what."},
        "code": {"type": "string", "pattern": "^TG-[A-Z]+-[0-9A-Z]+$"},
        "next_step": {"type": "string", "description": "What to do next."},
        "retryable": {"type": "boolean"},
        "outcome_unknown": {"type": "boolean"},
        "exit_status": {"type": "integer", "description": "Of the command line."},
        "details": {"type": "object"},
    },
}


def describe(app: FastAPI) -> Json:
    """The document, made once."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            openapi_version=app.openapi_version,
            routes=app.routes,
        )
        app.openapi_schema = _corrected(made)
    return app.openapi_schema


def _corrected(document: Json) -> Json:
    components = document["components"]
    for name in ("HTTPValidationError", "ValidationError", "Json"):
        components["schemas"].pop(name, None)
    components["schemas"].update(schemas(), Problem=PROBLEM)
    components["responses"] = {
        f"Failure{status}": {
            "description": what,
            "content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, what in FAILURES.items()
    }
    for path in document["paths"].values():
        for operation in path.values():
            _correct(operation)
    return document


def _correct(operation: Json) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    name = operation["operationId"]
    if name in OTHERS:
        responses.update(OTHERS[name])
    else:
        (status,) = (each for each in responses if each.startswith("2"))
        content = responses[status].setdefault("content", {})
        content["application/json"] = {"schema": {"$ref": f"#/components/schemas/{SHAPES[name]}"}}
    if operation.get("security"):
        for status in FAILURES:
            responses[status] = {"$ref": f"#/components/responses/Failure{status}"}
