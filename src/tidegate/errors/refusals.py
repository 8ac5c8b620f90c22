"""Which errors say that credentials were refused: what meets one is tried again rarely.

Decides from the error and from what caused it; how rarely is decided where it is tried again.
"""

from __future__ import annotations

from tidegate.errors.base import AuthenticationError, SecretError, TidegateError


def is_refusal(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is about credentials."""
    seen = 0
    while error is not None and seen < 20:
        if isinstance(error, AuthenticationError | SecretError):
            return True
        if isinstance(error, TidegateError) and error.details.get("refused"):
            return True
        error, seen = error.__cause__, seen + 1
    return False
