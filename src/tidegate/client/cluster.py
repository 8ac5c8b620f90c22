"""The nouns of the cluster: members, tokens to join, settings of the whole."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tidegate.client.transport import VERB_TIMEOUT_S, Json, Noun, path_of
from tidegate.errors import InvalidArgumentError

if TYPE_CHECKING:
    from pathlib import Path


class Cluster(Noun):
    """``tidegate cluster``: the nodes that work together."""

    def show(self) -> Json:
        """The cluster as the node sees it: engine, schema, stage, owner."""
        return self._call("GET", path_of("cluster"))

    def list(self) -> Json:
        """Every member with its status and the reason."""
        return self._call("GET", path_of("cluster", "members"))

    def backup(self, path: Path) -> None:
        """Write the cluster database as it is now into a file that only its owner may read.

        The file appears under its name when it is complete; it ends with a hash of all before.

        Raises:
            InvalidArgumentError: the file cannot be written.
        """
        part = path.with_name(f".{path.name}.part")
        try:
            try:
                handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with (
                    os.fdopen(handle, "wb") as file,
                    self._transport.pieces(path_of("cluster", "backup")) as pieces,
                ):
                    file.writelines(pieces)
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise InvalidArgumentError(
                f"the backup {path} cannot be written: {error.strerror}",
                next_step="make room, or choose another place; nothing is left of it",
            ) from None

    def enable(self, name: str, *, dry_run: bool = False) -> Json:
        """Make the node the first member of a cluster."""
        return self._change("enable", {"name": name}, dry_run=dry_run)

    def join(self, token: str, *, dry_run: bool = False) -> Json:
        """Make the node a member of the cluster that made the token."""
        return self._change("join", {"token": token}, dry_run=dry_run)

    def leave(self, name: str, *, force: bool = False, dry_run: bool = False) -> Json:
        """Let a member go."""
        return self._remove(name, force=force, evict=False, dry_run=dry_run)

    def evict(self, name: str, *, force: bool = False, dry_run: bool = False) -> Json:
        """Throw a member out that is offline, or blocks an upgrade."""
        return self._remove(name, force=force, evict=True, dry_run=dry_run)

    def promote(self, name: str, role: str = "voter", *, dry_run: bool = False) -> Json:
        """Give a member a role in the replication of the cluster database."""
        path = path_of("cluster", "members", name, "role")
        return self._call(
            "PUT", path, {"role": role}, query={"dry_run": dry_run}, timeout_s=VERB_TIMEOUT_S
        )

    def token_create(self, name: str, *, ttl_s: float | None = None, dry_run: bool = False) -> Json:
        """A token for one node to join as ``name``; its answer is the only place it is shown."""
        body = {"name": name} if ttl_s is None else {"name": name, "ttl_s": ttl_s}
        return self._call("POST", path_of("cluster", "tokens"), body, query={"dry_run": dry_run})

    def token_list(self) -> Json:
        """The tokens that were made, without their secrets."""
        return self._call("GET", path_of("cluster", "tokens"))

    def token_revoke(self, name: str, *, dry_run: bool = False) -> Json:
        """Forget a token."""
        return self._call("DELETE", path_of("cluster", "tokens", name), query={"dry_run": dry_run})

    def settings(self) -> Json:
        """Settings of the whole cluster."""
        return self._call("GET", path_of("cluster", "settings"))

    def set(self, name: str, value: str, *, dry_run: bool = False) -> Json:
        """Set a setting of the whole cluster; an empty value goes back to the default."""
        path = path_of("cluster", "settings", name)
        return self._call("PUT", path, {"value": value}, query={"dry_run": dry_run})

    def _change(self, verb: str, body: Json, *, dry_run: bool) -> Json:
        return self._call(
            "POST",
            path_of("cluster", verb),
            body,
            query={"dry_run": dry_run},
            timeout_s=VERB_TIMEOUT_S,
        )

    def _remove(self, name: str, *, force: bool, evict: bool, dry_run: bool) -> Json:
        return self._call(
            "DELETE",
            path_of("cluster", "members", name),
            query={"force": force, "evict": evict, "dry_run": dry_run},
            timeout_s=VERB_TIMEOUT_S,
        )
