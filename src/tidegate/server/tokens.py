"""Who may use the API: bearer tokens and their roles.

Decides whose a token is. There are two kinds. The file ``tokens`` in the state directory, made at
the first start and readable by its owner alone, holds tokens of the node's own account, one a line;
they are admin on this node, and whoever may write the file is admin anyway. All others have a name,
a role and perhaps an end, and are kept in the cluster database as hashes, so that every member
knows the same ones. The first token of a cluster's first node is one of those, too.

Hashes are read again at most once a second, when somebody asks; so a token that is revoked is
refused by every member within :data:`FRESH_S`. A copy of the hashes lies in the state directory: a
member whose cluster database does not answer still knows its people. Tokens are never logged.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import structlog

from tidegate.cluster.access_tokens import AccessToken, AccessTokens, hash_of
from tidegate.errors import AlreadyExistsError, SecretError, TidegateError, UnauthorizedError
from tidegate.server.access import AccessRole, Caller

if TYPE_CHECKING:
    from pathlib import Path

    from tidegate.cluster.database import ClusterDatabase

TOKEN_PREFIX: Final = "tg_"  # noqa: S105 - lets scanners of leaked secrets know ours
FRESH_S: Final = 1.0
UNKNOWN_AGAIN_S: Final = 0.2
"""How often unknown tokens may have the hashes read again; they wait for it."""
FILE_NAME: Final = "file"
"""Who asks with a token of the node's own file."""
FIRST_NAME: Final = "first"
COPY_NAME: Final = "tokens.hashes"

log = structlog.get_logger("tidegate.tokens")


def new_token() -> str:
    """A token nobody has."""
    return f"{TOKEN_PREFIX}{secrets.token_urlsafe(32)}"


class Tokens:
    """The tokens that a node knows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._copy = path.with_name(COPY_NAME)
        self._lock = threading.Lock()
        self._seen: tuple[int, int] | None = None
        self._tokens: tuple[bytes, ...] = ()
        self._stored: AccessTokens | None = None
        self._known: dict[str, AccessToken] = self._read_copy()
        self._read_at = float("-inf")
        self._turn = threading.Lock()

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
            file.write(f"{new_token()}\n")
        return True

    def attach(self, database: ClusterDatabase) -> None:
        """Use the tokens of a cluster database from now on.

        The first node's own token becomes the first of the cluster, so that it is good at every
        member.
        """
        stored = AccessTokens(database)
        own = self._current()
        try:
            if own and not stored.list():
                stored.create(
                    FIRST_NAME, own[0].decode(), AccessRole.ADMIN, ttl_s=None, created_by=FILE_NAME
                )
        except AlreadyExistsError:
            pass  # another node was quicker
        except TidegateError as error:
            log.warning("the first token was not kept", error=str(error))
        with self._lock:
            self._stored = stored
        self.refresh()

    def detach(self) -> None:
        """The cluster database is being closed; what is known of it stays known."""
        with self._lock:
            self._stored = None

    def refresh(self) -> None:
        """Read the hashes again; when the database does not answer, the ones known stay."""
        with self._lock:
            stored = self._stored
        if stored is None:
            return
        began = time.monotonic()
        try:
            known = {each.sha256: each for each in stored.list()}
        except TidegateError as error:
            log.warning("tokens could not be read", error=str(error))
            return
        finally:
            self._read_at = began
        if known != self._known:
            self._known = known
            self._write_copy(known)

    def check(self, authorization: str | None, origin: str = "") -> Caller:
        """Who asks; may read the cluster database.

        Raises:
            UnauthorizedError: the header is missing, of another scheme, or no good token of ours.
        """
        scheme, _, given = (authorization or "").partition(" ")
        wanted = given.strip()
        if scheme.lower() != "bearer" or not wanted:
            raise UnauthorizedError(
                "the request has no API token",
                next_step=f"give the token in {self._path} with --token or TIDEGATE_TOKEN",
            )
        # Every token is compared, so that the time says nothing about which one was close.
        matches = [hmac.compare_digest(wanted.encode(), token) for token in self._current()]
        if any(matches):
            return Caller(FILE_NAME, AccessRole.ADMIN, origin)
        digest = hash_of(wanted)
        self._refresh_after(FRESH_S)
        found = self._known.get(digest)
        if found is None:  # perhaps it was made at another member a moment ago
            self._wait_for_turn()
            found = self._known.get(digest)
        if found is None or not found.is_good(round(time.time() * 1000)):
            why = "is not one of this cluster's" if found is None else "has expired"
            raise UnauthorizedError(
                f"the API token {why}",
                next_step=f"give the token in {self._path} with --token or TIDEGATE_TOKEN, or have"
                " one made: tidegate token create",
            )
        return Caller(found.name, AccessRole(found.role), origin)

    def _wait_for_turn(self) -> None:
        """Have the hashes read again, but not more often than is allowed."""
        asked_at = time.monotonic()
        with self._turn:
            if self._read_at < asked_at:  # nobody has read them for us
                time.sleep(max(0.0, self._read_at + UNKNOWN_AGAIN_S - time.monotonic()))
                self.refresh()

    def _refresh_after(self, age_s: float) -> None:
        if time.monotonic() - self._read_at >= age_s:
            self.refresh()

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

    def _read_copy(self) -> dict[str, AccessToken]:
        try:
            rows: list[dict[str, Any]] = json.loads(self._copy.read_text(encoding="utf-8"))
            return {row["sha256"]: AccessToken(**row) for row in rows}
        except (OSError, ValueError, TypeError, KeyError):
            return {}

    def _write_copy(self, known: dict[str, AccessToken]) -> None:
        scratch = self._copy.with_suffix(".tmp")
        try:
            handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump([asdict(each) for each in known.values()], file)
            scratch.replace(self._copy)
        except OSError as error:
            log.warning("the copy of the token hashes was not written", error=str(error))
