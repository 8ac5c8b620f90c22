"""The engines there are, and what each brings along.

Decides which databases Tidegate can work with. Whoever needs something of an engine asks for it
here, or is given it; nobody imports it by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tidegate.engines.postgres.checks import CHECKS

if TYPE_CHECKING:
    from tidegate.engines.checks import Asked, Check


@dataclass(frozen=True)
class Engine:
    """A kind of database.

    Attributes:
        checks: what only it can fail; they look at facts that it reads itself.
    """

    name: str
    checks: tuple[Check[Asked, Any], ...]


ENGINES: Final = (Engine("postgresql", CHECKS),)
