"""Resolves a table and key to the shard that serves it now."""
