"""Resolves a table and key to the shard that serves it now, and follows every switch.

``Router(HttpSource("http://127.0.0.1:8470", token="file:/etc/tidegate/token"))`` follows a node;
``router.resolve("accounts", key=7)`` answers at once. The adapters are
:mod:`tidegate.router.psycopg` and :mod:`tidegate.router.sqlalchemy`; programs in other languages
are served by :mod:`tidegate.router.hook`. :mod:`tidegate.router.retry` says when to run a
transaction again.
"""

from tidegate.router.following import Router, Routes
from tidegate.router.http import HttpSource
from tidegate.router.model import Credentials, Route
from tidegate.router.sources import RouteSource, StoreSource

__all__ = ["Credentials", "HttpSource", "Route", "RouteSource", "Router", "Routes", "StoreSource"]
