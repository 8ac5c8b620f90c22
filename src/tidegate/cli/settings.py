"""Which node the command line speaks to, with which token, and where that was said.

Decides precedence: flag, then environment (``TIDEGATE_URL``, ``TIDEGATE_TOKEN``), then the context
of ``~/.config/tidegate/config.toml``, then a node on this machine. The file holds references of
tokens, never tokens.
"""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tidegate.errors import InvalidArgumentError, NotFoundError

URL_VARIABLE: Final = "TIDEGATE_URL"
TOKEN_VARIABLE: Final = "TIDEGATE_TOKEN"  # noqa: S105 - the name of a variable
CONTEXT_VARIABLE: Final = "TIDEGATE_CONTEXT"
STATE_VARIABLE: Final = "TIDEGATE_STATE_DIR"
CA_VARIABLE: Final = "TIDEGATE_CA_FILE"
DEFAULT_URL: Final = "http://127.0.0.1:8470"


@dataclass(frozen=True)
class Setting:
    """A value and where it is from."""

    value: str | None
    origin: str


@dataclass(frozen=True)
class Connection:
    """How to reach the node."""

    context: Setting
    url: Setting
    token: Setting
    ca_file: Setting


def config_path() -> Path:
    """The user's file."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "tidegate" / "config.toml"


def read_file() -> dict[str, Any]:
    """The user's file; empty when there is none.

    Raises:
        InvalidArgumentError: it cannot be read.
    """
    try:
        return tomllib.loads(config_path().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgumentError(
            f"{config_path()} cannot be read: {error}", next_step="mend or remove it"
        ) from None


def write_context(
    name: str, *, url: str, token: str | None, ca_file: str | None, dry_run: bool = False
) -> bool:
    """Add or replace a context and make it the current one; says whether there was one."""
    found = read_file()
    given = {"url": url, "token": token, "ca_file": ca_file}
    known = found.get("contexts", {})
    if not dry_run:
        _write(name, {**known, name: {k: v for k, v in given.items() if v}})
    return name in known


def use_context(name: str, *, dry_run: bool = False) -> None:
    """Make a context the current one.

    Raises:
        NotFoundError: there is none of that name.
    """
    contexts = read_file().get("contexts", {})
    _require(contexts, name)
    if not dry_run:
        _write(name, contexts)


def resolve(
    *, url: str | None, token: str | None, context: str | None, ca_file: str | None = None
) -> Connection:
    """The connection, from flags, environment, file and defaults.

    Raises:
        NotFoundError: the context that is asked for does not exist.
        InvalidArgumentError: the file cannot be read.
    """
    file = read_file()
    contexts = file.get("contexts", {})
    chosen = _first(
        (context, "flag"),
        (os.environ.get(CONTEXT_VARIABLE), f"env {CONTEXT_VARIABLE}"),
        (file.get("current"), f"file {config_path()}"),
    )
    here: dict[str, Any] = {}
    if chosen.value is not None:
        here = _require(contexts, chosen.value)
    origin = f"context {chosen.value} in {config_path()}"
    return Connection(
        context=chosen,
        url=_first(
            (url, "flag"),
            (os.environ.get(URL_VARIABLE), f"env {URL_VARIABLE}"),
            (here.get("url"), origin),
            (_local_url(), f"node in {_state_dir()}"),
            (DEFAULT_URL, "default"),
        ),
        token=_first(
            (token, "flag"),
            (os.environ.get(TOKEN_VARIABLE), f"env {TOKEN_VARIABLE}"),
            (here.get("token"), origin),
            (_local_token(), f"node in {_state_dir()}"),
        ),
        ca_file=_first(
            (ca_file, "flag"),
            (os.environ.get(CA_VARIABLE), f"env {CA_VARIABLE}"),
            (here.get("ca_file"), origin),
        ),
    )


def _first(*candidates: tuple[str | None, str]) -> Setting:
    return next((Setting(value, o) for value, o in candidates if value), Setting(None, "not set"))


def _require(contexts: dict[str, Any], name: str) -> dict[str, Any]:
    found = contexts.get(name)
    if not isinstance(found, dict):
        raise NotFoundError(
            f"there is no context {name!r} in {config_path()}",
            next_step=f"tidegate config set {name} --url URL --token file:/path",
        )
    return found


def _state_dir() -> Path:
    """Where a node of this account on this machine keeps its state."""
    given = os.environ.get(STATE_VARIABLE)
    if given:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/tidegate")
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "tidegate"


def _local_url() -> str | None:
    path = _state_dir() / "url"
    return path.read_text(encoding="ascii").strip() if os.access(path, os.R_OK) else None


def _local_token() -> str | None:
    path = _state_dir() / "tokens"
    return f"file:{path}" if os.access(path, os.R_OK) else None


def _write(current: str, contexts: dict[str, dict[str, str]]) -> None:
    # A JSON string is a TOML basic string as long as it has no control characters.
    lines = [f"current = {json.dumps(current)}", ""]
    for name, context in sorted(contexts.items()):
        lines.append(f"[contexts.{json.dumps(name)}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in sorted(context.items())]
        lines.append("")
    path = config_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.touch(mode=0o600)
    scratch.write_text("\n".join(lines), encoding="utf-8")
    scratch.replace(path)
