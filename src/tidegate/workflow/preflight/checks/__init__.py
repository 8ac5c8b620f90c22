"""What a workflow can fail on any engine: one check a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidegate.engines.checks import checks_of

if TYPE_CHECKING:
    from tidegate.workflow.preflight.check import PreflightCheck

NEUTRAL: Final[tuple[PreflightCheck, ...]] = checks_of(__name__, __path__)
