"""The engines there are, and what each brings along.

Decides which databases Tidegate can work with. Whoever needs something of an engine asks for it
here, or is given it; nobody imports it by name. An engine is loaded when it is first needed.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from tidegate.errors import InvalidArgumentError

if TYPE_CHECKING:
    from tidegate.engines.checks import Asked, Check
    from tidegate.engines.seam import Engine
    from tidegate.topology.connections import Endpoint

_PACKAGES: Final = {"postgresql": "tidegate.engines.postgres"}


def engine_of(endpoint: Endpoint) -> Engine:
    """The engine of a database.

    Raises:
        InvalidArgumentError: there is none of that name.
    """
    return _engine(endpoint.engine)


@cache
def _engine(name: str) -> Engine:
    if name not in _PACKAGES:
        raise InvalidArgumentError(
            f"{name} is no database that Tidegate works with",
            next_step=f"choose one of: {', '.join(_PACKAGES)}",
        )
    found: Engine = import_module(f"{_PACKAGES[name]}.engine").ENGINE
    return found


def checks() -> list[Check[Asked, Any]]:
    """What only one engine can fail, of all engines; they look at facts that it reads itself."""
    found = (import_module(f"{package}.checks").CHECKS for package in _PACKAGES.values())
    return [check for of_one in found for check in of_one]
