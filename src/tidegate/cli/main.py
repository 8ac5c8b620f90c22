"""The command line: finds the command, runs it, and turns every end into an exit status.

Decides how failures look (code, sentence, next step; JSON with ``-o json``) and that data alone
goes to standard output. It must import nothing heavy: a noun's module is loaded when it is called.
"""

from __future__ import annotations

import json
import os
import sys
from functools import cache
from typing import TYPE_CHECKING

from tidegate.cli.lifetime import AT_END
from tidegate.cli.nouns import NOUNS, SUMMARY, root_help
from tidegate.cli.words import spelled_out
from tidegate.errors import (
    DetachedError,
    ExitStatus,
    TidegateError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cyclopts import App


@cache
def build_app() -> App:
    """The whole command tree, one for a process; nouns are loaded when they are used."""
    from cyclopts import App, Group, Parameter  # noqa: PLC0415 - `--help` must not wait for it

    import tidegate  # noqa: PLC0415 - same

    app = App(
        name="tidegate",
        help=SUMMARY,
        version=tidegate.__version__,
        default_parameter=Parameter(negative=(), show_default=False),
        suppress_keyboard_interrupt=False,
        help_format="plaintext",
    )
    for number, (heading, nouns) in enumerate(NOUNS):
        group = Group(heading, sort_key=number)
        for name, module, text in nouns:
            app.command(f"tidegate.cli.{module}:app", name=name, help=text, group=group)
    return app


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the exit status."""
    if not arguments or list(arguments) in (["--help"], ["-h"], ["help"]):
        sys.stdout.write(root_help())
        return ExitStatus.DONE if arguments else ExitStatus.USAGE
    if list(arguments) in (["--version"], ["version"]):
        from tidegate import __version__  # noqa: PLC0415 - only here

        sys.stdout.write(f"{__version__}\n")
        return ExitStatus.DONE
    as_json = _wants_json(arguments)
    try:
        return _call(spelled_out(list(arguments)))
    except TidegateError as error:
        _show(error, as_json=as_json)
        return error.exit_status
    except KeyboardInterrupt:
        _show(
            DetachedError(
                "interrupted; what the node was asked to do goes on there",
                next_step="tidegate workflow list",
            ),
            as_json=as_json,
        )
        return ExitStatus.INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough. Nothing more may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.DONE
    finally:
        AT_END.close()


def _call(arguments: Sequence[str]) -> int:
    from cyclopts import CycloptsError  # noqa: PLC0415 - `--help` must not wait for it

    if arguments[0].startswith("-"):
        raise UsageError(
            f"{arguments[0]} stands before the command; options follow it",
            next_step="tidegate --help lists the commands, and each has --help",
        )
    try:
        result = build_app()(
            list(arguments), exit_on_error=False, print_error=False, result_action="return_value"
        )
    except CycloptsError as error:
        raise UsageError(
            " ".join(str(error).split()),
            next_step=" ".join(["tidegate", *(error.command_chain or ()), "--help"]),
        ) from None
    sys.stdout.flush()
    return result if isinstance(result, int) else ExitStatus.DONE


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether the output was asked for as JSON, even on a line that cannot be parsed."""
    joined = " ".join(arguments)
    return any(
        f in joined for f in ("-o json", "-o=json", "-ojson", "--output json", "--output=json")
    )


def _show(error: TidegateError, *, as_json: bool) -> None:
    if as_json:
        problem = {**error.to_json(), "exit_status": int(error.exit_status)}
        sys.stderr.write(json.dumps({"error": problem}) + "\n")
        return
    lines = [f"error {error.code}: {error.message}"]
    for finding in error.details.get("findings") or ():
        if isinstance(finding, dict) and "message" in finding:
            what = finding.get("id") or finding.get("code") or finding.get("check") or ""
            where = " ".join(filter(None, (what, finding.get("object"))))
            lines.append(f"  {finding.get('severity', 'error')} {where}: {finding['message']}")
            if finding.get("next_step"):
                lines.append(f"    next: {finding['next_step']}")
    if error.next_step:
        lines.append(f"  next: {error.next_step}")
    sys.stderr.write("\n".join(lines) + "\n")


def main() -> None:
    """Entry point of ``tidegate`` and ``tg``."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
