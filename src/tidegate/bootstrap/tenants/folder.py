"""A folder of SQL files as a migration source: ``NNN_name.sql``, in the order of their numbers.

Decides whether a folder may be run at all, before anything is: numbers that are missing or there
twice, names that are none, files that cannot be read as SQL, that would end the transaction they
run in, or that were edited after a tenant got them. All findings are told at once.

A file whose first lines hold the comment ``-- tidegate: no-transaction`` runs statement by
statement outside of a transaction, as ``CREATE INDEX CONCURRENTLY`` needs. It is run again from its
beginning after an interruption, so it has to be written so that this does no harm.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tidegate.bootstrap.tenants.faults import MigrationSourceError
from tidegate.bootstrap.tenants.versions import Chain, Version
from tidegate.engines.postgres.script import (
    Statement,
    UnreadableError,
    reads_from_client,
    statements,
    transaction_control,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_NAME: Final = re.compile(r"(?P<number>\d+)_(?P<name>[^/\s]+)\.sql")
_DIRECTIVE: Final = re.compile(r"^--\s*tidegate:\s*(?P<words>.*?)\s*$", re.MULTILINE)
NO_TRANSACTION: Final = "no-transaction"
FILE_BYTES_MAX: Final = 32 * 1024 * 1024
FILES_MAX: Final = 20_000


@dataclass(frozen=True, slots=True)
class Script:
    """One file: its version, and what is sent to the server."""

    version: Version
    file: str
    text: str
    statements: tuple[str, ...]
    """One by one; only for a file without a transaction."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that may be run."""

    scripts: tuple[Script, ...]

    @property
    def chain(self) -> Chain:
        """The versions in order."""
        return Chain(tuple(script.version for script in self.scripts))

    def of(self, version: str) -> Script:
        """The script of a version."""
        return next(script for script in self.scripts if script.version.id == version)


def read_folder(path: str) -> Folder:
    """Read and check a folder.

    Raises:
        MigrationSourceError: it cannot be read, or must not be run; ``findings`` lists all reasons.
    """
    try:
        names = sorted(entry.name for entry in Path(path).iterdir() if entry.suffix == ".sql")
        files = {name: _read(Path(path) / name) for name in names[:FILES_MAX]}
    except OSError as error:
        raise MigrationSourceError(
            f"the folder {path} cannot be read: {error.strerror}",
            next_step="give a folder that the node's account may read, on the node's machine",
        ) from None
    return check_folder(path, files)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(FILE_BYTES_MAX + 1)


def check_folder(path: str, files: Mapping[str, bytes]) -> Folder:
    """The scripts of a folder, given its ``.sql`` files.

    Raises:
        MigrationSourceError: it must not be run; ``findings`` lists all reasons.
    """
    scripts: list[Script] = []
    findings: list[dict[str, Any]] = []
    for name, content in sorted(files.items()):
        script, wrong = _script(name, content)
        findings += [_finding(name, each) for each in wrong]
        if script is not None:
            scripts.append(script)
    scripts.sort(key=lambda script: int(script.version.id))
    findings += _numbers(scripts)
    if not files:
        findings.append(_finding(path, "it holds no file named NNN_name.sql"))
    if findings:
        raise MigrationSourceError(
            f"the folder {path} cannot be run: {len(findings)} reasons",
            next_step="mend what is listed and try again; nothing was run",
            findings=findings,
        )
    return Folder(tuple(scripts))


def _finding(name: str, message: str) -> dict[str, Any]:
    return {"id": "TG-MIG-001", "object": name, "message": message, "severity": "error"}


def _script(name: str, content: bytes) -> tuple[Script | None, list[str]]:
    found = _NAME.fullmatch(name)
    if found is None:
        return None, ["its name is not NNN_name.sql, as in 001_create_orders.sql"]
    if len(content) > FILE_BYTES_MAX:
        return None, [f"it is larger than {FILE_BYTES_MAX} bytes"]
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
        cut = statements(text)
    except UnicodeDecodeError:
        return None, ["it is not UTF-8"]
    except UnreadableError as error:
        return None, [str(error)]
    directives = {word["words"] for word in _DIRECTIVE.finditer(_head(text))}
    unknown = sorted(directives - {NO_TRANSACTION})
    wrong = [f"the directive {each!r} is not known; there is {NO_TRANSACTION}" for each in unknown]
    wrong += [reason for statement in cut for reason in _refused(statement)]
    if "\0" in text:
        wrong.append("it holds a zero byte")
    if not cut:
        wrong.append("it holds no statement")
    version = Version(
        id=found["number"],
        name=found["name"],
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        is_transactional=NO_TRANSACTION not in directives,
    )
    alone = () if version.is_transactional else tuple(statement.text for statement in cut)
    return Script(version, name, text, alone), wrong


def _head(text: str) -> str:
    """The comments and empty lines a file begins with."""
    lines = []
    for line in text.split("\n"):
        if line.strip() and not line.startswith("--"):
            break
        lines.append(line)
    return "\n".join(lines)


def _refused(statement: Statement) -> list[str]:
    control = transaction_control(statement)
    if control is not None:
        return [f"line {statement.line}: {control} would end the transaction the file runs in"]
    if reads_from_client(statement):
        return [f"line {statement.line}: COPY from or to the client cannot be run"]
    return []


def _numbers(scripts: Iterable[Script]) -> list[dict[str, Any]]:
    """Numbers that are there twice, or missing between the first and the last."""
    found: list[dict[str, Any]] = []
    previous: Script | None = None
    for script in scripts:
        if previous is not None:
            before, here = int(previous.version.id), int(script.version.id)
            if here == before:
                found.append(_finding(script.file, f"its number is also that of {previous.file}"))
            elif here != before + 1 and not _looks_like_time(script.version.id):
                missing = f"{before + 1:0{len(script.version.id)}d}"
                found.append(
                    _finding(script.file, f"{missing} is missing between it and {previous.file}")
                )
        previous = script
    return found


def _looks_like_time(number: str) -> bool:
    """Whether a number is a date or time, ``20260131`` and longer, and so has gaps by nature."""
    return len(number) >= 8


def check_unedited(path: str, chain: Chain, recorded: Mapping[str, str]) -> None:
    """Refuse a source in which versions that tenants have were edited or taken away.

    Args:
        path: of the folder, for the error.
        chain: as found now.
        recorded: by version, the hash of the text that some tenant got.

    Raises:
        MigrationSourceError: naming every such version.
    """
    now = {version.id: version.sha256 for version in chain.versions}
    findings = []
    for version, sha256 in sorted(recorded.items()):
        if version not in now:
            findings.append(_finding(version, "tenants have it, but its file is gone"))
        elif now[version] != sha256:
            findings.append(_finding(version, "its file was edited after tenants got it"))
    if findings:
        raise MigrationSourceError(
            f"the folder {path} is not the one that tenants were upgraded from",
            next_step="restore the files as they were and put the change into a new one;"
            " nothing was run",
            findings=findings,
        )
