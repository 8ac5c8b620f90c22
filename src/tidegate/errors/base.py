"""The root of the error tree, and every failure but those of the cluster itself.

An error has a stable ``code`` (``TG-...``), a sentence that names what happened to what, and
``next_step``: what to run or change now. Its class decides the exit status of the command line
and the HTTP status of the API, so neither needs a table of its own. Assertions are for bugs;
these classes are for the world.

Messages never carry secrets: connection strings reach them through
:func:`tidegate.secret.redacted` only.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, ClassVar


class ExitStatus(IntEnum):
    """Exit statuses of the command line; documented in ``docs/reference/exit-status.md``."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    NOT_FOUND = 3
    PREFLIGHT = 4
    MISMATCH = 5
    WAIT_TIMEOUT = 6
    CONFLICT = 7
    VERSION_GATE = 8
    PARTLY_FAILED = 9
    CANCELLED = 10
    INTERRUPTED = 130


class TidegateError(Exception):
    """Base of the tree.

    Attributes:
        code: stable identifier, never reused for another meaning.
        next_step: what the reader should run or change next; one sentence or command.
        details: facts as plain JSON values, for programs.
        retryable: the same call may succeed later without anybody changing anything.
        outcome_unknown: a durable write may or may not have happened; never retry blindly.
    """

    code: ClassVar[str] = "TG-ERR-000"
    exit_status: ClassVar[ExitStatus] = ExitStatus.ERROR
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    outcome_unknown: ClassVar[bool] = False
    default_next_step: ClassVar[str] = ""

    def __init__(self, message: str, *, next_step: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = self.default_next_step if next_step is None else next_step
        self.details = details

    def to_json(self) -> dict[str, Any]:
        """The error as API answers and ``-o json`` show it."""
        return {
            "code": self.code,
            "message": self.message,
            "next_step": self.next_step,
            "retryable": self.retryable,
            "details": self.details,
        }


class InvalidArgumentError(TidegateError):
    """The request cannot be right, whatever the world looks like."""

    code = "TG-ARG-001"
    exit_status = ExitStatus.USAGE
    http_status = 400


class TooLargeError(InvalidArgumentError):
    """The request is larger than the node takes."""

    code = "TG-ARG-003"
    http_status = 413


class NotFoundError(TidegateError):
    """Something the request names does not exist."""

    code = "TG-NOT-001"
    exit_status = ExitStatus.NOT_FOUND
    http_status = 404


class AlreadyExistsError(TidegateError):
    """The name is taken."""

    code = "TG-DUP-001"
    exit_status = ExitStatus.CONFLICT
    http_status = 409


class IdempotencyKeyError(TidegateError):
    """An idempotency key was used before, for another request."""

    code = "TG-IDK-001"
    exit_status = ExitStatus.CONFLICT
    http_status = 409


class ConflictError(TidegateError):
    """Somebody else changed or holds what the request wanted to change; observe again."""

    code = "TG-CAS-001"
    exit_status = ExitStatus.CONFLICT
    http_status = 409
    retryable = True


class LeaseLostError(ConflictError):
    """The lease under which the work ran has a newer revision or has expired."""

    code = "TG-LEA-001"


class EpochLostError(ConflictError):
    """The stream row carries a newer epoch: this worker has been replaced and must stop."""

    code = "TG-EPO-001"
    retryable = False


class FailedPreconditionError(TidegateError):
    """The request is well formed, but the present state does not allow it."""

    code = "TG-PRE-000"
    http_status = 412


class PreflightError(FailedPreconditionError):
    """The preflight found reasons not to start; ``details['findings']`` lists all of them."""

    code = "TG-PRE-001"
    exit_status = ExitStatus.PREFLIGHT


class SchemaDiffersError(FailedPreconditionError):
    """The target has objects of other definitions, which a copy of the schema cannot fix."""

    code = "TG-SCH-001"
    exit_status = ExitStatus.PREFLIGHT


class DeniedTableError(FailedPreconditionError):
    """The shard refuses writes to a table that lives elsewhere, or is about to."""

    code = "TG-PRE-002"
    retryable = True


class RoutersBehindError(FailedPreconditionError):
    """Routers that were heard lately are silent or serve old routes; writes stay where they are."""

    code = "TG-RTR-001"
    retryable = True
    default_next_step = (
        "see `tidegate router list`; wait, stop them, remove one that died with `tidegate router"
        " delete NAME`, or use --ignore-routers"
    )


class UpgradeRefusedError(FailedPreconditionError):
    """This program and the version of the cluster do not fit together; nothing was changed."""

    code = "TG-UPG-001"
    exit_status = ExitStatus.VERSION_GATE


class UpgradePendingError(FailedPreconditionError):
    """The cluster's own part of an upgrade is not done yet; what needs it must wait."""

    code = "TG-UPG-002"
    retryable = True


class TenantUpgradeError(TidegateError):
    """The upgrade of a tenant failed; its transaction was rolled back."""

    code = "TG-UPG-003"


class TenantLockedError(ConflictError):
    """Somebody else works on the tenant at this moment."""

    code = "TG-UPG-004"


class NoStreamsError(NotFoundError):
    """No target stream of the workflow exists in the target keyspace."""

    code = "TG-WFL-001"


class WorkflowNotFullySwitchedError(FailedPreconditionError):
    """Complete needs all reads and writes switched first."""

    code = "TG-WFL-002"


class WorkflowPartiallySwitchedError(FailedPreconditionError):
    """Cancel is refused once writes are switched."""

    code = "TG-WFL-003"


class InvalidWorkflowError(TidegateError):
    """Streams of one workflow contradict each other; should be impossible."""

    code = "TG-WFL-004"


class MultipleSourceKeyspacesError(InvalidWorkflowError):
    """Streams of one workflow read more than one keyspace."""

    code = "TG-WFL-005"


class MultipleTargetKeyspacesError(InvalidWorkflowError):
    """Streams of one workflow feed more than one keyspace."""

    code = "TG-WFL-006"


class DivergenceError(TidegateError):
    """After H a set-wise statement touched another number of rows than it named."""

    code = "TG-STR-001"


class SlotPassedError(TidegateError):
    """The replication slot is ahead of the stream: changes would be skipped silently."""

    code = "TG-STR-002"


class SchemaChangedError(TidegateError):
    """A table of the stream was altered while the stream ran."""

    code = "TG-STR-003"


class ShardKeyError(TidegateError):
    """A row's sharding columns are NULL or cannot be mapped to a shard."""

    code = "TG-STR-004"
    http_status = 400


class CopyError(TidegateError):
    """Rows of a table cannot enter the target as they are."""

    code = "TG-CPY-001"


class LogRetentionError(TidegateError):
    """The log kept for the stream threatens the source's disk; the stream was stopped."""

    code = "TG-STR-005"


class StreamFailedError(TidegateError):
    """A stream is in state Error: a person has to mend the cause and start it again."""

    code = "TG-STR-006"


class FencedError(TidegateError):
    """The source refuses writes because a switch is in progress; retry through the router."""

    code = "TG-FEN-001"
    retryable = True


class ConnectError(TidegateError):
    """A database server cannot be reached or refuses the connection."""

    code = "TG-CON-001"
    http_status = 502
    retryable = True


class AuthenticationError(ConnectError):
    """A database server refuses the credentials."""

    code = "TG-CON-002"
    retryable = False


class DatabaseUnableError(TidegateError):
    """A database server answers and cannot do the work now: no room, or it takes no writes."""

    code = "TG-DBS-001"
    http_status = 503
    retryable = True


class DatabaseFaultError(TidegateError):
    """A database server reports an error that is not expected to happen; its code is named."""

    code = "TG-DBS-002"


class SecretError(TidegateError):
    """A secret reference (``env:``, ``file:``) cannot be resolved."""

    code = "TG-SEC-001"
    exit_status = ExitStatus.USAGE
    http_status = 400


class UnauthorizedError(TidegateError):
    """The API token is missing or wrong."""

    code = "TG-API-001"
    http_status = 401


class ForbiddenError(TidegateError):
    """The API token has a role that may not do this."""

    code = "TG-API-005"
    http_status = 403


class UnreachableNodeError(TidegateError):
    """The command line cannot reach a node."""

    code = "TG-API-002"
    retryable = True


class ApiLevelError(TidegateError):
    """The request needs a newer API than the node has."""

    code = "TG-API-003"
    exit_status = ExitStatus.VERSION_GATE
    http_status = 400


class NodeRunningError(TidegateError):
    """Another node works on the same state directory."""

    code = "TG-API-004"
    exit_status = ExitStatus.CONFLICT
    http_status = 409


class UsageError(InvalidArgumentError):
    """The command line cannot be understood."""

    code = "TG-ARG-002"


class DetachedError(TidegateError):
    """The command stopped waiting on request; what it started goes on."""

    code = "TG-WAI-002"
    exit_status = ExitStatus.INTERRUPTED


class MismatchError(TidegateError):
    """A verification found differences."""

    code = "TG-DIF-001"
    exit_status = ExitStatus.MISMATCH


class VDiffFailedError(TidegateError):
    """A comparison ended without a result."""

    code = "TG-DIF-002"


class WaitTimeoutError(TidegateError):
    """A bounded wait ended; whatever was waited for goes on."""

    code = "TG-WAI-001"
    exit_status = ExitStatus.WAIT_TIMEOUT
    http_status = 504
    retryable = True


class OutcomeUnknownError(TidegateError):
    """The connection broke inside a COMMIT; read the state back before doing anything."""

    code = "TG-TXN-001"
    outcome_unknown = True


class CancelledError(TidegateError):
    """The work was cancelled on request."""

    code = "TG-CAN-001"
    exit_status = ExitStatus.CANCELLED
