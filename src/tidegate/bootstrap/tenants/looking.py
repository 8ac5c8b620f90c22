"""What is found on one shard: schemas or databases that fit a pattern, or that a query names.

Decides what the rows of a query mean. Its columns are ``schema``, ``database`` and ``name``: the
first two say where the tenant is, the last, which may be missing or null, how it is to be called. A
query that does not say where is refused as a whole; a place that is not there is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psycopg

from tidegate.bootstrap.tenants.model import Place
from tidegate.bootstrap.tenants.names import Spot
from tidegate.engines.postgres import tenant_places
from tidegate.errors import InvalidArgumentError

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.tenant_places import NamedRows

DISCOVERED_MAX: Final = 100_000
"""Of one shard."""
COLUMNS: Final = ("schema", "database", "name")


@dataclass(frozen=True, slots=True)
class ShardName:
    """Where is looked."""

    keyspace: str
    name: str

    def __str__(self) -> str:
        return f"{self.keyspace}/{self.name}"

    def place(self, *, schema: str = "", database: str = "") -> Place:
        """A place on it."""
        return Place(self.keyspace, self.name, database=database, schema=schema)


def fitting(
    connection: Connection[TupleRow], shard: ShardName, *, schemas: str, databases: str
) -> list[Spot]:
    """The schemas, or the databases, whose names are LIKE a pattern.

    Raises:
        InvalidArgumentError: it is no pattern.
    """
    try:
        if schemas:
            found = tenant_places.schemas_like(connection, schemas)
            return [Spot(shard.place(schema=name)) for name in found]
        found = tenant_places.databases_like(connection, databases)
        return [Spot(shard.place(database=name)) for name in found]
    except psycopg.DataError as error:
        raise InvalidArgumentError(
            f"{schemas or databases!r} is no pattern of LIKE: {error}",
            next_step="% stands for any characters, _ for one, a backslash before"
            " either for itself",
        ) from None


def queried(connection: Connection[TupleRow], shard: ShardName, query: str) -> list[Spot]:
    """The places that a query names.

    Raises:
        InvalidArgumentError: the server refuses the query, or its rows name no places.
    """
    try:
        answer = tenant_places.answer_of(connection, query, rows_max=DISCOVERED_MAX)
    except (psycopg.Error, UnicodeEncodeError) as error:
        said = error.diag.message_primary if isinstance(error, psycopg.Error) else None
        raise InvalidArgumentError(
            f"the query that names tenants fails on {shard}: {said or error}",
            next_step="try it there with psql, as the tablet's role; it runs on every shard of the"
            " keyspace, in a read-only transaction",
        ) from None
    found = spots_of(answer, shard, connection.info.dbname)
    schemas = tenant_places.schemas_there(
        connection, {each.place.schema for each in found if not each.place.database}
    )
    databases = tenant_places.databases_there(
        connection, {each.place.database for each in found if each.place.database}
    )
    return [
        Spot(each.place, each.name, is_there=_is_there(each.place, schemas, databases))
        for each in found
    ]


def _is_there(place: Place, schemas: set[str], databases: set[str]) -> bool:
    """Whether a place is there; of a schema in another database, whether that database is."""
    return place.database in databases if place.database else place.schema in schemas


def spots_of(answer: NamedRows, shard: ShardName, database: str) -> list[Spot]:
    """The places that the rows of an answer name, each once.

    Args:
        answer: of the query.
        shard: it was asked.
        database: in which it was asked; a schema of it needs no name of a database.

    Raises:
        InvalidArgumentError: columns are missing or mean nothing, a row names no place, or there
            are too many.
    """
    columns = answer.columns
    strangers = [each for each in columns if each not in COLUMNS]
    if strangers or len(set(columns)) != len(columns) or not {"schema", "database"} & set(columns):
        raise InvalidArgumentError(
            f"the query that names tenants has the columns {', '.join(columns)}",
            next_step="name them schema or database, and name: SELECT schema_name AS schema,"
            " customer AS name FROM …",
        )
    if len(answer.rows) > DISCOVERED_MAX:
        raise InvalidArgumentError(
            f"the query names more than {DISCOVERED_MAX} tenants on {shard}",
            next_step="let it name fewer",
        )
    found: dict[Spot, None] = {}
    for number, row in enumerate(answer.rows, 1):
        given = {name: value or "" for name, value in zip(columns, row, strict=True)}
        where = {each: given.get(each, "") for each in ("schema", "database")}
        if not any(where.values()):
            raise InvalidArgumentError(
                f"row {number} of the query that names tenants has neither a schema nor a database",
                next_step="leave such rows out: WHERE … IS NOT NULL",
            )
        if where["schema"] and where["database"] == database:
            where["database"] = ""
        found[Spot(shard.place(**where), given.get("name", ""))] = None
    return list(found)
