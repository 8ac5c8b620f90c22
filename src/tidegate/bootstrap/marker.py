"""Whether a cluster has been initialised before.

A cluster is initialised when its core tables are there and one of these is: a recorded version; the
tables that a later version added; anything else that shows it was in use before versions were
recorded. So tables that a later version adds never make an old cluster look empty, and a start that
was interrupted before its commit leaves nothing that looks like one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import inspect

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from tidegate.bootstrap.store import UpgradeStore


def is_initialised(
    *,
    core: frozenset[str],
    late: frozenset[str],
    tables: frozenset[str],
    has_version: bool,
    in_use: bool,
) -> bool:
    """The decision.

    Args:
        core: tables that every initialised cluster has.
        late: tables that a later version added to them.
        tables: what is there.
        has_version: a version is recorded.
        in_use: the cluster was used before versions were recorded.
    """
    if not core <= tables:
        return False
    return has_version or in_use or (bool(late) and late <= tables)


def _never(_connection: Connection) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Marker:
    """What tells an initialised cluster from an empty one.

    Attributes:
        core: tables that every initialised cluster has.
        late: tables that a later version added to them.
        in_use: asks whether a cluster without a recorded version was in use nevertheless.
    """

    core: frozenset[str] = frozenset()
    late: frozenset[str] = frozenset()
    in_use: Callable[[Connection], bool] = field(default=_never)

    def is_set(self, connection: Connection, store: UpgradeStore) -> bool:
        """Whether the cluster has been initialised."""
        tables = frozenset(inspect(connection).get_table_names()) if self.core | self.late else ()
        return is_initialised(
            core=self.core,
            late=self.late,
            tables=frozenset(tables),
            has_version=store.latest(connection) is not None,
            in_use=self.in_use(connection),
        )
