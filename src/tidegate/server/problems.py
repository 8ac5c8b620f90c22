"""How errors leave the API: ``application/problem+json`` (RFC 9457), from the one error tree.

Decides the body and status of every failure, whoever raised it: a Tidegate error carries both; a
request that does not fit its description is an invalid argument; anything else is a bug, which is
logged whole and answered without its inside.
"""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from structlog import get_logger

from tidegate.errors import InvalidArgumentError, NotFoundError, TidegateError

log = get_logger("tidegate.api")

MEDIA_TYPE = "application/problem+json"


def problem_of(error: TidegateError) -> dict[str, object]:
    """The body."""
    doc = (type(error).__doc__ or "Error").strip().splitlines()[0]
    return {
        "type": f"urn:tidegate:error:{error.code}",
        "title": doc.rstrip("."),
        "status": error.http_status,
        "detail": error.message,
        "code": error.code,
        "next_step": error.next_step,
        "retryable": error.retryable,
        "outcome_unknown": error.outcome_unknown,
        "exit_status": int(error.exit_status),
        "details": error.details,
    }


def answer(error: TidegateError) -> JSONResponse:
    """The response."""
    notes = getattr(error, "__notes__", ())
    if notes:  # not for callers of the API
        log.warning("request failed", code=error.code, error=error.message, notes=list(notes))
    headers = {"WWW-Authenticate": "Bearer"} if error.http_status == 401 else None
    return JSONResponse(
        problem_of(error), status_code=error.http_status, media_type=MEDIA_TYPE, headers=headers
    )


def install(app: FastAPI) -> None:
    """Answer every failure of ``app`` this way."""

    @app.exception_handler(TidegateError)
    def known(_request: Request, error: TidegateError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        findings = [
            {"field": ".".join(str(part) for part in each["loc"][1:]), "reason": each["msg"]}
            for each in error.errors()
        ]
        named = "; ".join(f"{f['field'] or 'body'}: {f['reason']}" for f in findings)
        return answer(
            InvalidArgumentError(
                f"the request cannot be read: {named}",
                next_step="compare it with /openapi.json",
                findings=findings,
            )
        )

    @app.exception_handler(HTTPException)
    def by_status(request: Request, error: HTTPException) -> JSONResponse:
        path = request.url.path
        if error.status_code == 404:
            found: TidegateError = NotFoundError(
                f"there is no resource {path}", next_step="see /openapi.json"
            )
        else:
            found = InvalidArgumentError(
                f"{request.method} {path}: {error.detail}", next_step="see /openapi.json"
            )
        problem = {**problem_of(found), "status": error.status_code}
        return JSONResponse(
            problem,
            status_code=error.status_code,
            media_type=MEDIA_TYPE,
            headers=error.headers,
        )

    @app.exception_handler(Exception)
    def bug(request: Request, error: Exception) -> JSONResponse:
        log.error("bug in a request", path=request.url.path, exc_info=error)
        return answer(
            TidegateError(
                f"the node failed in a way it should not: {type(error).__name__}",
                next_step="read the node's log; please report it",
            )
        )
