"""Settings of the whole cluster, kept in the cluster database: every member reads the same value.

Decides which settings there are and that their values are checked before they are kept. What only
one node needs is a setting of the node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import Column, MetaData, Table, Text, inspect, select

from tidegate.cluster.ledger import Update
from tidegate.cluster.membership import DEFAULT_OFFLINE_S, offline_threshold_s
from tidegate.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Connection

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
_GENERATION: Final = "generation"
"""Not a setting that people see; :mod:`tidegate.cluster.generation` says what it is."""
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

    @staticmethod
    def is_there(connection: Connection) -> bool:
        """Whether the database has come as far as to have settings."""
        return inspect(connection).has_table(_SETTINGS.name)

    @staticmethod
    def generation(connection: Connection) -> int:
        """The cluster's generation; 0 until a recovery or restore raises it."""
        if not ClusterSettings.is_there(connection):
            return 0
        query = select(_SETTINGS.c.value).where(_SETTINGS.c.name == _GENERATION)
        return int(connection.execute(query).scalar_one_or_none() or 0)

    @staticmethod
    def set_generation(connection: Connection, generation: int) -> None:
        """Keep the cluster's generation."""
        connection.execute(_SETTINGS.delete().where(_SETTINGS.c.name == _GENERATION))
        connection.execute(_SETTINGS.insert().values(name=_GENERATION, value=str(generation)))

    def _read(self) -> dict[str, str]:
        with self._database.read() as connection:
            rows = connection.execute(select(_SETTINGS))
            return {row.name: row.value for row in rows if row.name != _GENERATION}


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
