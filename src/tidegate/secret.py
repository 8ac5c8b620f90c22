"""Where a secret may be found, and how none gets out.

Decides what a reference of a secret is: ``env:NAME`` or ``file:/path``, resolved at the moment it
is needed, and the only thing that is stored, logged or shown. It also decides which files and
variables a reference that came in over the API may name (:class:`Places`): a reference is not
trusted, so it must not turn the node into a reader of any file of its account. It must not know
what the secrets are for.

A message never says whether a file outside the allowed folders exists, and never holds content.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tidegate.errors import SecretError

FOLDERS_VARIABLE: Final = "TIDEGATE_SECRET_FOLDERS"
VARIABLES_VARIABLE: Final = "TIDEGATE_SECRET_VARIABLES"
DEFAULT_VARIABLES: Final = "TIDEGATE_SECRET_*"
SECRET_MAX_BYTES: Final = 64 * 1024

_PASSWORD = re.compile(r"(?i)(password\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)|(://[^:/@\s]+:)[^@/\s]+(@)")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATTERN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\*?")


def redacted(text: str) -> str:
    """``text`` with everything that looks like a password in a connection string removed."""
    return _PASSWORD.sub(lambda m: f"{m[1]}***" if m[1] else f"{m[3]}***{m[4]}", text)


@dataclass(frozen=True, slots=True)
class Places:
    """Which files and variables a reference from the API may name.

    Attributes:
        folders: absolute; a file must lie below one of them after symbolic links are followed.
        variables: names, or beginnings of names with ``*`` at the end.
    """

    folders: tuple[Path, ...] = ()
    variables: tuple[str, ...] = (DEFAULT_VARIABLES,)

    @classmethod
    def parse(cls, folders: str | None, variables: str | None) -> Self:
        """Read both lists: folders with colons between, variables with commas.

        Raises:
            ValueError: a folder is not absolute, or a pattern is none.
        """
        paths = tuple(Path(each) for each in (folders or "").split(":") if each)
        if not all(path.is_absolute() for path in paths):
            raise ValueError("write absolute folders with colons between, as in /etc/a:/etc/b")
        given = DEFAULT_VARIABLES if variables is None else variables
        patterns = tuple(each.strip() for each in given.split(",") if each.strip())
        if not all(_PATTERN.fullmatch(pattern) for pattern in patterns):
            raise ValueError("write names of variables with commas between, as in SHOP_*,PGSECRET")
        return cls(paths, patterns)

    @classmethod
    def of_environment(cls) -> Self:
        """The places of this process: the node exports its own, and its workers inherit them."""
        return cls.parse(os.environ.get(FOLDERS_VARIABLE), os.environ.get(VARIABLES_VARIABLE))

    def to_environment(self) -> dict[str, str]:
        """Inverse of :meth:`of_environment`."""
        return {
            FOLDERS_VARIABLE: ":".join(map(str, self.folders)),
            VARIABLES_VARIABLE: ",".join(self.variables),
        }

    def check(self, reference: str | None) -> None:
        """Refuse a reference to a place outside, whether there is anything or not.

        Raises:
            SecretError: the place is not allowed, or the form is unknown.
        """
        if reference is None:
            return
        kind, name = _parts(reference)
        if kind == "env":
            self._check_variable(name)
        else:
            self._inside(name)

    def _check_variable(self, name: str) -> None:
        own = name in {FOLDERS_VARIABLE, VARIABLES_VARIABLE}
        if own or not any(
            name.startswith(each[:-1]) if each.endswith("*") else name == each
            for each in self.variables
        ):
            raise SecretError(
                f"the variable {name} is not one this node may use as a secret",
                next_step=f"rename it to match {', '.join(self.variables) or 'nothing yet'}, or"
                f" add it where `tidegate serve` runs: {VARIABLES_VARIABLE}",
            )

    def _inside(self, name: str) -> Path:
        """The file with all symbolic links followed."""
        path = Path(os.path.realpath(name))
        if not any(path.is_relative_to(os.path.realpath(folder)) for folder in self.folders):
            allowed = ", ".join(map(str, self.folders)) or "none yet"
            raise SecretError(
                f"the secret file {name} is not below a folder this node may read secrets from",
                next_step=f"put it below one ({allowed}), or add its folder where `tidegate serve`"
                " runs: --secret-folder FOLDER",
            )
        return path


def resolve_secret(reference: str | None, places: Places | None = None) -> str | None:
    """The secret a reference names.

    Args:
        reference: ``env:NAME``, ``file:/path`` or None.
        places: what the reference may name; None for a reference of the operator's own, from a
            configuration file, a flag or a program.

    Raises:
        SecretError: the place is not allowed, the variable is unset, the file cannot be read or
            is no small text file, or the form is unknown.
    """
    if reference is None:
        return None
    kind, name = _parts(reference)
    if places is not None:
        places.check(reference)
    if kind == "env":
        value = os.environ.get(name)
        if value is None:
            raise SecretError(
                f"the environment variable {name} is not set here",
                next_step=f"export {name} where `tidegate serve` runs",
            )
        return value
    return _content(name, Path(os.path.realpath(name)))


def _parts(reference: str) -> tuple[str, str]:
    kind, _, name = reference.partition(":")
    is_variable = kind == "env" and _VARIABLE.fullmatch(name) is not None
    if is_variable or (kind == "file" and name and name.isprintable()):
        return kind, name
    raise SecretError(
        "a secret must be a reference of the form env:NAME or file:/path",
        next_step="store the password in a file or a variable and name that",
    )


def _content(name: str, path: Path) -> str:
    """The text of a regular file of bounded size, without line ends after it."""
    try:
        # Without O_NONBLOCK a FIFO would block; links were followed and checked before.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise _unfit(name, "is no regular file")
            content = file.read(SECRET_MAX_BYTES + 1)
    except OSError as error:
        raise SecretError(
            f"the secret file {name} cannot be read: {error.strerror}",
            next_step="check the path and its permissions for the account of the node",
        ) from None
    if len(content) > SECRET_MAX_BYTES:
        raise _unfit(name, f"has more than {SECRET_MAX_BYTES} bytes")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise _unfit(name, "is not text in UTF-8") from None
    if "\0" in text:
        raise _unfit(name, "holds a NUL byte")
    return text.rstrip("\r\n")


def _unfit(name: str, why: str) -> SecretError:
    return SecretError(
        f"the secret file {name} {why}",
        next_step="write the password, and nothing else, into a file of its own",
    )
