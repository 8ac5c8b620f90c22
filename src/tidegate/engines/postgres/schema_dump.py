r"""Runs pg_dump and pg_restore, and hands out the statements of a schema item by item.

The custom format is used because its item list says what each piece is, with the catalogue's own
ids; a plain script does not, and starts with commands and settings other servers do not know
(``\restrict``, ``transaction_timeout``; datapath rule 23). Everything before the first item is
dropped. The program is of the source's major version or newer: an older one refuses.

The password reaches the programs through their environment, never through their arguments.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg.conninfo import make_conninfo

from tidegate.conninfo import guarded, parsed
from tidegate.engines.postgres.connection import SERVER_KEEPALIVES
from tidegate.engines.postgres.local import find_programs
from tidegate.errors import FailedPreconditionError, TidegateError
from tidegate.topology.connections import redacted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.topology.connections import Endpoint

DUMP_TIMEOUT_S = 600.0
LOCK_TIMEOUT_S = 5.0
#: Major version of the programs in our own dependencies.
OWN_MAJOR = 18

#: Settings of pg_dump's session; these win over those of our role.
_OPTIONS = " ".join(
    f"-c {name}={value}" for name, value, _ in (*SERVER_KEEPALIVES, ("role", "none", 10))
)

_ENTRY = re.compile(r"^\d+; (\d+) (\d+) (.*)$", re.MULTILINE)
_HEADER = re.compile(
    r"^--\n-- Name: (?P<name>.*); Type: (?P<kind>[A-Z ]+);"
    r" Schema: (?P<schema>.*); Owner: (?P<owner>.*)\n--\n",
    re.MULTILINE,
)
_END = "\n--\n-- PostgreSQL database dump complete\n--\n"


class SchemaDumpError(TidegateError):
    """pg_dump or pg_restore failed."""

    code = "TG-DMP-001"


@dataclass(frozen=True)
class Item:
    """One entry of a dump: what it is, and the statements that make it.

    ``class_oid`` and ``oid`` are the catalogue's at the source; both 0 for comments and grants,
    whose ``name`` then says what they are about: ``TABLE t``, ``INDEX i``.
    """

    class_oid: int
    oid: int
    kind: str
    schema: str
    name: str
    owner: str
    ddl: str


def dump_items(
    endpoint: Endpoint, *, major: int, snapshot: str, arguments: Sequence[str]
) -> list[Item]:
    """The schema items of a database, in the order in which they can be made.

    Args:
        endpoint: the database.
        major: the server's major version.
        snapshot: an exported snapshot, so that the dump agrees with what its owner reads.
        arguments: which objects: ``--table``, ``--exclude-table``.

    Raises:
        FailedPreconditionError: no pg_dump of that major version or newer is to be found.
        SchemaDumpError: a program failed.
    """
    programs = _programs(major)
    with tempfile.TemporaryDirectory(prefix="tidegate-dump-") as folder:
        file = Path(folder) / "schema.dump"
        _run(
            [
                str(programs / "pg_dump"),
                "--format=custom",
                "--schema-only",
                "--no-publications",
                "--no-subscriptions",
                "--no-tablespaces",
                f"--lock-wait-timeout={round(LOCK_TIMEOUT_S * 1000)}",
                f"--snapshot={snapshot}",
                f"--file={file}",
                *arguments,
                f"--dbname={_guarded(endpoint)}",
            ],
            endpoint,
        )
        return _items(programs / "pg_restore", file)


def _items(restore: Path, file: Path) -> list[Item]:
    """The items in the list's order; a script has them in another, grants last."""
    listing = _run([str(restore), "--list", str(file)])
    return _of(restore, file, list(_ENTRY.finditer(listing)))


def _of(restore: Path, file: Path, entries: Sequence[re.Match[str]]) -> list[Item]:
    """The items of these entries of the list.

    Where a function's text looks like a header, or two items have one name, they are parted until
    each is alone: a few runs of pg_restore more, and not one for each item.
    """
    if not entries:
        return []
    headers = list(_HEADER.finditer(text := _script(restore, file, [e[0] for e in entries])))
    pieces = {
        _named(header): (header, _body(text[header.end() : end]))
        for header, end in zip(headers, [h.start() for h in headers[1:]] + [len(text)], strict=True)
    }
    if len(headers) == len(entries) and pieces.keys() == {e[3].strip() for e in entries}:
        return [_item(entry, *pieces[entry[3].strip()]) for entry in entries]
    if len(entries) == 1:
        return [_item(entries[0], *_piece(restore, file, entries[0][0]))]
    half = len(entries) // 2
    return [*_of(restore, file, entries[:half]), *_of(restore, file, entries[half:])]


def _named(header: re.Match[str]) -> str:
    """What the list calls the item of this header."""
    owner = "" if header["owner"] == "-" else header["owner"]
    return f"{header['kind']} {header['schema']} {header['name']} {owner}".strip()


def _piece(restore: Path, file: Path, line: str) -> tuple[re.Match[str], str]:
    text = _script(restore, file, [line])
    header = _HEADER.search(text)
    if header is None:
        raise SchemaDumpError(f"pg_restore printed nothing for {line!r}", next_step="report this")
    return header, _body(text[header.end() :])


def _item(entry: re.Match[str], header: re.Match[str], ddl: str) -> Item:
    return Item(
        class_oid=int(entry[1]),
        oid=int(entry[2]),
        kind=header["kind"],
        schema="" if header["schema"] == "-" else header["schema"],
        name=header["name"],
        owner="" if header["owner"] == "-" else header["owner"],
        ddl=ddl,
    )


def _script(restore: Path, file: Path, lines: list[str]) -> str:
    wanted = file.with_name("items.list")
    wanted.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return _run(
        [
            str(restore),
            "--file=-",
            "--no-tablespaces",
            "--no-table-access-method",
            f"--use-list={wanted}",
            str(file),
        ]
    )


def _body(text: str) -> str:
    return text.partition(_END)[0].strip()


def _programs(major: int) -> Path:
    """The folder of a pg_dump that can read a server of this major version."""
    if major <= OWN_MAJOR:
        return Path(find_programs(OWN_MAJOR).path("pg_dump")).parent
    found = shutil.which("pg_dump")
    version = re.search(r" (\d+)", _run([found, "--version"])) if found else None
    if found is None or version is None or int(version[1]) < major:
        raise FailedPreconditionError(
            f"the source is PostgreSQL {major}; its schema needs pg_dump {major} or newer",
            next_step=f"install the client programs of PostgreSQL {major} on this node's PATH",
        )
    return Path(found).parent


def _guarded(endpoint: Endpoint) -> str:
    given = parsed(endpoint.conninfo)
    options = f"{given.get('options') or os.environ.get('PGOPTIONS', '')} {_OPTIONS}".strip()
    return make_conninfo("", **{**given, **guarded(given), "options": options})


def _run(command: list[str], endpoint: Endpoint | None = None) -> str:
    environment = {k: v for k, v in os.environ.items() if k in ("HOME", "PATH") or k[:2] == "PG"}
    # the name by which a preflight knows our own sessions
    environment |= {"LC_ALL": "C", "PGCONNECT_TIMEOUT": "10", "PGAPPNAME": "tidegate/schema"}
    password = endpoint.password() if endpoint is not None else None
    if password is not None:
        environment["PGPASSWORD"] = password
    name = Path(command[0]).name
    try:
        done = subprocess.run(  # noqa: S603 - PostgreSQL's programs with our own arguments
            command,
            check=False,
            capture_output=True,
            text=True,
            encoding="utf-8",
            stdin=subprocess.DEVNULL,
            env=environment,
            timeout=DUMP_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise SchemaDumpError(
            f"{name} did not end within {DUMP_TIMEOUT_S:g} s",
            next_step="look for locks on the source's tables and repeat the command",
        ) from None
    if done.returncode:
        text = redacted(" ".join(done.stderr.split())[-1000:])
        if password:
            text = text.replace(password, "***")
        raise SchemaDumpError(f"{name} failed: {text}", next_step="mend what it names, then repeat")
    return done.stdout
