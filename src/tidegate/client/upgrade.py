"""Verbs about the upgrade of the cluster and its shards, named as on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidegate.client.transport import Noun, path_of

if TYPE_CHECKING:
    from tidegate.client.transport import Json


class Upgrade(Noun):
    """``tidegate upgrade``: the version of the cluster's own tables at its shards."""

    def status(self) -> Json:
        """Where the upgrade is, what failed, and what keeps it from being finalised."""
        return self._call("GET", path_of("upgrade"))

    def finalise(self, *, dry_run: bool = False) -> Json:
        """Close the way back to the version before."""
        return self._change("finalise", {}, dry_run=dry_run)

    def retry(self, shard: str | None = None, *, dry_run: bool = False) -> Json:
        """Try a shard, or everything that failed, again at once."""
        return self._change("retry", {"shard": shard}, dry_run=dry_run)

    def skip(self, shard: str, *, dry_run: bool = False) -> Json:
        """Let the upgrade go on without a shard."""
        return self._change("skip", {"shard": shard}, dry_run=dry_run)

    def supersede(self, *, dry_run: bool = False) -> Json:
        """Set an older upgrade that is stuck aside and begin this program's."""
        return self._change("supersede", {}, dry_run=dry_run)

    def _change(self, verb: str, body: dict[str, Any], *, dry_run: bool) -> Json:
        return self._call("POST", path_of("upgrade", verb), body, query={"dry_run": dry_run})
