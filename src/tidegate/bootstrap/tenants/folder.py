"""A folder of SQL files as a migration source, in the order of the versions in their names.

Decides whether a folder may be run at all, before anything is: versions that are missing or there
twice, names that mean nothing, files that cannot be read as SQL, that would end the transaction
they run in, or that were edited after a tenant got them. All findings are told at once, and what
is left aside is named.

A file with the comment ``-- tidegate: no-transaction`` before its first statement runs statement
by statement outside a transaction; so does one that holds nothing but statements that cannot run
in one, such as ``CREATE INDEX CONCURRENTLY``. After an interruption it goes on with the statement
it was interrupted in.

The hash of a repeatable file is that of its text and of the source's values that it uses, so that
it runs again when one of them changes. Values of the tenant are not part of it.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tidegate.bootstrap.tenants import filenames
from tidegate.bootstrap.tenants.faults import MigrationSourceError
from tidegate.bootstrap.tenants.filenames import FileName, Way
from tidegate.bootstrap.tenants.versions import Chain, Version
from tidegate.engines.postgres import script as sql
from tidegate.engines.postgres.alone_statements import runs_alone
from tidegate.engines.postgres.placeholders import PlaceholderError, bind, slots

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

_DIRECTIVE: Final = re.compile(
    r"^[ \t*]*tidegate:[ \t]*(?P<words>.*?)[ \t]*$", re.MULTILINE | re.IGNORECASE
)
_OTHER_WAY: Final = re.compile(
    r"^\s*(migrate:\s*down|\+goose\s+down|\+migrate\s+down)\b", re.IGNORECASE
)
NO_TRANSACTION: Final = "no-transaction"
NO_VARIABLES: Final = "no-variables"
DIRECTIVES: Final = (NO_TRANSACTION, NO_VARIABLES)
FILE_BYTES_MAX: Final = 32 * 1024 * 1024
FILES_MAX: Final = 20_000
DEPTH_MAX: Final = 16
IGNORED_SHOWN_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Script:
    """One file: its version, and what is sent to the server."""

    version: Version
    file: str
    text: str
    pieces: tuple[sql.Piece, ...]
    """In order; one for the whole file, unless it has rows or runs without a transaction."""
    down: Script | None = None
    """What undoes it, if the folder has that."""

    variables: frozenset[str] = frozenset()
    """Names of the variables it uses."""

    def bound(self, values: Mapping[str, str]) -> Script:
        """The same with its variables replaced.

        Raises:
            PlaceholderError: a value cannot stand where it would.
        """
        if not self.variables:
            return self
        pieces = tuple(
            replace(each, text=bind(each.text, slots(each.text, each.line), values))
            for each in self.pieces
        )
        text = pieces[0].text if len(pieces) == 1 else self.text
        return replace(self, text=text, pieces=pieces, variables=frozenset())

    @property
    def has_rows(self) -> bool:
        """Whether a COPY in it reads rows from the file."""
        return any(piece.rows is not None for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that may be run."""

    scripts: tuple[Script, ...]
    ignored: tuple[str, ...] = ()
    """What lies in it and is not run, each with the reason."""
    repeatable: tuple[Script, ...] = ()
    """What runs after all others whenever its content has changed, in order."""

    @property
    def chain(self) -> Chain:
        """The versions in order."""
        return Chain(
            tuple(script.version for script in self.scripts),
            repeatable=tuple(script.version for script in self.repeatable),
        )

    @property
    def all(self) -> tuple[Script, ...]:
        """Every script that brings a tenant forward."""
        return (*self.scripts, *self.repeatable)

    def of(self, version: str) -> Script:
        """The script of a version, or a repeatable one."""
        return next(script for script in self.all if script.version.id == version)

    def as_of(self, version: str, repeatable: Collection[str]) -> Folder:
        """The folder as if it ended with a version and had no other repeatable files than these."""
        place = self.chain.position(version)
        scripts = self.scripts if place is None else self.scripts[: place + 1]
        again = tuple(each for each in self.repeatable if each.version.id in repeatable)
        return replace(self, scripts=scripts, repeatable=again)


def read_folder(
    path: str, *, recursive: bool = False, variables: Mapping[str, str] | None = None
) -> Folder:
    """Read and check a folder.

    Args:
        path: of the folder.
        recursive: read what lies in folders below it, too.
        variables: that the files may use, with the source's values; None to take any.

    Raises:
        MigrationSourceError: it cannot be read, or must not be run; ``findings`` lists all reasons.
    """
    try:
        names, ignored = _look(Path(path), recursive=recursive)
        files = {name: _read(Path(path) / name) for name in names}
    except OSError as error:
        raise MigrationSourceError(
            f"the folder {path} cannot be read: {error.strerror}",
            next_step="give a folder that the node's account may read, on the node's machine",
        ) from None
    return check_folder(path, files, ignored=ignored, variables=variables)


def _look(root: Path, *, recursive: bool) -> tuple[list[str], list[str]]:
    """The SQL files by their paths below the folder, and what is left aside, with reasons."""
    found: list[str] = []
    ignored: list[str] = []
    waiting = [(root, 0)]
    while waiting:
        folder, depth = waiting.pop()
        for entry in sorted(folder.iterdir()):
            name = str(entry.relative_to(root))
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if not recursive:
                    ignored.append(f"{name}/: a folder; --recursive reads it, too")
                elif entry.is_symlink() or depth >= DEPTH_MAX:
                    ignored.append(f"{name}/: a link, or too deep")
                else:
                    waiting.append((entry, depth + 1))
            elif filenames.is_sql(entry.name):
                found.append(name)
            else:
                ignored.append(f"{name}: does not end with .sql")
    if len(found) > FILES_MAX:
        raise MigrationSourceError(
            f"the folder {root} has {len(found)} SQL files",
            next_step=f"give one with at most {FILES_MAX}",
        )
    return sorted(found), sorted(ignored)[:IGNORED_SHOWN_MAX]


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(FILE_BYTES_MAX + 1)


def check_folder(
    path: str,
    files: Mapping[str, bytes],
    *,
    ignored: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Folder:
    """The scripts of a folder, given its ``.sql`` files by their paths below it.

    Raises:
        MigrationSourceError: it must not be run; ``findings`` lists all reasons.
    """
    findings: list[dict[str, Any]] = []
    named: list[tuple[FileName, str]] = []
    read: dict[str, Script] = {}
    for name, content in sorted(files.items()):
        meaning = filenames.read_name(Path(name).name)
        if isinstance(meaning, str):
            findings.append(finding(name, meaning))
            continue
        named.append((meaning, name))
        made, wrong = _script(name, meaning, content, variables)
        findings += [finding(name, each) for each in wrong]
        if made is not None:
            read[name] = made
    named.sort(key=lambda each: each[0].order)
    ups = [each for each in named if each[0].way is Way.UP]
    downs = [each for each in named if each[0].way is Way.DOWN]
    again = sorted((each for each in named if each[0].way is Way.REPEAT), key=lambda e: e[0].name)
    findings += _numbers(ups) + _undoing(ups, downs) + _twice(again)
    if not files:
        aside = f"; it has {', '.join(ignored[:5])}" if ignored else ""
        findings.append(finding(path, f"it holds no file named {filenames.FORMS}{aside}"))
    elif again and not ups:
        first = "add a first version, which may be empty: 001_start.sql"
        findings.append(finding(path, f"it holds repeatable files and no version; {first}"))
    if findings:
        raise MigrationSourceError(
            f"the folder {path} cannot be run: {len(findings)} reasons",
            next_step="fix what is listed and try again; nothing was run",
            findings=findings,
        )
    undo = {meaning.order: read[name] for meaning, name in downs}
    scripts = [replace(read[name], down=undo.get(meaning.order)) for meaning, name in ups]
    return Folder(tuple(scripts), tuple(ignored), tuple(read[name] for _, name in again))


def finding(name: str, message: str) -> dict[str, Any]:
    """One reason, about one file or version."""
    return {"id": "TG-MIG-001", "object": name, "message": message, "severity": "error"}


def _script(
    name: str, meaning: FileName, content: bytes, known: Mapping[str, str] | None
) -> tuple[Script | None, list[str]]:
    if len(content) > FILE_BYTES_MAX:
        return None, [f"it is larger than {FILE_BYTES_MAX} bytes"]
    if content[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        return None, ["it is UTF-16; save it as UTF-8"]
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
        cut = sql.cut(text)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return None, [f"line {line}: it is not UTF-8"]
    except sql.UnreadableError as error:
        return None, [str(error)]
    directives, wrong = _directives(cut.comments)
    wrong += [reason for statement in cut.statements for reason in _refused(statement)]
    if "\0" in text:
        wrong.append("it holds a zero byte")
    is_alone, mixed = _alone(cut.statements, is_told=NO_TRANSACTION in directives)
    wrong += mixed
    if is_alone and meaning.way is Way.REPEAT:
        wrong.append(
            "a repeatable file runs in a transaction, together with its record; put what cannot"
            " into a version of its own"
        )
    pieces = sql.pieces(text, cut, one_by_one=is_alone)
    used: set[str] = set()
    if NO_VARIABLES not in directives:
        used, unknown = _variables(pieces, known)
        wrong += unknown
    values = {each: (known or {}).get(each, "") for each in sorted(used)}
    version = Version(
        id=meaning.version,
        name=meaning.name,
        sha256=_hash(text, values if meaning.way is Way.REPEAT else {}),
        is_transactional=not is_alone,
    )
    return Script(version, name, text, pieces, variables=frozenset(used)), wrong


def _hash(text: str, values: Mapping[str, str]) -> str:
    """What stands for a text, and the values that are written into it."""
    digest = hashlib.sha256(text.encode())
    for name, value in values.items():
        digest.update(f"\0{name}\0{value}".encode())
    return digest.hexdigest()


def _variables(
    pieces: Iterable[sql.Piece], known: Mapping[str, str] | None
) -> tuple[set[str], list[str]]:
    """The variables that a file uses, and what is wrong with them."""
    used: set[str] = set()
    wrong: list[str] = []
    for piece in pieces:
        try:
            found = slots(piece.text, piece.line)
        except PlaceholderError as error:
            wrong.append(str(error))
            continue
        used |= {slot.name for slot in found}
        wrong += [
            f"line {slot.line}: the variable ${{{slot.name}}} is not known; there are"
            f" {', '.join(sorted(known))}"
            for slot in found
            if known is not None and slot.name not in known
        ]
    return used, wrong


def _alone(statements: Sequence[sql.Statement], *, is_told: bool) -> tuple[bool, list[str]]:
    """Whether a file runs outside a transaction, and what keeps it from running inside one.

    It does if it says so, or if it holds nothing but statements that cannot run in one.
    """
    found = [(each.line, runs_alone(each)) for each in statements]
    if is_told or (found and all(words for _, words in found)):
        return True, []
    return False, [
        f"line {line}: {words} cannot run in a transaction; put it into a file of its own, or"
        f" begin the file with -- tidegate: {NO_TRANSACTION}"
        for line, words in found
        if words
    ]


def _directives(comments: Iterable[sql.Comment]) -> tuple[set[str], list[str]]:
    """The directives of a file, and what is wrong with them."""
    found: set[str] = set()
    wrong: list[str] = []
    for comment in comments:
        other = _OTHER_WAY.match(comment.text)
        if other is not None:
            wrong.append(
                f"line {comment.line}: {other[1]!r} begins what undoes the file, and would be run"
                " with it; put it into a file of its own, NNN_name.down.sql"
            )
        for each in _DIRECTIVE.finditer(comment.text):
            line = comment.line + comment.text.count("\n", 0, each.start())
            words = each["words"]
            if words not in DIRECTIVES:
                wrong.append(
                    f"line {line}: the directive {words!r} is not known; there are"
                    f" {' and '.join(DIRECTIVES)}"
                )
            elif not comment.is_before_statements:
                wrong.append(
                    f"line {line}: the directive {words} must come before the first statement"
                )
            found.add(words)
    return found, wrong


def _refused(statement: sql.Statement) -> list[str]:
    control = sql.transaction_control(statement)
    if control is not None:
        return [f"line {statement.line}: {control} would end the transaction the file runs in"]
    if statement.writes_to_client:
        return [f"line {statement.line}: COPY … TO stdout has nobody to write to"]
    if sql.changes_quoting(statement):
        rule = "standard_conforming_strings is always on; write literals with backslashes as E'…'"
        return [f"line {statement.line}: {rule}"]
    return []


def _numbers(named: Iterable[tuple[FileName, str]]) -> list[dict[str, Any]]:
    """Versions that are there twice, or missing between the first and the last."""
    found: list[dict[str, Any]] = []
    previous: tuple[FileName, str] | None = None
    for meaning, file in named:
        if previous is not None:
            before, other = previous[0].order, previous[1]
            if meaning.order == before:
                found.append(finding(file, f"its number is also that of {other}"))
            elif not _may_have_gaps(meaning) and meaning.order[0] != before[0] + 1:
                missing = f"{before[0] + 1:0{len(meaning.version)}d}"
                found.append(finding(file, f"{missing} is missing between it and {other}"))
        previous = meaning, file
    return found


def _twice(named: Sequence[tuple[FileName, str]]) -> list[dict[str, Any]]:
    """Repeatable files that have one name, in one folder or in several."""
    return [
        finding(file, f"its name is also that of {other}")
        for (before, other), (meaning, file) in itertools.pairwise(named)
        if before.version == meaning.version
    ]


def _may_have_gaps(meaning: FileName) -> bool:
    """Whether gaps are natural: in Flyway's versions, in dates, ``20260131`` and longer."""
    return meaning.is_lettered or len(meaning.version) >= 8


def _undoing(
    ups: Sequence[tuple[FileName, str]], downs: Sequence[tuple[FileName, str]]
) -> list[dict[str, Any]]:
    """Files that undo nothing, or what another one undoes already."""
    found = []
    there = {meaning.order for meaning, _ in ups}
    seen: dict[tuple[int, ...], str] = {}
    for meaning, file in downs:
        if meaning.order not in there:
            found.append(finding(file, f"it undoes version {meaning.version}, which has no file"))
        elif meaning.order in seen:
            found.append(finding(file, f"{seen[meaning.order]} undoes the same version already"))
        seen[meaning.order] = file
    return found


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
            findings.append(finding(version, "tenants have it, but its file is gone"))
        elif now[version] != sha256:
            findings.append(finding(version, "its file was edited after tenants got it"))
    if findings:
        raise MigrationSourceError(
            f"the folder {path} is not the one that tenants were upgraded from",
            next_step="restore the files as they were and put the change into a new one;"
            " nothing was run",
            findings=findings,
        )
