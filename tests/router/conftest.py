"""Fixtures of the router's tests."""

from fix_shop import shop, store

__all__ = ["shop", "store"]
