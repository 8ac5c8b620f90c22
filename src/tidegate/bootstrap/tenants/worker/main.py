"""Runs migrations that are programs, one tenant after another, in the user's own environment.

It is started by its path, with the Python of the application, and must therefore import nothing of
Tidegate, only the standard library; what an adapter needs besides (Alembic, Django, psycopg or
psycopg2) is the user's. It reads one JSON request a line from standard input and answers with one
JSON line each. What migrations print goes to standard error. At the end of its input it ends, so it
never outlives its node by more than the tenant it is working on.

The files beside are its adapters and what they share. They are loaded by name from this folder
before the user's is on the path, so that neither hides the other.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

ADAPTERS = {
    "alembic": "tidegate_alembic",
    "django": "tidegate_django",
    "python": "tidegate_function",
}
TRACEBACK_FRAMES = 3


def answer_stream() -> TextIO:
    """The real standard output; prints of anybody else go to standard error from now on."""
    handle = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return os.fdopen(handle, "w", encoding="utf-8")


def load(kind: str, folder: str) -> Any:
    """The adapter, with the user's folder first on the path."""
    here = str(Path(__file__).resolve().parent)
    adapter = importlib.import_module(ADAPTERS[kind])
    sys.path[:] = [folder, *(each for each in sys.path if each not in {here, folder})]
    return adapter


def failure(error: BaseException) -> dict[str, Any]:
    """A failure as the node reads it: the SQLSTATE, if it came from the server, and the words."""
    cause: Any = error
    sqlstate, lost = None, False
    for _ in range(10):
        found = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
        sqlstate = sqlstate or found
        lost = lost or bool(getattr(cause, "connection_invalidated", False))
        following = getattr(cause, "orig", None) or cause.__cause__ or cause.__context__
        if following is None or following is cause:
            break
        cause = following
    last = traceback.extract_tb(error.__traceback__)[-TRACEBACK_FRAMES:]
    where = " < ".join(f"{Path(f.filename).name} line {f.lineno}" for f in reversed(last))
    # What follows holds statements and values of rows.
    text = re.split(r"\n(?:\[SQL|DETAIL:)", str(error), maxsplit=1)[0].strip()
    return {
        "result": "failed",
        "sqlstate": sqlstate,
        "lost": lost,
        "message": f"{type(error).__name__}: {text} (at {where})",
    }


def main() -> None:
    """Answer requests until there are no more."""
    answers = answer_stream()
    adapter: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            source = request["source"]
            if adapter is None:
                adapter = load(source["kind"], request["folder"])
            if request["do"] == "describe":
                answer = {"result": "done", **adapter.describe(source)}
            else:
                answer = adapter.upgrade(request)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - told to the node
            answer = failure(error)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
