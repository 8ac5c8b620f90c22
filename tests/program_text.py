"""Runs a program given as a text: ``python -c TEXT ARGUMENTS``, for the fork server."""

from __future__ import annotations

import sys


def main() -> None:
    text = sys.argv.pop(1)
    exec(compile(text, "<text>", "exec"), {"__name__": "__main__"})  # noqa: S102 - a test's own
