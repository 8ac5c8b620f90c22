"""Failures of the cluster itself: its database, schema, members, backups."""

from __future__ import annotations

from tidegate.errors.base import ExitStatus, FailedPreconditionError, TidegateError


class ClusterDatabaseError(TidegateError):
    """The cluster database cannot be opened, read or written."""

    code = "TG-CDB-001"
    http_status = 503


class ClusterDatabaseBusyError(ClusterDatabaseError):
    """Another writer kept the cluster database locked for too long; nothing changed."""

    code = "TG-CDB-002"
    retryable = True


class ClusterStateError(TidegateError):
    """What a node keeps of its membership on its disk is missing, broken or in the way."""

    code = "TG-CLU-001"


class JoinTokenError(TidegateError):
    """A join token is unknown, wrong, used or expired."""

    code = "TG-CLU-002"
    http_status = 403


class NoOwnerError(TidegateError):
    """No member owns the cluster's work at this moment; one will within seconds."""

    code = "TG-CLU-003"
    http_status = 503
    retryable = True


class MemberVersionError(TidegateError):
    """A node's schema version or API extensions do not fit the other members'."""

    code = "TG-CLU-006"
    exit_status = ExitStatus.VERSION_GATE
    http_status = 409


class NotReadyError(TidegateError):
    """The node is starting, or waits for other members to be upgraded."""

    code = "TG-CLU-005"
    http_status = 503
    retryable = True


class NotAMemberError(TidegateError):
    """The caller is no member of the cluster, or was evicted from it."""

    code = "TG-CLU-004"
    http_status = 403


class SupersededError(NotAMemberError):
    """The cluster was recovered or restored without this node, whose state is out of date."""

    code = "TG-CLU-007"


class DqliteError(ClusterDatabaseError):
    """The node's own part of the replicated cluster database failed."""

    code = "TG-CDB-011"
    http_status = 500
    default_next_step = "look at the message, the disk and the member's folder"


class DqliteLibraryError(ClusterDatabaseError):
    """The cluster database is to be replicated, and libdqlite is not there to do it."""

    code = "TG-CDB-012"
    http_status = 500


class ClusterDatabaseUnreachableError(ClusterDatabaseError):
    """No server of the cluster database takes writes, or the connection broke; nothing changed."""

    code = "TG-CDB-004"
    retryable = True


class NoLeaderError(ClusterDatabaseUnreachableError):
    """No member leads the replicated cluster database, or its leader is out of reach."""

    code = "TG-CDB-010"


class SchemaVersionError(TidegateError):
    """The cluster database's schema is newer than this program, or has gaps."""

    code = "TG-VER-001"
    exit_status = ExitStatus.VERSION_GATE


class NodeBehindError(SchemaVersionError):
    """Another member runs a newer program than this node: this one must be upgraded."""

    code = "TG-VER-002"


class InconsistentVersionsError(SchemaVersionError):
    """Another member's program is newer in one respect and older in another, or of another line."""

    code = "TG-VER-003"


class GracefulAbortError(TidegateError):
    """A check stopped the schema updates for now; what it wrote is kept."""

    code = "TG-VER-004"
    exit_status = ExitStatus.VERSION_GATE
    http_status = 503
    retryable = True


class SomeNodesAreBehindError(GracefulAbortError):
    """Other members have not been upgraded yet; this node waits for them."""

    code = "TG-VER-005"


class SchemaUpdateError(ClusterDatabaseError):
    """A schema update, a patch or a hook before one failed; nothing was changed."""

    code = "TG-CDB-003"


class MembershipError(FailedPreconditionError):
    """The cluster's members do not allow what was asked for."""

    code = "TG-MEM-001"


class MemberEvictedError(MembershipError):
    """This node left the cluster or was thrown out; its cluster goes on without it."""

    code = "TG-MEM-002"
