"""API extensions: the named, ordered list of what a program's API can do beyond its first form.

Decides which names are well formed, and how two lists relate. A list only grows at its end; its
length is the "number of API extensions" that members compare, and it is counted, never stored. Two
lists are the same when they have the same names in the same order; otherwise the shorter one is the
older one. Lists of one length that differ are *diverged*: neither program descends from the other,
and nobody knows which of the two to upgrade.

A name consists of words of lower-case letters and digits, joined by single underscores. Extensions
of the control plane's own protocol begin with ``internal:``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self

from tidegate.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable

INTERNAL: Final = "internal:"
MAX_NAME_CHARS: Final = 128
MAX_EXTENSIONS: Final = 100_000

_NAME: Final = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*")


class Relation(StrEnum):
    """How something of another member relates to ours."""

    EQUAL = "equal"
    OLDER = "older"
    NEWER = "newer"
    DIVERGED = "diverged"


def check_name(name: str) -> None:
    """Refuse a name that no extension may have.

    Raises:
        InvalidArgumentError: it is not made of lower-case words joined by single underscores, or is
            too long.
    """
    bare = name.removeprefix(INTERNAL)
    if len(name) > MAX_NAME_CHARS or not _NAME.fullmatch(bare):
        raise InvalidArgumentError(
            f"{name[:MAX_NAME_CHARS]!r} is no name of an API extension",
            next_step="use words of a-z and 0-9 joined by single underscores, at most"
            f" {MAX_NAME_CHARS} characters",
        )


def check_internal_name(name: str) -> None:
    """Refuse a name that no extension of the control plane's own protocol may have.

    Raises:
        InvalidArgumentError: it does not begin with ``internal:``, or the rest is no name.
    """
    check_name(name)
    if not name.startswith(INTERNAL):
        raise InvalidArgumentError(
            f"{name!r} is no name of an internal API extension",
            next_step=f"begin it with {INTERNAL}",
        )


@dataclass(frozen=True, slots=True)
class Extensions:
    """An ordered list of API extensions; made by :meth:`of`, which checks it."""

    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: Iterable[str]) -> Self:
        """A checked list.

        Raises:
            InvalidArgumentError: a name is malformed, or there are too many.
            AlreadyExistsError: a name comes twice.
        """
        given = tuple(names)
        if len(given) > MAX_EXTENSIONS:
            raise InvalidArgumentError(
                f"{len(given)} API extensions are more than the {MAX_EXTENSIONS} there may be",
                next_step="list each extension once",
            )
        seen: set[str] = set()
        for name in given:
            check_name(name)
            if name in seen:
                raise AlreadyExistsError(
                    f"the API extension {name} is listed twice",
                    next_step="give the second one a name of its own",
                )
            seen.add(name)
        return cls(given)

    @property
    def count(self) -> int:
        """How many there are: what members compare."""
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def register(self, *names: str) -> Self:
        """The list with more at its end.

        Raises:
            InvalidArgumentError: a name is malformed, or there are too many.
            AlreadyExistsError: a name is there already.
        """
        return self.of((*self.names, *names))

    def relation(self, other: Extensions) -> Relation:
        """What the other list is to this one."""
        if other.names == self.names:
            return Relation.EQUAL
        if other.count == self.count:
            return Relation.DIVERGED
        return Relation.NEWER if other.count > self.count else Relation.OLDER

    def first_difference(self, other: Extensions) -> tuple[str | None, str | None] | None:
        """Our name and the other's where the lists part; None for equal lists."""
        for ours, theirs in zip(self.names, other.names, strict=False):
            if ours != theirs:
                return ours, theirs
        if self.count == other.count:
            return None
        longer = self if self.count > other.count else other
        name = longer.names[min(self.count, other.count)]
        return (name, None) if longer is self else (None, name)

    def check_same(self, other: Extensions) -> None:
        """Refuse a list that is not the same, name by name.

        Raises:
            FailedPreconditionError: it differs; the message says where first.
        """
        difference = self.first_difference(other)
        if difference is not None:
            ours, theirs = (name or "nothing" for name in difference)
            raise FailedPreconditionError(
                f"the API extensions differ ({self.count} here, {other.count} there): first {ours}"
                f" here, {theirs} there",
                next_step="run the same version of tidegate on both",
            )

    def to_json(self) -> str:
        """The text kept in the cluster database: always a JSON list."""
        return json.dumps(self.names)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises:
            InvalidArgumentError: it is no JSON list of well-formed names.
        """
        try:
            found: Any = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise InvalidArgumentError(
                f"{text[:80]!r} is no JSON list of API extensions",
                next_step="restore the cluster database from a backup; it was edited by hand",
            )
        return cls.of(found)
