"""Keyspaces, shards, key ranges, vindexes, vschema, tablets and routing rules."""
