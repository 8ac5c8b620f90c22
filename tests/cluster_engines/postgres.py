"""PostgreSQL under the conformance suite: schemas of one database, reached by a plain role."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Self

import psycopg
from psycopg import sql

from cluster_engines.engine import Cut, Engine, Fault
from fix_proxy import Proxy
from tidegate.engines.postgres.local import THROW_AWAY_SETTINGS, LocalServer

if TYPE_CHECKING:
    from collections.abc import Iterator

ROLE = "control"
DATABASE = "cluster"


class PostgresEngine(Engine):
    """Schemas of one database."""

    name: ClassVar[str] = "postgresql"
    faults: ClassVar[frozenset[Fault]] = frozenset({"lost commit", "cut connection"})

    def __init__(self, server: LocalServer) -> None:
        self.server = server
        self._numbers = itertools.count(1)

    @classmethod
    def start(cls) -> Self:
        server = LocalServer.create("cluster", settings=THROW_AWAY_SETTINGS).start()
        try:
            make_cluster_database(server)
        except BaseException:
            server.destroy()
            raise
        return cls(server)

    def stop(self) -> None:
        self.server.destroy()

    def fresh_url(self) -> str:
        return f"{url_of(self.server)}&schema=tidegate_{next(self._numbers)}"

    @contextmanager
    def losing_commits(self, url: str, count: int) -> Iterator[str]:
        with Proxy(self.server.port) as proxy:
            proxy.lose_commits(count)
            yield url.replace(f":{self.server.port}/", f":{proxy.port}/")

    @contextmanager
    def through_a_cut(self, url: str) -> Iterator[Cut]:
        with Proxy(self.server.port) as proxy:
            yield ProxyCut(url.replace(f":{self.server.port}/", f":{proxy.port}/"), proxy)


class ProxyCut(Cut):
    """The connections through a proxy."""

    def __init__(self, url: str, proxy: Proxy) -> None:
        self.url = url
        self._proxy = proxy

    def cut(self) -> None:
        self._proxy.cut()


def make_cluster_database(server: LocalServer) -> None:
    """A role that may do nothing but own its database."""
    with psycopg.connect(
        server.conninfo(), password=server.password, autocommit=True
    ) as connection:
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                sql.Identifier(ROLE), sql.Literal(server.password)
            )
        )
        connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(
                sql.Identifier(DATABASE), sql.Identifier(ROLE)
            )
        )


def url_of(*servers: LocalServer, role: str = ROLE, database: str = DATABASE) -> str:
    """The cluster database's URL; the first server's secret is that of all."""
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    return f"postgresql://{role}@{hosts}/{database}?secret={servers[0].secret}"
