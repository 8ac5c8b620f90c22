"""Chance that parts those who would all do the same thing at the same moment.

It is drawn from a generator of our own: a program that embeds a router may have seeded the one of
:mod:`random` and count on what it draws.
"""

from __future__ import annotations

from random import Random
from typing import Final

CHANCE: Final = Random()  # noqa: S311 - guards nothing
"""May be drawn from by several threads."""
