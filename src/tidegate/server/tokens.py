"""Who may use the API: bearer tokens, kept one a line in a file of the state directory.

Decides whether a request's token is one of them, in constant time. The file is made at the first
start, readable by its owner alone, and read again when it changes, so that a token can be added or
withdrawn while the node runs. Tokens are never logged.
"""

from __future__ import annotations

import hmac
import os
import secrets
import threading
from typing import TYPE_CHECKING

from tidegate.errors import SecretError, UnauthorizedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TOKEN_PREFIX = "tg_"  # noqa: S105 - lets scanners of leaked secrets know ours


class Tokens:
    """The tokens of a node."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, int] | None = None
        self._tokens: tuple[bytes, ...] = ()

    def ensure(self) -> bool:
        """Make the file with one token if it is not there; True when it was made.

        Raises:
            SecretError: others may read the file.
        """
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            if self._path.stat().st_mode & 0o077:
                raise SecretError(
                    f"{self._path} can be read by others",
                    next_step=f"chmod 600 {self._path}",
                ) from None
            return False
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(f"{TOKEN_PREFIX}{secrets.token_urlsafe(32)}\n")
        return True

    def export(self) -> list[str]:
        """The tokens, for a node that joins: people use the same ones on every member."""
        return [token.decode() for token in self._current()]

    def adopt(self, tokens: Sequence[str]) -> None:
        """Take the tokens of the cluster in, beside this node's own."""
        known = {token.decode() for token in self._current()}
        with self._path.open("a", encoding="ascii") as file:
            file.writelines(f"{token}\n" for token in tokens if token not in known)

    def check(self, authorization: str | None) -> None:
        """Let a request pass or refuse it.

        Raises:
            UnauthorizedError: the header is missing, of another scheme, or no token of ours.
        """
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise UnauthorizedError(
                "the request has no API token",
                next_step=f"give the token in {self._path} with --token or TIDEGATE_TOKEN",
            )
        wanted = given.strip().encode()
        # Every token is compared, so that the time says nothing about which one was close.
        matches = [hmac.compare_digest(wanted, token) for token in self._current()]
        if not any(matches):
            raise UnauthorizedError(
                "the API token is not one of this node's",
                next_step=f"give the token in {self._path} with --token or TIDEGATE_TOKEN",
            )

    def _current(self) -> tuple[bytes, ...]:
        with self._lock:
            try:
                status = self._path.stat()
                stamp = (status.st_mtime_ns, status.st_ino)
                if stamp != self._seen:
                    lines = self._path.read_bytes().splitlines()
                    self._tokens = tuple(
                        line.strip() for line in lines if line.strip() and line[:1] != b"#"
                    )
                    self._seen = stamp
            except OSError:
                self._seen, self._tokens = None, ()
            return self._tokens
