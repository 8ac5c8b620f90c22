"""The nouns of access: API tokens and the audit log."""

from __future__ import annotations

from tidegate.client.transport import Json, Noun, path_of


class Tokens(Noun):
    """``tidegate token``: who may use the API, and for what."""

    def create(
        self, name: str, role: str, *, ttl_s: float | None = None, dry_run: bool = False
    ) -> Json:
        """A token with a role: read, operate or admin; its answer is the only place it is shown."""
        body = {"name": name, "role": role, "ttl_s": ttl_s}
        return self._call("POST", path_of("tokens"), body, query={"dry_run": dry_run})

    def list(self) -> Json:
        """The tokens, without themselves."""
        return self._call("GET", path_of("tokens"))

    def revoke(self, name: str, *, dry_run: bool = False) -> Json:
        """Forget a token."""
        return self._call("DELETE", path_of("tokens", name), query={"dry_run": dry_run})


class Audit(Noun):
    """``tidegate audit``: who did what."""

    def list(
        self, *, before: int | None = None, limit: int | None = None, call: str | None = None
    ) -> Json:
        """The newest entries, or those before one; of one call or operation when it is given."""
        query = {"before": before, "limit": limit, "call": call}
        return self._call("GET", path_of("audit"), query=query)

    def verify(self) -> Json:
        """Whether an entry was changed or is missing."""
        return self._call("GET", path_of("audit", "verify"), timeout_s=300.0)
