"""The node's log: one JSON object a line on standard error, every record with its event.

Decides form and level only. Secrets never reach it, because no error message holds one. A line that
cannot be written is lost and counted: whatever is logged, the node's work must not end with it.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Final, cast

import structlog

from tidegate.steady_lines import SteadyLines

if TYPE_CHECKING:
    from typing import TextIO

_LINES: Final = SteadyLines(2)


def problem() -> str | None:
    """Why the log cannot be written; None when its last line was."""
    why = _LINES.failure
    return None if why is None else f"the log cannot be written: {why}; {_LINES.lost} lines lost"


def configure(level: str) -> None:
    """Set the form and the lowest level for the whole process."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _LINES)),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
