"""Where the statements of an SQL script begin and end, as psql sees it.

Decides from the text alone: quotes of all kinds, dollar quoting, nested comments, parentheses and
the bodies of ``BEGIN ATOMIC`` hide semicolons. Nothing is understood beyond that; a script that
runs in one transaction is sent whole and needs no cutting. The rules are those of PostgreSQL's
manual, "Lexical Structure", and of psql's scanner for the bodies of functions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_WORDS_MAX: Final = 6

#: One piece of text that is skipped as a whole, or looked at. The first that fits wins.
_TOKEN: Final = re.compile(
    r"""
      (?P<space>\s+)
    | (?P<line>--[^\n\r]*)
    | (?P<block>/\*)
    | (?P<escaped>[eE]'(?:[^'\\]|\\.|'')*(?P<escaped_end>'?))
    | (?P<quoted>(?:[uU]&|[bBxXnN])?'(?:[^']|'')*(?P<quoted_end>'?))
    | (?P<named>(?:[uU]&)?"(?:[^"]|"")*(?P<named_end>"?))
    | (?P<dollar>\$(?:[^\W\d][\w]*)?\$)
    | (?P<word>[^\W\d][\w$]*)
    | (?P<number>[\d.][\w.]*)
    | (?P<semicolon>;)
    | (?P<open>[(\[])
    | (?P<close>[)\]])
    | (?P<backslash>\\)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT: Final = re.compile(r"/\*|\*/")


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement: its text without the semicolon, the line it begins on, its first words."""

    text: str
    line: int
    words: tuple[str, ...]
    """The first words outside of quotes and comments, in capitals."""


class UnreadableError(ValueError):
    """The script ends inside of something, or has a command of psql."""

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

    def statements(self) -> Iterator[Statement]:
        """The statements in order.

        Raises:
            UnreadableError: naming the line.
        """
        at = 0
        while at < len(self._text):
            found = _TOKEN.match(self._text, at)
            assert found is not None, "the last alternative takes any character"
            kind = found.lastgroup or ""
            end = self._skip(found, kind)
            if kind == "semicolon" and not self._depth and not self._atomic:
                yield from self._cut(at)
            elif kind not in {"space", "line", "block"}:
                self._take(found, kind, at)
            at = end
        if self._depth or self._atomic:
            raise self._unreadable(self._start or 0, "a parenthesis or a body is not closed")
        yield from self._cut(len(self._text))

    def _skip(self, found: re.Match[str], kind: str) -> int:
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
        if kind == "backslash":
            raise self._unreadable(found.start(), "commands of psql cannot be run")
        return found.end()

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

    def _word(self, word: str) -> None:
        if len(self._words) < _WORDS_MAX:
            self._words.append(word)
        if self._depth or not _makes_routine(self._words):
            return
        if word == "BEGIN" or (word == "CASE" and self._atomic):
            self._atomic += 1
        elif word == "END" and self._atomic:
            self._atomic -= 1

    def _cut(self, end: int) -> Iterator[Statement]:
        if self._start is not None:
            text = self._text[self._start : end].rstrip()
            yield Statement(text, self._line(self._start), tuple(self._words))
        self._start, self._words = None, []

    def _line(self, at: int) -> int:
        return self._text.count("\n", 0, at) + 1

    def _unreadable(self, at: int, what: str) -> UnreadableError:
        return UnreadableError(self._line(at), what)


def _makes_routine(words: list[str]) -> bool:
    rest = words[3:] if words[1:3] == ["OR", "REPLACE"] else words[1:]
    return words[:1] == ["CREATE"] and rest[:1] in (["FUNCTION"], ["PROCEDURE"])


def statements(text: str) -> list[Statement]:
    """The statements of a script.

    Raises:
        UnreadableError: the script ends inside of something, or has a command of psql.
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


def reads_from_client(statement: Statement) -> bool:
    """Whether a statement is a COPY from standard input, or to standard output."""
    if statement.words[:1] != ("COPY",):
        return False
    upper = statement.text.upper()
    return bool(re.search(r"\b(?:FROM\s+STDIN|TO\s+STDOUT)\b", upper))
