"""The only rooms that know one database's SQL and wire; one package per engine."""
