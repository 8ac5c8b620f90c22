"""Worker processes as the operating system knows them: identity, start, signals, records on disk.

Decides how a process is told from a later one that was given the same number: by its start time in
clock ticks since boot, and the boot itself. Signals go through a pidfd that was opened before that
identity was checked, so that they never reach a stranger. It must not decide *when* anything is
started or stopped; that is :mod:`tidegate.server.supervision`.

The order of a start makes a lost worker impossible: the process starts and waits for its span on
standard input, then its record is written, then the span is handed over. If the node dies before
the hand-over, the worker reads an empty line and ends; if after, the record is there to adopt it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidegate.server.supervision import Process
from tidegate.steps import CRASH_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

EVENTS_BYTES_MAX = 4 * 1024 * 1024
"""An event or log file that grows beyond this starts anew; its end is kept beside it."""

TAIL_BYTES = 64 * 1024


def boot_id() -> str:
    """Which boot of this machine this is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def start_ticks(pid: int) -> int | None:
    """When a process started, in ticks since boot; None when it is gone or only a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command name is in parentheses and may contain anything, so count from the last one.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def is_alive(process: Process) -> bool:
    """Whether this very process still runs."""
    return start_ticks(process.pid) == process.start_ticks


def wait_for_end(watched: Iterable[Process], wake: int, timeout_s: float) -> None:
    """Wait until one of some processes ends, until a file can be read, or for so long.

    Args:
        watched: processes; one that has gone already ends the wait.
        wake: the file.
        timeout_s: how long.
    """
    poller = select.poll()
    poller.register(wake, select.POLLIN)
    with contextlib.ExitStack() as stack:
        for process in watched:
            try:
                handle = os.pidfd_open(process.pid)
            except OSError:
                return
            stack.callback(os.close, handle)
            poller.register(handle, select.POLLIN)
        poller.poll(timeout_s * 1000)


def send_signal(process: Process, number: signal.Signals) -> bool:
    """Signal this very process; False when it has gone."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    else:
        return True
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Record:
    """What is kept on disk of a running worker, so that a later node finds it."""

    span_id: str
    pid: int
    start_ticks: int
    boot_id: str
    digest: str
    generation: int
    epoch: int

    @property
    def process(self) -> Process:
        """The process it is about."""
        return Process(self.pid, self.start_ticks)


@dataclass(frozen=True)
class SpanFiles:
    """The files of one span in the node's state directory."""

    folder: Path
    span_id: str

    def __post_init__(self) -> None:
        assert "/" not in self.span_id, self.span_id
        assert not self.span_id.startswith("."), self.span_id

    @property
    def record(self) -> Path:
        """The worker's record."""
        return self.folder / f"{self.span_id}.json"

    @property
    def events(self) -> Path:
        """What the worker prints on standard output: one JSON event a line."""
        return self.folder / f"{self.span_id}.events.jsonl"

    @property
    def log(self) -> Path:
        """What the worker prints on standard error."""
        return self.folder / f"{self.span_id}.log"

    def write_record(self, record: Record) -> None:
        """Replace the record in one step, durably."""
        scratch = self.record.with_suffix(".tmp")
        with scratch.open("w", encoding="utf-8") as file:
            json.dump(asdict(record), file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self.record)

    def remove(self) -> None:
        """Remove everything about the span."""
        for path in (self.record, self.events, self.log):
            for name in (path, _older(path)):
                name.unlink(missing_ok=True)

    def last_event(self) -> dict[str, Any]:
        """The newest complete event of the worker, or nothing."""
        for line in reversed(self.tail_events()):
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict):
                    return found
        return {}

    def last_words(self) -> str:
        """The last line a worker wrote on standard error: what a crash was about."""
        lines = [line.strip() for line in _tail(self.log) if line.strip()]
        return lines[-1][:500] if lines else ""

    def tail_events(self) -> list[str]:
        """The last complete lines of the event file, at most :data:`TAIL_BYTES` of them."""
        return _tail(self.events)

    def bound_sizes(self) -> None:
        """Start files anew that grew too large; the writer appends, so it goes on at the start."""
        for path in (self.events, self.log):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size > EVENTS_BYTES_MAX:
                    _older(path).write_bytes(path.read_bytes()[-EVENTS_BYTES_MAX:])
                    os.truncate(path, 0)


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return []
    complete = text.rpartition("\n")[0].split("\n")
    return complete[1:] if size > TAIL_BYTES else complete


def _older(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")


def read_records(folder: Path) -> list[Record]:
    """The records of all workers that still run; records of others are removed."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = Record(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            path.unlink()  # half-written before the first fsync, or from another version
            continue
        if record.boot_id == boot_id() and is_alive(record.process):
            found.append(record)
        else:
            path.unlink()
    return found


class StartFailedError(OSError):
    """The worker ended before it could be told its span."""


def start_worker(
    files: SpanFiles,
    command: Sequence[str],
    spec: dict[str, Any],
    *,
    digest: str,
    generation: int,
    with_crash_point: bool,
) -> tuple[subprocess.Popen[bytes], Record]:
    """Start a worker, write its record, hand it its span; in this order.

    Args:
        files: where its record, events and log go.
        command: the program.
        spec: one JSON line for its standard input.
        digest: of the wish, for the record.
        generation: likewise.
        with_crash_point: whether it inherits a test's crash point; a worker that comes back after
            a failure does not, or it would die at the same step for ever.
    """
    environment = dict(os.environ)
    if not with_crash_point:
        environment.pop(CRASH_VARIABLE, None)
    with files.events.open("ab") as events, files.log.open("ab") as log:
        child = subprocess.Popen(  # noqa: S603 - the node's own worker program
            list(command),
            stdin=subprocess.PIPE,
            stdout=events,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    assert child.stdin is not None
    ticks = start_ticks(child.pid)
    if ticks is None:
        raise StartFailedError(f"the worker ended at once with status {child.wait()}")
    record = Record(
        files.span_id, child.pid, ticks, boot_id(), digest, generation, int(spec["epoch"])
    )
    try:
        files.write_record(record)
        child.stdin.write(json.dumps(spec).encode() + b"\n")
        child.stdin.close()
    except OSError as error:
        child.kill()
        child.wait()
        raise StartFailedError(f"the worker did not take its span: {error}") from None
    return child, record
