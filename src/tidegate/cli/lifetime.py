"""What a command opened and its end closes, however it ends."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final

AT_END: Final = ExitStack()
"""Closed by :func:`tidegate.cli.main.run`."""
