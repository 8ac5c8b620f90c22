"""Where a database is and how its secret is found; never the secret itself.

A connection string is libpq's, without a password. The password is a *reference*: ``env:NAME``,
``file:/path``, or nothing, when libpq finds one itself (passfile, peer, certificate). References
are resolved at the moment of connecting and are the only thing stored, logged or shown. They came
in over the API, so they may only name places the node's configuration allows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import urlsplit

from tidegate.errors import InvalidArgumentError
from tidegate.secret import DEFAULT_VARIABLES, Places, redacted, resolve_secret

__all__ = ["DEFAULT_VARIABLES", "Endpoint", "Places", "redacted", "resolve_secret", "server_of"]

_WORD: Final = re.compile(r"(\w+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|(\S+))")
_PORT: Final = re.compile(r":\d+$")


def server_of(conninfo: str) -> str:
    """HOST:PORT of a connection string: databases with the same one are on one server."""
    if "://" in conninfo:
        place = urlsplit(conninfo).netloc.rpartition("@")[2]
        return place if _PORT.search(place) else f"{place}:5432"
    words = {name: bare or quoted for name, quoted, bare in _WORD.findall(conninfo)}
    return f"{words.get('host') or words.get('hostaddr', '')}:{words.get('port', '5432')}"


@dataclass(frozen=True)
class Endpoint:
    """One database: how to connect without the password, the secret's reference, the engine."""

    conninfo: str
    secret: str | None = None
    engine: str = "postgresql"

    def __post_init__(self) -> None:
        if redacted(self.conninfo) != self.conninfo:
            raise InvalidArgumentError(
                "a connection string must not contain a password",
                next_step="pass the password as a reference: env:NAME or file:/path",
            )

    def password(self) -> str | None:
        """The password, read now, from a place this process may read secrets from.

        Raises:
            SecretError: the place is not allowed, or there is no secret.
        """
        return resolve_secret(self.secret, Places.of_environment())

    def to_json(self) -> dict[str, Any]:
        """As stored and shown."""
        return {"conninfo": self.conninfo, "secret": self.secret, "engine": self.engine}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_json`."""
        return cls(value["conninfo"], value.get("secret"), value.get("engine", cls.engine))
