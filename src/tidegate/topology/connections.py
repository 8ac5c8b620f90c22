"""Where a database is and how its secret is found; never the secret itself.

A connection string is libpq's, without a password. The password is a *reference*: ``env:NAME``,
``file:/path``, or nothing, when libpq finds one itself (passfile, peer, certificate). References
are resolved at the moment of connecting and are the only thing stored, logged or shown.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tidegate.errors import InvalidArgumentError, SecretError

_PASSWORD = re.compile(r"(?i)(password\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)|(://[^:/@\s]+:)[^@/\s]+(@)")


def redacted(text: str) -> str:
    """``text`` with everything that looks like a password in a connection string removed."""
    return _PASSWORD.sub(lambda m: f"{m[1]}***" if m[1] else f"{m[3]}***{m[4]}", text)


def resolve_secret(reference: str | None) -> str | None:
    """The secret a reference names.

    Raises:
        SecretError: the variable is unset, the file cannot be read, or the form is unknown.
    """
    if reference is None:
        return None
    kind, _, name = reference.partition(":")
    if kind == "env" and name:
        value = os.environ.get(name)
        if value is None:
            raise SecretError(
                f"the environment variable {name} is not set here",
                next_step=f"export {name} where `tidegate serve` runs",
            )
        return value
    if kind == "file" and name:
        try:
            return Path(name).read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            raise SecretError(
                f"the secret file {name} cannot be read: {error.strerror}",
                next_step="check the path and its permissions for the account of the node",
            ) from None
    raise SecretError(
        "a secret must be a reference of the form env:NAME or file:/path",
        next_step="store the password in a file or a variable and name that",
    )


@dataclass(frozen=True)
class Endpoint:
    """One database: a libpq connection string without its password, and the secret's reference."""

    conninfo: str
    secret: str | None = None

    def __post_init__(self) -> None:
        if redacted(self.conninfo) != self.conninfo:
            raise InvalidArgumentError(
                "a connection string must not contain a password",
                next_step="pass the password as a reference: env:NAME or file:/path",
            )

    def to_json(self) -> dict[str, Any]:
        """As stored and shown."""
        return {"conninfo": self.conninfo, "secret": self.secret}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_json`."""
        return cls(value["conninfo"], value.get("secret"))
