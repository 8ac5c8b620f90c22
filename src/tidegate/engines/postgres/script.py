r"""Where the statements of an SQL script begin and end, as psql sees it.

Decides from the text alone: quotes of all kinds, dollar quoting, nested comments, parentheses and
the bodies of ``BEGIN ATOMIC`` hide semicolons; the lines behind ``COPY … FROM stdin`` up to ``\.``
are its data. Nothing is understood beyond that. The rules are those of PostgreSQL's manual,
"Lexical Structure", with ``standard_conforming_strings`` on, and of psql's scanner for the bodies
of functions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_WORDS_MAX: Final = 6
_SPACE: Final = " \t\n\r\f\v"
"""To PostgreSQL, nothing else is a space: a no-break space is part of a name."""

#: One piece of text that is skipped as a whole, or looked at. The first that fits wins.
#: Whitespace and letters are PostgreSQL's: everything beyond ASCII may be part of an identifier.
_PIECE: Final = r"""
      (?P<space>[ \t\n\r\f\v]+)
    | (?P<line>--[^\n\r]*)
    | (?P<block>/\*)
    | (?P<escaped>[eE]'(?:[^'\\]+|\\.|'')*(?P<escaped_end>'?))
    | (?P<quoted>(?:[uU]&|[bBxXnN])?'(?:[^']+|'')*(?P<quoted_end>'?))
    | (?P<named>(?:[uU]&)?"(?:[^"]+|"")*(?P<named_end>"?))
    | (?P<dollar>\$(?:[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*)?\$)
    | (?P<word>[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*)
    | (?P<number>[0-9.][A-Za-z0-9_.\x80-\U0010ffff]*)
    | (?P<semicolon>;)
    | (?P<open>[(\[])
    | (?P<close>[)\]])
    | (?P<backslash>\\)
    | (?P<other>.)
    """
_COMMENT: Final = re.compile(r"/\*|\*/")
#: A literal goes on behind a line break, with the rules it began with.
_CONTINUED: Final = (
    r"(?:[ \t\f\v]|--[^\n\r]*)*[\n\r](?:[ \t\n\r\f\v]+|--[^\n\r]*[\n\r])*'"
    r"(?:[^'\\]+|\\.|'')*(?P<end>'?)"
)
_PSQL_COMMAND: Final = re.compile(r"\\[A-Za-z!?;.:_]{0,20}\+?")
_REST_OF_LINE: Final = re.compile(r"[ \t\f\v\r]*(?:--[^\n]*)?(?:\n|\Z)")
_END_OF_ROWS: Final = re.compile(r"^\\\.\r?(?:\n|\Z)", re.MULTILINE)

_INSTEAD: Final = {
    "i": "put the text of that file into the folder as a file of its own",
    "ir": "put the text of that file into the folder as a file of its own",
    "include": "put the text of that file into the folder as a file of its own",
    "c": "a file runs in one tenant and stays there",
    "connect": "a file runs in one tenant and stays there",
    "copy": "write COPY … FROM stdin; with the rows behind it, then a line with \\.",
    "restrict": "pg_dump wrote it for psql; delete the line",
    "unrestrict": "pg_dump wrote it for psql; delete the line",
    ".": "it ends the rows of a COPY … FROM stdin, and there is none before it",
}


@cache
def _token() -> re.Pattern[str]:
    """Compiled when the first script is read: that takes longer than most modules to import."""
    return re.compile(_PIECE, re.VERBOSE | re.DOTALL)


@cache
def _continued() -> re.Pattern[str]:
    return re.compile(_CONTINUED, re.DOTALL)


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement: its text without the semicolon, the line it begins on, its first words."""

    text: str
    line: int
    words: tuple[str, ...]
    """The first words outside of quotes and comments, in capitals."""
    start: int = 0
    """Where it begins in the script, in characters."""
    end: int = 0
    """Where what follows it begins: behind the semicolon, and behind its rows if it has any."""
    rows: str | None = None
    """What a ``COPY … FROM stdin`` reads, without the line that ends it; None for all others."""
    writes_to_client: bool = False
    """It is a ``COPY … TO stdout``."""


@dataclass(frozen=True, slots=True)
class Comment:
    """One comment: its text without the marks, and the line it begins on."""

    text: str
    line: int
    is_before_statements: bool
    """No statement begins before it."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script that was cut."""

    statements: tuple[Statement, ...]
    comments: tuple[Comment, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """What is sent at once: some statements, or one COPY with its rows."""

    text: str
    line: int
    """The line of the script it begins on."""
    rows: str | None = None
    """What the COPY reads."""


class UnreadableError(ValueError):
    """The script ends inside something, or has a command of psql."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")
        self.line = line
        self.what = what


class _Scanner:
    """One pass over a script."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._start: int | None = None
        self._words: list[str] = []
        self._depth = 0
        self._atomic = 0
        self._last_word = ""
        self._copies = ""
        self._lines = (0, 1)
        self.comments: list[Comment] = []

    def statements(self) -> Iterator[Statement]:
        """The statements in order.

        Raises:
            UnreadableError: naming the line.
        """
        at = 0
        token = _token()
        has_begun = False
        while at < len(self._text):
            found = token.match(self._text, at)
            assert found is not None, "the last alternative takes any character"
            kind = found.lastgroup or ""
            end = self.end_of(found, kind)
            if kind in {"line", "block"}:
                text = self._text[at + 2 : end - (2 if kind == "block" else 0)]
                self.comments.append(Comment(text, self._line(at), not has_begun))
            elif kind == "semicolon" and not self._depth and not self._atomic:
                for statement in self._cut(at, end):
                    end = statement.end
                    yield statement
            elif kind != "space":
                has_begun = True
                self._take(found, kind, at)
            at = end
        if self._depth or self._atomic:
            raise self._unreadable(self._start or 0, "a parenthesis or a body is not closed")
        yield from self._cut(len(self._text), len(self._text))

    def end_of(self, found: re.Match[str], kind: str) -> int:
        """Where the token ends."""
        if kind == "block":
            return self._after_comment(found.start())
        if kind == "dollar":
            end = self._text.find(found[0], found.end())
            if end < 0:
                raise self._unreadable(found.start(), f"the quote {found[0]} is not closed")
            return end + len(found[0])
        if kind in {"escaped", "quoted", "named"} and not found[f"{kind}_end"]:
            raise self._unreadable(found.start(), "a quote is not closed")
        if kind == "escaped":
            return self._after_continuations(found.start(), found.end())
        if kind == "backslash":
            raise self._unreadable(found.start(), self._why_not_psql(found.start()))
        return found.end()

    def _after_continuations(self, start: int, end: int) -> int:
        while (found := _continued().match(self._text, end)) is not None:
            if not found["end"]:
                raise self._unreadable(start, "a quote is not closed")
            end = found.end()
        return end

    def _why_not_psql(self, at: int) -> str:
        found = _PSQL_COMMAND.match(self._text, at)
        command = found[0] if found else "\\"
        instead = _INSTEAD.get(command[1:], "")
        return f"{command} is a command of psql, not SQL, and cannot be run" + (
            f"; {instead}" if instead else ""
        )

    def _after_comment(self, start: int) -> int:
        depth, at = 1, start + 2
        while depth:
            found = _COMMENT.search(self._text, at)
            if found is None:
                raise self._unreadable(start, "a comment is not closed")
            depth += 1 if found[0] == "/*" else -1
            at = found.end()
        return at

    def _take(self, found: re.Match[str], kind: str, at: int) -> None:
        if self._start is None and kind != "semicolon":
            self._start = at
        if kind == "open":
            self._depth += 1
        elif kind == "close":
            self._depth = max(0, self._depth - 1)
        elif kind == "word":
            self._word(found[0].upper())
        if kind != "word":
            self._last_word = ""

    def _word(self, word: str) -> None:
        if len(self._words) < _WORDS_MAX:
            self._words.append(word)
        if self._depth:
            return
        if word in {"STDIN", "STDOUT"} and self._words[0] == "COPY":
            # Either word stands for the client, whatever the direction.
            self._copies = self._copies or self._last_word
        self._last_word = word
        if not _makes_routine(self._words):
            return
        if word == "BEGIN" or (word == "CASE" and self._atomic):
            self._atomic += 1
        elif word == "END" and self._atomic:
            self._atomic -= 1

    def _cut(self, at: int, end: int) -> Iterator[Statement]:
        if self._start is not None:
            rows = None
            if self._copies == "FROM":
                rows, end = self._rows(end)
            yield Statement(
                self._text[self._start : at].rstrip(_SPACE),
                self._line(self._start),
                tuple(self._words),
                self._start,
                end,
                rows,
                self._copies == "TO",
            )
        self._start, self._words, self._copies, self._last_word = None, [], "", ""

    def _rows(self, after: int) -> tuple[str, int]:
        """The rows behind a ``COPY … FROM stdin``, and where the script goes on."""
        assert self._start is not None
        rest = _REST_OF_LINE.match(self._text, after)
        if rest is None:
            raise self._unreadable(after, "the rows of COPY … FROM stdin begin on the next line")
        # A match at the end of the line before would be no line of its own.
        found = _END_OF_ROWS.search(self._text, rest.end())
        if found is None:
            raise self._unreadable(
                self._start, "the rows of COPY … FROM stdin are not ended by a line with \\."
            )
        return self._text[rest.end() : found.start()], found.end()

    def _line(self, at: int) -> int:
        known_at, line = self._lines
        if at < known_at:
            return self._text.count("\n", 0, at) + 1
        line += self._text.count("\n", known_at, at)
        self._lines = (at, line)
        return line

    def _unreadable(self, at: int, what: str) -> UnreadableError:
        return UnreadableError(self._line(at), what)


def _makes_routine(words: list[str]) -> bool:
    rest = words[3:] if words[1:3] == ["OR", "REPLACE"] else words[1:]
    return words[:1] == ["CREATE"] and rest[:1] in (["FUNCTION"], ["PROCEDURE"])


def tokens(text: str) -> Iterator[tuple[str, int, int]]:
    """The tokens of a text: kind, begin and end. A backslash outside quotes is any other sign.

    Raises:
        UnreadableError: the text ends inside something.
    """
    scanner = _Scanner(text)
    token = _token()
    at = 0
    while at < len(text):
        found = token.match(text, at)
        assert found is not None, "the last alternative takes any character"
        kind = found.lastgroup or ""
        if kind == "backslash":
            kind, end = "other", at + 1
        else:
            end = scanner.end_of(found, kind)
        yield kind, at, end
        at = end


def cut(text: str) -> Script:
    """The statements and comments of a script.

    Raises:
        UnreadableError: the script ends inside something, or has a command of psql.
    """
    scanner = _Scanner(text)
    found = tuple(scanner.statements())
    return Script(found, tuple(scanner.comments))


def pieces(text: str, script: Script, *, one_by_one: bool) -> tuple[Piece, ...]:
    """What is sent of a script that was cut: all of it at once, if nothing forbids that.

    Args:
        text: of the script.
        script: the same, cut.
        one_by_one: each statement for itself, as is needed outside a transaction.
    """
    if one_by_one:
        return tuple(Piece(each.text, each.line, each.rows) for each in script.statements)
    found: list[Piece] = []
    at = 0
    for each in script.statements:
        if each.rows is None:
            continue
        if text[at : each.start].strip(_SPACE):
            found.append(Piece(text[at : each.start], text.count("\n", 0, at) + 1))
        found.append(Piece(each.text, each.line, each.rows))
        at = each.end
    if not found or text[at:].strip(_SPACE):
        found.append(Piece(text[at:], text.count("\n", 0, at) + 1))
    return tuple(found)


def statements(text: str) -> list[Statement]:
    """The statements of a script.

    Raises:
        UnreadableError: the script ends inside something, or has a command of psql.
    """
    return list(_Scanner(text).statements())


def transaction_control(statement: Statement) -> str | None:
    """The words of a statement that would begin or end a transaction, or None."""
    words = statement.words
    if not words:
        return None
    if words[0] in {"BEGIN", "COMMIT", "ABORT", "END"}:
        return words[0]
    if words[0] == "ROLLBACK" and "TO" not in words[1:3]:
        return words[0]
    if words[:2] in {("START", "TRANSACTION"), ("PREPARE", "TRANSACTION")}:
        return " ".join(words[:2])
    return None


_OTHER_STRINGS: Final = (
    r"SET\s+(?:(?:SESSION|LOCAL)\s+)?STANDARD_CONFORMING_STRINGS\s*(?:=|TO)\s*'?"
    r"(?:OFF?|FALSE|F|NO?|0)\b"
)


def changes_quoting(statement: Statement) -> bool:
    """Whether a statement would make backslashes in plain literals special from then on."""
    return statement.words[:1] == ("SET",) and bool(
        re.match(_OTHER_STRINGS, statement.text, re.IGNORECASE)
    )
