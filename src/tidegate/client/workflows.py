"""Verbs of workflows and their comparisons, each a method named as on the command line.

Decides the request of each verb; it must not interpret answers.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from tidegate.client.transport import VERB_TIMEOUT_S, Noun, path_of
from tidegate.errors import WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.client.transport import Json


WATCH_S: Final = 5.0
"""How long one request waits for the end of a comparison."""


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
        return self._call("POST", path_of("movetables"), body, timeout_s=VERB_TIMEOUT_S, once=True)


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
        return self._call("POST", path_of("reshard"), body, timeout_s=VERB_TIMEOUT_S, once=True)


class Workflows(WorkflowVerbs):
    """``tidegate workflow``: verbs that any type of workflow has, and the list of all."""

    def list(self, keyspace: str | None = None) -> Json:
        """All workflows, or those of a target keyspace."""
        return self._call("GET", path_of("workflows"), query={"keyspace": keyspace})


def compared(report: Json) -> bool:
    """Whether a comparison is over at every shard: completed, stopped or failed."""
    states = {shard["State"] for shard in report["ShardSummaries"].values()}
    return states <= {"completed", "stopped", "error"}


class VDiffs(Noun):
    """``tidegate vdiff``."""

    def _path(self, workflow: str, keyspace: str, *rest: str) -> str:
        return path_of("workflows", keyspace, workflow, "vdiffs", *rest)

    def create(
        self, workflow: str, keyspace: str, *, dry_run: bool = False, **options: Any
    ) -> Json:
        """Compare source and target; answers at once, the comparison goes on in the node.

        Args:
            workflow: its name.
            keyspace: the target keyspace.
            dry_run: check, say what would be compared, begin nothing.
            **options: uuid, tables, limit, max_diff_duration_s, debug_query and more, as in the
                request ``VDiffBody``.
        """
        return self._call(
            "POST",
            self._path(workflow, keyspace),
            options,
            query={"dry_run": dry_run},
            timeout_s=VERB_TIMEOUT_S,
            once=True,
        )

    def list(self, workflow: str, keyspace: str) -> Json:
        """All comparisons of a workflow, newest first."""
        return self._call("GET", self._path(workflow, keyspace))

    def show(
        self, workflow: str, keyspace: str, uuid: str = "last", *, wait_s: float = 0.0
    ) -> Json:
        """The report of one comparison, or of the last one.

        With ``wait_s`` (10 at most) the answer comes when it is over, or after so long.
        """
        path = self._path(workflow, keyspace, uuid)
        return self._call("GET", path, query={"wait_s": wait_s or None})

    def wait(self, workflow: str, keyspace: str, uuid: str = "last", *, timeout_s: float) -> Json:
        """The report of a comparison once it is completed, stopped or failed.

        Raises:
            WaitTimeoutError: it still runs; it goes on.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            report = self.show(workflow, keyspace, uuid, wait_s=min(WATCH_S, max(left, 0.01)))
            if compared(report):
                return report
            if left <= 0:
                name = report["UUID"]
                raise WaitTimeoutError(
                    f"VDiff {name} is {report['State']} after {timeout_s:g} s and goes on",
                    next_step=f"tidegate vdiff show {name} -w {workflow} -t {keyspace}",
                )

    def stop(
        self,
        workflow: str,
        keyspace: str,
        uuid: str,
        *,
        target_shards: Sequence[str] = (),
        dry_run: bool = False,
    ) -> Json:
        """Stop a comparison, or its part at some target shards; what it has done is kept."""
        return self._verb(workflow, keyspace, uuid, "stop", target_shards, dry_run=dry_run)

    def resume(
        self,
        workflow: str,
        keyspace: str,
        uuid: str,
        *,
        target_shards: Sequence[str] = (),
        dry_run: bool = False,
    ) -> Json:
        """Go on with a stopped comparison, or with its part at some target shards."""
        return self._verb(workflow, keyspace, uuid, "resume", target_shards, dry_run=dry_run)

    def _verb(
        self,
        workflow: str,
        keyspace: str,
        uuid: str,
        verb: str,
        target_shards: Sequence[str],
        *,
        dry_run: bool,
    ) -> Json:
        return self._call(
            "POST",
            self._path(workflow, keyspace, uuid, verb),
            {"target_shards": list(target_shards)},
            query={"dry_run": dry_run},
            timeout_s=VERB_TIMEOUT_S,
        )

    def delete(self, workflow: str, keyspace: str, uuid: str, *, dry_run: bool = False) -> Json:
        """Remove a comparison and its report; ``all`` removes every one."""
        return self._call(
            "DELETE",
            self._path(workflow, keyspace, uuid),
            query={"dry_run": dry_run},
            timeout_s=VERB_TIMEOUT_S,
        )
