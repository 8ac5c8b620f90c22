"""The schema ``_tidegate`` at a shard, one file for each of its tables or kinds of row.

:mod:`~tidegate.engines.postgres.sidecar.installation` makes and removes it, ``schema.sql`` and the
parts' own DDL say what it is, :mod:`~tidegate.engines.postgres.sidecar.releases` how older ones
become that. This package loads none of them: a worker needs two.
"""
