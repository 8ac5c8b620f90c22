"""Warns of extensions whose versions differ between the sides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Needed extensions whose installed or installable version differs from the source's."""
    for extension in facts.needed_extensions():
        wanted = next(
            (
                s.survey.extensions[extension]
                for s in facts.sources
                if extension in s.survey.extensions
            ),
            None,
        )
        for database in facts.targets:
            installed = database.survey.extensions.get(extension)
            available = database.survey.available_extensions.get(extension, ())
            if wanted is None or installed == wanted or (not installed and wanted in available):
                continue
            if installed or available:
                yield Problem(
                    f"{database.label} {extension}",
                    f"extension {extension} is {installed or 'not installed'} there"
                    f" ({', '.join(available) or 'no version'} available), {wanted} at the source",
                )


CHECK = Check(
    id="TG-PF-411",
    title="An extension has another version at the target",
    severity=Severity.WARNING,
    cause="Another version of an extension may write its values differently.",
    remedy="ALTER EXTENSION … UPDATE on one side",
    find=find,
    schema=True,
)
