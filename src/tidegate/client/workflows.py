"""Verbs of workflows and their comparisons, each a method named as on the command line.

Decides the request of each verb; it must not interpret answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidegate.client.transport import VERB_TIMEOUT_S, Noun, path_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.client.transport import Json


class WorkflowVerbs(Noun):
    """The verbs that MoveTables and Reshard share; ``keyspace`` is the target keyspace."""

    def _verb(
        self, verb: str, workflow: str, keyspace: str, body: Json, version: int | None = None
    ) -> Json:
        path = path_of("workflows", keyspace, workflow, verb)
        return self._call("POST", path, body, version=version, timeout_s=VERB_TIMEOUT_S)

    def show(self, workflow: str, keyspace: str) -> Json:
        """The workflow's record, its streams, its history."""
        return self._call("GET", path_of("workflows", keyspace, workflow))

    def status(self, workflow: str, keyspace: str) -> Json:
        """Progress, lag, traffic, and the log its slots retain."""
        return self._call("GET", path_of("workflows", keyspace, workflow, "status"))

    def start(
        self,
        workflow: str,
        keyspace: str,
        *,
        log_budget_bytes: int | None = None,
        dry_run: bool = False,
        version: int | None = None,
    ) -> Json:
        """Let stopped or failed streams go on; from now on with another log budget, if given."""
        body = {"dry_run": dry_run, "log_budget_bytes": log_budget_bytes}
        return self._verb("start", workflow, keyspace, body, version)

    def stop(
        self, workflow: str, keyspace: str, *, dry_run: bool = False, version: int | None = None
    ) -> Json:
        """Stop the streams where they are."""
        return self._verb("stop", workflow, keyspace, {"dry_run": dry_run}, version)

    def switch_traffic(
        self, workflow: str, keyspace: str, *, version: int | None = None, **options: Any
    ) -> Json:
        """Send reads, writes or both to the target.

        Args:
            workflow: its name.
            keyspace: the target keyspace.
            version: of the workflow the caller saw.
            **options: cells, tablet_types, timeout_s, max_pause_s, max_replication_lag_allowed_s,
                enable_reverse_replication, allow_unverified, ignore_routers, dry_run.
        """
        return self._verb("switchtraffic", workflow, keyspace, options, version)

    def reverse_traffic(
        self, workflow: str, keyspace: str, *, version: int | None = None, **options: Any
    ) -> Json:
        """Send traffic back to the source; options as :meth:`switch_traffic`."""
        return self._verb("reversetraffic", workflow, keyspace, options, version)

    def complete(
        self, workflow: str, keyspace: str, *, version: int | None = None, **options: Any
    ) -> Json:
        """Remove the old copy and the workflow: keep_data, keep_routing_rules, rename_tables."""
        return self._verb("complete", workflow, keyspace, options, version)

    def cancel(
        self, workflow: str, keyspace: str, *, version: int | None = None, **options: Any
    ) -> Json:
        """Remove the new copy and the workflow: keep_data, keep_routing_rules, dry_run."""
        return self._verb("cancel", workflow, keyspace, options, version)


class MoveTables(WorkflowVerbs):
    """``tidegate movetables``."""

    def create(
        self, workflow: str, target_keyspace: str, *, source_keyspace: str, **options: Any
    ) -> Json:
        """Copy tables to another keyspace and keep them in step.

        Args:
            workflow: its name.
            target_keyspace: where the tables go.
            source_keyspace: where they are.
            **options: tables or all_tables, exclude_tables, on_ddl, auto_start, stop_after_copy,
                log_budget_bytes, dry_run and more, as in the request ``MoveTablesCreate``.
        """
        body = {
            "workflow": workflow,
            "target_keyspace": target_keyspace,
            "source_keyspace": source_keyspace,
            **options,
        }
        return self._call("POST", path_of("movetables"), body, timeout_s=VERB_TIMEOUT_S)


class Reshard(WorkflowVerbs):
    """``tidegate reshard``."""

    def create(
        self,
        workflow: str,
        keyspace: str,
        *,
        source_shards: Sequence[str],
        target_shards: Sequence[str],
        **options: Any,
    ) -> Json:
        """Copy the rows of some shards to others of the same keyspace and keep them in step.

        Args:
            workflow: its name.
            keyspace: whose shards.
            source_shards: those that serve.
            target_shards: those that will.
            **options: on_ddl, auto_start, stop_after_copy, skip_schema_copy, log_budget_bytes,
                dry_run and more.
        """
        body = {
            "workflow": workflow,
            "keyspace": keyspace,
            "source_shards": list(source_shards),
            "target_shards": list(target_shards),
            **options,
        }
        return self._call("POST", path_of("reshard"), body, timeout_s=VERB_TIMEOUT_S)


class Workflows(WorkflowVerbs):
    """``tidegate workflow``: verbs that any type of workflow has, and the list of all."""

    def list(self, keyspace: str | None = None) -> Json:
        """All workflows, or those of a target keyspace."""
        return self._call("GET", path_of("workflows"), query={"keyspace": keyspace})


class VDiffs(Noun):
    """``tidegate vdiff``."""

    def create(self, workflow: str, keyspace: str, **options: Any) -> Json:
        """Compare source and target; answers at once, the comparison goes on in the node."""
        path = path_of("workflows", keyspace, workflow, "vdiffs")
        return self._call("POST", path, options, timeout_s=VERB_TIMEOUT_S)

    def list(self, workflow: str, keyspace: str) -> Json:
        """All comparisons of a workflow, newest first."""
        return self._call("GET", path_of("workflows", keyspace, workflow, "vdiffs"))

    def show(self, workflow: str, keyspace: str, uuid: str = "last") -> Json:
        """The report of one comparison, or of the last one."""
        return self._call("GET", path_of("workflows", keyspace, workflow, "vdiffs", uuid))

    def stop(self, workflow: str, keyspace: str, uuid: str) -> Json:
        """Stop a comparison; what it has done is kept."""
        path = path_of("workflows", keyspace, workflow, "vdiffs", uuid, "stop")
        return self._call("POST", path, {}, timeout_s=VERB_TIMEOUT_S)

    def resume(self, workflow: str, keyspace: str, uuid: str) -> Json:
        """Go on with a stopped comparison."""
        path = path_of("workflows", keyspace, workflow, "vdiffs", uuid, "resume")
        return self._call("POST", path, {}, timeout_s=VERB_TIMEOUT_S)

    def delete(self, workflow: str, keyspace: str, uuid: str) -> Json:
        """Remove a comparison and its report; ``all`` removes every one."""
        path = path_of("workflows", keyspace, workflow, "vdiffs", uuid)
        return self._call("DELETE", path, timeout_s=VERB_TIMEOUT_S)
