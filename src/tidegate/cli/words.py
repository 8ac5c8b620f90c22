"""Short ways to say what the command line takes at length: `help NOUN`, `version`, KEYSPACE/NAME.

Decides from the words alone, before a command is looked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidegate.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_WORKFLOW: Final = ("--workflow", "-w")
_TARGET: Final = ("--target-keyspace", "-t")


def spelled_out(words: Sequence[str]) -> list[str]:
    """The words as the commands know them.

    ``help NOUN VERB`` asks for the help of a verb; the name of a workflow may hold its target
    keyspace, with a slash, or a dot as in messages: ``-w customer/move1``, ``-w customer.move1``.

    Raises:
        UsageError: the keyspace is given twice, and differs.
    """
    if words[:1] == ["help"]:
        return [*words[1:], "--help"]
    found: list[str] = []
    keyspace = ""
    is_name = False
    for word in words:
        flag, equals, value = word.partition("=")
        if is_name and _has_keyspace(word):
            keyspace, name = word.replace("/", ".").split(".")
            found.append(name)
        elif equals and flag in _WORKFLOW and _has_keyspace(value):
            keyspace, name = value.replace("/", ".").split(".")
            found.append(f"{flag}={name}")
        else:
            found.append(word)
        is_name = word in _WORKFLOW
    given = _value_of(found, _TARGET)
    if keyspace and given is None:
        found += [_TARGET[0], keyspace]
    elif keyspace and given != keyspace:
        raise UsageError(
            f"the workflow is named in keyspace {keyspace}, and -t names keyspace {given}",
            next_step="leave one of them out",
        )
    return found


def _has_keyspace(name: str) -> bool:
    """Neither a keyspace nor a workflow has such signs in its name."""
    return name.count("/") + name.count(".") == 1


def _value_of(words: Sequence[str], flags: Sequence[str]) -> str | None:
    """The value of a flag, as one word with it or as the next one."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag in flags:
            return value if equals else following
    return None
