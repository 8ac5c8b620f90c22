"""Verbs about the schemas of shards, named as on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidegate.client.transport import VERB_TIMEOUT_S, Noun, path_of

if TYPE_CHECKING:
    from tidegate.client.transport import Json


class Schemas(Noun):
    """``tidegate schema``: source and target are pairs of a keyspace and a shard."""

    def diff(self, source: tuple[str, str], target: tuple[str, str], **options: Any) -> Json:
        """How the schema of one shard differs from another's.

        Args:
            source: keyspace and shard.
            target: keyspace and shard.
            **options: source_tablet, tables, exclude_tables, include_views.
        """
        return self._between("diff", source, target, options)

    def copy(
        self,
        source: tuple[str, str],
        target: tuple[str, str],
        *,
        dry_run: bool = False,
        **options: Any,
    ) -> Json:
        """Make at the target what it lacks of the source's schema.

        Args:
            source: keyspace and shard.
            target: keyspace and shard.
            dry_run: try everything, and roll it back.
            **options: as of :meth:`diff`, and verify, allow.
        """
        return self._between("copy", source, target, {**options, "dry_run": dry_run})

    def _between(
        self, verb: str, source: tuple[str, str], target: tuple[str, str], options: Json
    ) -> Json:
        body = {
            "source_keyspace": source[0],
            "source_shard": source[1],
            "target_keyspace": target[0],
            "target_shard": target[1],
            **options,
        }
        return self._call("POST", path_of("schema", verb), body, timeout_s=VERB_TIMEOUT_S)
