"""What commands share: the flags that mean the same everywhere, the client, and asking before harm.

Decides names and meanings of shared flags once. It must not import anything heavy at the top: help
is shown without a client.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from tidegate.cli import settings
from tidegate.cli.lifetime import AT_END
from tidegate.cli.output import Column, Json, emit_items, emit_one, out
from tidegate.durations import typed_duration_s
from tidegate.errors import InvalidArgumentError

if TYPE_CHECKING:
    from tidegate.client import Client

type Form = Literal["table", "wide", "json", "yaml", "name"]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Common:
    """Flags of every command."""

    output: Annotated[
        Literal["table", "wide", "json", "yaml", "name"],
        Parameter(name=["--output", "-o"], help="Form of the output.", show_default=True),
    ] = "table"
    url: Annotated[str | None, Parameter(help="URL of the node.")] = None
    token: Annotated[
        str | None, Parameter(help="API token: env:NAME, file:/path, or the token itself.")
    ] = None
    context: Annotated[str | None, Parameter(help="Context of ~/.config/tidegate/config.toml.")] = (
        None
    )

    def client(self) -> Client:
        """A client of the node."""
        from tidegate.client import Client  # noqa: PLC0415 - help must not wait for it

        found = settings.resolve(url=self.url, token=self.token, context=self.context)
        assert found.url.value is not None
        verify = found.ca_file.value or True
        client = Client(found.url.value, found.token.value, verify=verify)
        return AT_END.enter_context(client)

    def items(self, answer: Json, columns: tuple[Column, ...], name: Any = "name") -> None:
        """Print a list answer."""
        emit_items(self.output, answer, columns, name)

    def one(self, answer: Json, rows: list[tuple[str, Any]], name: str, *, more: str = "") -> None:
        """Print an object answer."""
        emit_one(self.output, answer, rows, name, more=more)

    def done(self, answer: Json, sentence: str, name: str) -> None:
        """Print that something was done, or would be."""
        if self.output in {"table", "wide"}:
            would = "would be " if answer.get("dry_run") else ""
            out(sentence.format(would=would))
        else:
            self.one(answer, [], name)


DEFAULTS = Common()

Workflow = Annotated[
    str, Parameter(name=["--workflow", "-w"], help="Name of the workflow.", required=True)
]
Target = Annotated[
    str,
    Parameter(name=["--target-keyspace", "-t"], help="Target keyspace.", required=True),
]
DryRun = Annotated[bool, Parameter(help="Check everything, say what would be done, do nothing.")]
Yes = Annotated[bool, Parameter(name=["--yes", "-y"], help="Do not ask.")]
Wait = Annotated[
    bool,
    Parameter(
        name="--wait",
        negative="--no-wait",
        help="Follow until it is done; Ctrl-C stops following, not the work.",
    ),
]
Watch = Annotated[
    bool, Parameter(help="Show again and again: bars on a terminal, JSON lines elsewhere.")
]
Recursive = Annotated[bool, Parameter(help="Remove what belongs to it as well.")]


def seconds(text: str) -> float:
    """A duration such as ``500ms``, ``30s``, ``2m``, or a number of seconds.

    Raises:
        InvalidArgumentError: it is none.
    """
    try:
        return typed_duration_s(text)
    except ValueError as error:
        raise InvalidArgumentError(f"{text!r} is not a duration", next_step=str(error)) from None


_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?:(?P<unit>[kmgt])(?:i?b)?|b)?", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


def size_of(text: str | None) -> int | None:
    """A size such as ``512MiB`` or ``20GB`` (both of 1024), or a number of bytes.

    Raises:
        InvalidArgumentError: it is none.
    """
    if text is None:
        return None
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise InvalidArgumentError(
            f"{text!r} is not a size", next_step="write 512MiB, 20GiB or a number of bytes"
        )
    return int(float(found["number"]) * 1024 ** _POWERS.get((found["unit"] or "").lower(), 0))


def names(given: str | None) -> list[str]:
    """A list written with commas."""
    return [name.strip() for name in (given or "").split(",") if name.strip()]


def shard_of(text: str) -> tuple[str, str]:
    """``KEYSPACE/SHARD`` as a pair.

    Raises:
        InvalidArgumentError: it is not of that form.
    """
    keyspace, slash, shard = text.partition("/")
    if not (keyspace and slash and shard):
        raise InvalidArgumentError(
            f"{text!r} is not a shard", next_step="write KEYSPACE/SHARD, as in customer/-80"
        )
    return keyspace, shard


def pairs(given: list[str] | None) -> dict[str, str]:
    """``key=value`` words, each perhaps several with commas between, as a dictionary.

    Raises:
        InvalidArgumentError: one has no ``=``.
    """
    found: dict[str, str] = {}
    key = ""
    for word in given or []:
        for part in word.split(","):
            name, equals, value = part.partition("=")
            if equals:
                key = name.strip()
                found[key] = value
            elif key:
                found[key] += f",{part}"  # a comma within a value
            else:
                raise InvalidArgumentError(
                    f"{word!r} is not KEY=VALUE", next_step="write KEY=VALUE"
                )
    return found


def read_json(path: str) -> Any:
    """The JSON in a file, or on standard input when the path is ``-``.

    Raises:
        InvalidArgumentError: it cannot be read.
    """
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        return json.loads(text)
    except OSError as error:
        raise InvalidArgumentError(
            f"{path} cannot be read: {error.strerror}", next_step="name a file, or - for stdin"
        ) from None
    except ValueError as error:
        raise InvalidArgumentError(f"{path} is not JSON: {error}", next_step="mend it") from None


def confirm(what: str, name: str, *, yes: bool, dry_run: bool) -> None:
    """Ask for the name of what is about to be removed.

    Args:
        what: is to be done: ``complete workflow move1``.
        name: to be typed.
        yes: do not ask.
        dry_run: nothing will be done, so there is nothing to ask.

    Raises:
        InvalidArgumentError: the answer is another, or there is nobody to ask.
    """
    if yes or dry_run:
        return
    if not sys.stdin.isatty():
        raise InvalidArgumentError(
            f"to {what}, a confirmation is needed, and there is no terminal to ask on",
            next_step="add --yes, or --dry-run to see what it would do",
        )
    sys.stderr.write(f"About to {what}. Type {name} to go on: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip() != name:
        raise InvalidArgumentError(
            "not confirmed; nothing was done", next_step=f"type {name}, or add --yes"
        )
