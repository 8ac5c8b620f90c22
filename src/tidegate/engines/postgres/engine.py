"""PostgreSQL as an engine: what the seam promises, from the modules that keep it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import psycopg

from tidegate.engines.postgres import connection, sqlstates

if TYPE_CHECKING:
    from tidegate.engines.failures import FailurePhase
    from tidegate.engines.seam import Engine
    from tidegate.errors import TidegateError


class PostgresEngine:
    """See :class:`tidegate.engines.seam.Engine`."""

    errors: type[Exception] = psycopg.Error
    connect = staticmethod(connection.connect)
    mark_process = staticmethod(connection.mark_process)

    def failure(self, error: Exception, phase: FailurePhase) -> TidegateError:
        """By the one table of SQLSTATEs."""
        assert isinstance(error, psycopg.Error)
        return sqlstates.failure(error, phase)


ENGINE: Final[Engine] = PostgresEngine()
