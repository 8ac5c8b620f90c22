"""Writes the reference of all preflight checks from the checks themselves.

Decides how the page reads. A test holds ``docs/reference/preflight.md`` equal to it; write it anew
with ``python -m tidegate.workflow.preflight.reference > docs/reference/preflight.md``.
"""

from __future__ import annotations

import sys
from itertools import groupby
from typing import TYPE_CHECKING, Final

from tidegate.workflow.preflight.check import Verb, verbs_again
from tidegate.workflow.preflight.registry import CHECKS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.check import PreflightCheck

_INTRODUCTION: Final = """\
# Preflight findings

Before a workflow is created, every check on this page looks at the request, the topology and both
sides' servers. At each target everything that `create` would make is made in a transaction that is
rolled back; a source is only read. Nothing is changed. All findings are reported at once, each with
its id, what was found where, why it matters and what to run next.

An **error** refuses the workflow (exit status 4, code `TG-PRE-001`); a **warning** should be read;
an **info** may be. Ids are stable: none is ever given another meaning. Errors marked *can be
accepted* are taken as warnings when their id is given to `create --allow`, for as long as the
workflow exists.

The checks that name a verb are looked at again whenever that verb is run or dry-run, on the
catalogue as it is then: what changed since create is refused or named before anything happens.
With `--on-ddl IGNORE` a difference of columns (TG-PF-404) warns instead of refusing; `start`
refuses a foreign key (TG-PF-210) only on the side that rows are applied to.

This page is written from the checks: see `src/tidegate/workflow/preflight/checks/` and, for what
only PostgreSQL can fail, `src/tidegate/engines/postgres/checks/`.
"""

_CHAPTERS: Final = {
    "1": "Request and topology",
    "2": "Tables",
    "3": "Servers",
    "4": "Targets",
    "5": "Since create",
}

_VERBS: Final = {
    Verb.SWITCH: "switchtraffic",
    Verb.REVERSE: "reversetraffic",
    Verb.START: "start",
    Verb.COMPLETE: "complete",
    Verb.CANCEL: "cancel",
}


def render_reference() -> str:
    """The page, ending with one line feed."""
    return "\n".join(_lines()).rstrip("\n") + "\n"


def _lines() -> Iterator[str]:
    yield _INTRODUCTION
    yield "| id | severity | what is wrong |"
    yield "|---|---|---|"
    for check in CHECKS.values():
        yield f"| [{check.id}](#{check.id.lower()}) | {check.severity} | {check.title} |"
    yield ""
    for chapter, checks in groupby(CHECKS.values(), key=lambda check: check.id[6]):
        yield f"## {_CHAPTERS[chapter]}"
        yield ""
        for check in checks:
            yield from _entry(check)


def _entry(check: PreflightCheck) -> Iterator[str]:
    accepted = ", can be accepted" if check.waivable else ""
    yield f"### {check.id}"
    yield ""
    yield f"**{check.title}.** *{check.severity}{accepted}*"
    yield ""
    yield check.cause
    yield ""
    yield f"What to do: {check.remedy}."
    yield ""
    if again := verbs_again(check):
        verbs = ", ".join(f"`{_VERBS[verb]}`" for verb in _VERBS if verb in again)
        yield f"Looked at again by {verbs}."
        yield ""


if __name__ == "__main__":
    sys.stdout.write(render_reference())
