"""Fixtures of a real node; see ``fix_node``."""

from fix_node import client, node, shop

__all__ = ["client", "node", "shop"]
