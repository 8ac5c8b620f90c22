"""The program that parses the bodies of functions: the only place that knows the parser.

It runs in a process of its own (:mod:`tidegate.engines.postgres.bodies.child`), because a parser
written in C may end it, or never come back, at a body that the server accepts. One line of JSON
comes in for each body, one goes out. It reads nothing else, and connects to nothing.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import pgparse

from tidegate.engines.postgres.bodies import plpgsql, trees
from tidegate.engines.postgres.bodies.child import BODY_CPU_MAX_S, MEMORY_BYTES_MAX
from tidegate.engines.postgres.bodies.names import Body, Kind, Reading, Reference
from tidegate.engines.postgres.script import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Iterable

#: How often a body is changed before it is given up: variables that must be declared otherwise.
MENDED_MAX: Final = 200
DYNAMIC_CHARS_MAX: Final = 200
RECURSION_MAX: Final = 20_000


def read(body: Body) -> Reading:
    """What a body refers to; a body that cannot be parsed says so in ``error``."""
    try:
        if body.language == "sql":
            found = trees.Found()
            trees.collect(pgparse.parse(body.text), found)
            return _reading(found, ())
        return _read_plpgsql(body)
    except pgparse.PGQueryError as error:
        return Reading(error=str(error.args[0]))
    except (UnreadableError, RecursionError, KeyError, UnicodeError) as error:
        return Reading(error=f"{type(error).__name__}: {error}")


def _read_plpgsql(body: Body) -> Reading:
    adapted = plpgsql.adapt(body)
    tree: Any = None
    for _ in range(MENDED_MAX):
        try:
            tree = pgparse.parse_pgsql(plpgsql.function(adapted))
            break
        except pgparse.PGQueryError as error:
            changed = plpgsql.mended(adapted, str(error.args[0]))
            if changed is None:
                raise
            adapted = changed
    if tree is None:
        return Reading(error="it has too many variables of row types")
    found = trees.Found()
    for name in {*plpgsql.type_names(tree), *adapted.types}:
        _type(name, found)
    dynamic = []
    for statement, is_dynamic in dict.fromkeys(plpgsql.expressions(tree)):
        parsed = pgparse.parse(statement)
        trees.collect(parsed, found)
        if is_dynamic and not _read_constant(parsed, found):
            dynamic.append(statement.removeprefix("SELECT ")[:DYNAMIC_CHARS_MAX])
    return _reading(found, dynamic)


def _read_constant(parsed: Any, found: trees.Found) -> bool:
    """Read the text of an ``EXECUTE`` that is written out in full; False when it is not."""
    text = trees.constant_text(parsed)
    if text is None:
        return False
    try:
        trees.collect(pgparse.parse(text), found)
    except pgparse.PGQueryError:
        return False
    return True


def _type(name: str, found: trees.Found) -> None:
    base, meant = plpgsql.base_of(name)
    if meant:
        parts = trees.dotted(base)
        if meant == "column":
            parts = parts[:-1]
        if parts:
            found.references.add(Reference(Kind.RELATION, *trees.qualified(parts)))
        return
    try:
        trees.collect(pgparse.parse(f"SELECT NULL::{base}"), found)
    except pgparse.PGQueryError:
        return


def _reading(found: trees.Found, dynamic: Iterable[str]) -> Reading:
    return Reading(
        references=tuple(sorted(found.settled())),
        dynamic=tuple(dict.fromkeys(dynamic)),
        search_paths=tuple(found.search_paths),
    )


def main() -> None:
    """Answer bodies, one line each, until the input ends."""
    sys.setrecursionlimit(RECURSION_MAX)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for line in sys.stdin:
        # Ends the process, also inside of the parser, when a body takes too long.
        signal.setitimer(signal.ITIMER_PROF, BODY_CPU_MAX_S)
        print(json.dumps(read(Body.from_json(json.loads(line))).to_json()), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
