"""How often a server that refuses our credentials is asked again: rarely, and less and less.

Decides when the next try may be made. A server, or the directory behind it, may lock an account
after some wrong passwords, so nothing that works by itself may try in a fixed rhythm. A try is made
at once when a secret has other content than the one that was refused.

What a secret contains is never kept: :class:`SecretDigest` compares keyed digests, whose key lives
as long as the process.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tidegate.backoff import Backoff
from tidegate.errors import SecretError, is_refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tidegate.topology.connections import Endpoint

FIRST_DELAY_S: Final = 15.0
LONGEST_DELAY_S: Final = 900.0


def delay_s(refusals: int, first_s: float = FIRST_DELAY_S) -> float:
    """How long to wait after so many refusals in a row: each doubles it, up to a bound."""
    return Backoff(first_s, LONGEST_DELAY_S).pause_s(refusals)


class SecretDigest:
    """Says whether secrets have changed, without keeping them."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def of(self, endpoints: Iterable[Endpoint]) -> str:
        """A text that changes when a connection string or the content of a secret does."""
        digest = hashlib.blake2b(key=self._key, digest_size=16)
        for endpoint in endpoints:
            try:
                content = endpoint.password() or ""
            except SecretError:
                content = ""
            for part in (endpoint.conninfo, endpoint.secret or "", content):
                digest.update(hashlib.blake2b(part.encode(), key=self._key).digest())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Refusal:
    """What was refused: with which secrets, how often in a row, and when it may be tried again."""

    digest: str
    count: int
    retry_at: float

    def allows(self, digest: str, now: float) -> bool:
        """Whether a try may be made now."""
        return digest != self.digest or now >= self.retry_at


def refused(before: Refusal | None, digest: str, now: float) -> Refusal:
    """The state after one more refusal."""
    count = 1 if before is None else before.count + 1
    return Refusal(digest, count, now + delay_s(count))


class Refusals:
    """What this process knows to be refused, by the name of the work that met it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._digest = SecretDigest()
        self._lock = threading.Lock()
        self._known: dict[str, Refusal] = {}

    def allow(self, name: str, endpoints: Iterable[Endpoint]) -> bool:
        """Whether work that uses these endpoints may connect now."""
        with self._lock:
            known = self._known.get(name)
        return known is None or known.allows(self._digest.of(endpoints), self._clock())

    def note(self, name: str, endpoints: Iterable[Endpoint], error: BaseException | None) -> None:
        """Work has ended, with an error or well."""
        if not is_refusal(error):
            with self._lock:
                self._known.pop(name, None)
            return
        digest = self._digest.of(endpoints)
        with self._lock:
            self._known[name] = refused(self._known.get(name), digest, self._clock())
