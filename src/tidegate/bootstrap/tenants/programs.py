"""Worker processes for migrations that are programs: started, asked, bounded, replaced.

Decides how one is spoken to: a JSON line each way, with a limit on time and size; what an answer or
the lack of one means; when a worker is replaced: after so many tenants, because what migrations
import and leave behind grows. A worker that dies costs its tenant a retry and nothing else. Secrets
travel over its standard input only.

The worker runs with the Python of the user's application, or the node's own. What it runs is
:mod:`tidegate.bootstrap.tenants.worker.main`, by its path: nothing else of Tidegate is imported
there, and nothing of the user's here.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tidegate import steps
from tidegate.bootstrap.tenants.faults import MigrationSourceError
from tidegate.bootstrap.tenants.hands import COMMITTED
from tidegate.bootstrap.tenants.outcomes import Cause, Outcome, Result, cause_of
from tidegate.bootstrap.tenants.versions import Chain, Version
from tidegate.conninfo import guarded, parsed
from tidegate.engines.postgres import tenant_records, tenants
from tidegate.engines.postgres.connection import SERVER_KEEPALIVES, TRANSPORT
from tidegate.engines.postgres.sqlstates import kind_of
from tidegate.errors import TidegateError
from tidegate.topology.connections import redacted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tidegate.bootstrap.tenants.hands import Job
    from tidegate.bootstrap.tenants.model import RunOptions, Source

WORKER: Final = Path(__file__).with_name("worker") / "main.py"
DESCRIBE_TIMEOUT_S: Final = 60.0
CLOSE_TIMEOUT_S: Final = 10.0
ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
LAST_WORDS_LINES: Final = 20
_PRIVATE: Final = ("TIDEGATE_",)
"""What variables of the node's own environment begin with; a worker does not get them."""


class WorkerDiedError(Exception):
    """The worker ended without an answer, or would not answer."""


class WorkerLateError(Exception):
    """The worker did not answer in time; it was ended."""


class Worker:
    """One worker process."""

    def __init__(self, source: Source) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_PRIVATE)}
        self._process = subprocess.Popen(  # noqa: S603 - the operator allowed this program's folder
            [source.python or sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder_of(source),
            env=environment,
            start_new_session=True,
        )
        self._words: collections.deque[str] = collections.deque(maxlen=LAST_WORDS_LINES)
        self._listener = threading.Thread(target=self._listen, daemon=True, name="worker's words")
        self._listener.start()
        self._read = b""
        self.tenants = 0

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """One request, one answer.

        Raises:
            WorkerDiedError: there was none.
            WorkerLateError: there was none in time.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerDiedError(self._end()) from None
        line = self._line(time.monotonic() + timeout_s)
        try:
            answer = json.loads(line)
        except ValueError:
            raise WorkerDiedError("the worker answered with something that is no JSON") from None
        if not isinstance(answer, dict):
            raise WorkerDiedError("the worker answered with something that is no object")
        return answer

    def _line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(handle, selectors.EVENT_READ)
            while b"\n" not in self._read:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or len(self._read) > ANSWER_BYTES_MAX:
                    self.kill()
                    raise WorkerLateError
                if not selector.select(left_s):
                    continue
                piece = os.read(handle, 65536)
                if not piece:
                    raise WorkerDiedError(self._end())
                self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        return line

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._words.append(line.decode(errors="replace").rstrip()[:500])

    def _end(self) -> str:
        """Why the worker is no more."""
        try:
            status = self._process.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return "the worker closed its output and had to be ended"
        self._listener.join(CLOSE_TIMEOUT_S)
        last = next((each for each in reversed(self._words) if each.strip()), "it said nothing")
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return f"the worker ended with {how}: {last.strip()}"

    def kill(self) -> None:
        """End the worker at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let the worker end, or end it."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._listener.join(CLOSE_TIMEOUT_S)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


def folder_of(source: Source) -> str:
    """The working folder of a source's programs."""
    return source.folder or str(Path(source.address).parent)


def describe(source: Source) -> tuple[Chain, tuple[str, ...]]:
    """The versions of a source, asked of a worker, and the files that they depend on.

    Raises:
        MigrationSourceError: the source cannot be loaded.
    """
    try:
        worker = Worker(source)
    except OSError as error:
        raise _unloadable(source, f"{source.python or sys.executable}: {error.strerror}") from None
    try:
        answer = worker.ask(
            {"do": "describe", "folder": folder_of(source), "source": source.to_json()},
            DESCRIBE_TIMEOUT_S,
        )
    except WorkerDiedError as error:
        raise _unloadable(source, str(error)) from None
    except WorkerLateError:
        raise _unloadable(source, f"no answer within {DESCRIBE_TIMEOUT_S:g} s") from None
    finally:
        worker.close()
    if answer["result"] != "done":
        raise _unloadable(source, str(answer["message"]))
    versions = tuple(
        Version(
            id=each["id"],
            name=each["name"],
            sha256=each.get("sha256", ""),
            parents=tuple(each.get("parents", ())),
        )
        for each in answer["versions"]
    )
    return Chain(versions, tuple(answer.get("heads", ()))), tuple(answer["files"])


def _unloadable(source: Source, why: str) -> MigrationSourceError:
    return MigrationSourceError(
        f"{source} cannot be loaded: {redacted(why)}",
        next_step="try the same in the application's own environment, and compare --python and"
        " --folder",
    )


class ProgramHand:
    """Runs a source's programs in a worker process of its own."""

    def __init__(self, source: Source, options: RunOptions, others: Sequence[str] = ()) -> None:
        self._source = source
        self._others = tuple(others)
        self._options = options
        self._worker: Worker | None = None

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def upgrade(self, job: Job) -> Outcome:
        """Bring a tenant to the target."""
        started = time.monotonic()
        try:
            password = job.endpoint.password()
            outcome = self._ask(self._request(job, password), job)
        except TidegateError as error:
            outcome = Outcome.failed(Cause.ACCESS, error.message)
        except OSError as error:
            outcome = Outcome.failed(Cause.SOURCE, f"no worker can be started: {error}")
        else:
            message = redacted(outcome.message)
            message = message.replace(password, "***") if password else message
            outcome = replace(outcome, message=message)
        if self._worker is not None and self._worker.tenants >= self._options.recycle_after:
            self.close()
        return replace(outcome, took_ms=(time.monotonic() - started) * 1000)

    def sql(self, job: Job, version: str) -> str | Outcome:
        """What would be sent to a tenant that has a version; or why that is not known."""
        try:
            password = job.endpoint.password()
            request = self._request(replace(job, way="sql"), password) | {"version": version}
            answer = self._answer(request)
        except TidegateError as error:
            return Outcome.failed(Cause.ACCESS, error.message)
        except OSError as error:
            return Outcome.failed(Cause.SOURCE, f"no worker can be started: {error}")
        if isinstance(answer, Outcome):
            return answer
        is_done = answer["result"] == Result.DONE
        text = str(answer["sql"]) if is_done else redacted(outcome_of(answer, job).message)
        text = text.replace(password, "***") if password else text
        return text if is_done else Outcome.failed(Cause.SOURCE, text)

    def _ask(self, request: dict[str, Any], job: Job) -> Outcome:
        answer = self._answer(request)
        if isinstance(answer, Outcome):
            return answer
        outcome = outcome_of(answer, job)
        if outcome.applied:
            steps.reached(COMMITTED)
        return outcome

    def _answer(self, request: dict[str, Any]) -> dict[str, Any] | Outcome:
        if self._worker is None:
            self._worker = Worker(self._source)
        self._worker.tenants += 1
        try:
            return self._worker.ask(request, self._options.tenant_timeout_s)
        except WorkerDiedError as error:
            self.close()
            return Outcome.failed(Cause.WORKER, str(error))
        except WorkerLateError:
            self.close()
            limit = self._options.tenant_timeout_s
            return Outcome.failed(Cause.TIMEOUT, f"not done within {limit:g} s; it was ended")

    def _request(self, job: Job, password: str | None) -> dict[str, Any]:
        given = parsed(job.endpoint.conninfo)
        wanted = {**TRANSPORT, **given, **guarded(given)}
        connection = {key: str(value) for key, value in wanted.items() if value}
        connection["application_name"] = "tidegate/tenants"
        if password:
            connection["password"] = password
        if job.place.database:
            connection["dbname"] = job.place.database
        return {
            "do": "downgrade" if self._options.downgrade and job.way == "upgrade" else job.way,
            "dry_run": job.dry_run,
            "folder": folder_of(self._source),
            "source": self._source.to_json(),
            "target": job.target,
            "out_of_order": self._options.out_of_order,
            "single": self._options.single_transaction or self._source.single_transaction,
            "tenant": {
                "name": job.name,
                "schema": job.place.schema,
                "database": connection.get("dbname", ""),
            },
            "connection": connection,
            "records": self._records(job),
            "keepalives": {name: value for name, value, _ in SERVER_KEEPALIVES},
            "bounds": {
                "lock_timeout_ms": round(self._options.lock_timeout_s * 1000),
                "statement_timeout_ms": round(self._options.statement_timeout_s * 1000),
            },
        }

    def _records(self, job: Job) -> dict[str, Any]:
        """What a worker needs to know of the tenant's version table."""
        schema = job.place.schema or tenants.DEFAULT_SCHEMA
        given = tenant_records.statements(schema, self._source.version_table)
        return {
            **asdict(given),
            "source": self._source.name,
            "others": self._others,
            "stored": job.stored,
        }


def outcome_of(answer: Mapping[str, Any], job: Job) -> Outcome:
    """What a worker's answer means."""
    if answer["result"] == Result.DONE:
        return Outcome(
            Result.DONE, str(answer["from"]), str(answer["to"]), tuple(map(str, answer["applied"]))
        )
    if answer["result"] == Result.MISSING:
        return Outcome(Result.MISSING, message=f"{job.place} is not there")
    message = str(answer.get("message", ""))
    if answer.get("cause") == "version":
        failed = Outcome.failed(Cause.VERSION, message)
        current = str(answer.get("from", ""))
        return replace(failed, from_version=current, to_version=current)
    sqlstate = answer.get("sqlstate")
    if sqlstate is None and not answer.get("lost"):
        return Outcome.failed(Cause.MIGRATION, message)
    return Outcome.failed(cause_of(kind_of(sqlstate)), message)
