"""Where a secret is found, and how none gets out.

Decides what a reference of a secret is: ``env:NAME`` or ``file:/path``, resolved at the moment it
is needed, and the only thing that is stored, logged or shown. It must not know what the secrets are
for.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tidegate.errors import SecretError

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
