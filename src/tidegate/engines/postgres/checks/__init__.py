"""What only PostgreSQL can fail: one check a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidegate.engines.checks import checks_of

if TYPE_CHECKING:
    from tidegate.engines.checks import Asked, Check
    from tidegate.engines.postgres.facts import Sides

CHECKS: Final[tuple[Check[Asked, Sides], ...]] = checks_of(__name__, __path__)
