"""Settings of the whole cluster, kept in the cluster database: every member reads the same value.

Decides which settings there are and that their values are checked before they are kept. What only
one node needs is a setting of the node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import Column, MetaData, Table, Text, select

from tidegate.cluster.ledger import Update
from tidegate.cluster.membership import DEFAULT_OFFLINE_S, offline_threshold_s
from tidegate.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tidegate.cluster.database import ClusterDatabase

_CREATE: Final = """
CREATE TABLE cluster_setting (
    name text NOT NULL PRIMARY KEY,
    value text NOT NULL
)
"""
UPDATES: Final = (Update("cluster.settings", (_CREATE,)),)

_SETTINGS: Final = Table("cluster_setting", MetaData(), Column("name", Text), Column("value", Text))

CHECKS: Final[Mapping[str, Callable[[str], object]]] = {"offline_threshold": offline_threshold_s}
"""Each setting, and what refuses a wrong value."""
DEFAULTS: Final[Mapping[str, str]] = {"offline_threshold": str(DEFAULT_OFFLINE_S)}


class ClusterSettings:
    """The settings of one cluster."""

    def __init__(self, database: ClusterDatabase) -> None:
        self._database = database

    def get(self, name: str) -> str | None:
        """A setting that was set; None where the default holds."""
        return self._read().get(name)

    def all(self) -> dict[str, str]:
        """Every setting as it holds now."""
        return {**DEFAULTS, **self._read()}

    def set(self, name: str, value: str) -> None:
        """Set a setting; an empty value goes back to the default.

        Raises:
            NotFoundError: there is no such setting.
            InvalidArgumentError: the value is wrong.
        """
        check(name, value)
        with self._database.transaction() as connection:
            connection.execute(_SETTINGS.delete().where(_SETTINGS.c.name == name))
            if value:
                connection.execute(_SETTINGS.insert().values(name=name, value=value))

    def _read(self) -> dict[str, str]:
        with self._database.read() as connection:
            return {row.name: row.value for row in connection.execute(select(_SETTINGS))}


def check(name: str, value: str) -> None:
    """Refuse what cannot be set.

    Raises:
        NotFoundError: there is no such setting.
        InvalidArgumentError: the value is wrong.
    """
    if name not in CHECKS:
        raise NotFoundError(
            f"there is no setting {name} of the cluster",
            next_step=f"settings are: {', '.join(sorted(CHECKS))}",
        )
    if value:
        CHECKS[name](value)
