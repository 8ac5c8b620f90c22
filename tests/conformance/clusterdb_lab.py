"""A cluster database on which a story of the system "cluster-db" is played, and its words."""

from __future__ import annotations

import re
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect

from cluster_engines.engine import contents
from make_cluster import add, program, updates
from tidegate.cluster import ledger
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.gate import Decision, Verdict
from tidegate.cluster.member_store import MemberStore
from tidegate.cluster.members import PLACEHOLDER, MemberState
from tidegate.cluster.patchfile import FILE_NAME
from tidegate.cluster.schema import Schema
from tidegate.errors import (
    InconsistentVersionsError,
    NodeBehindError,
    SchemaVersionError,
    SomeNodesAreBehindError,
    TidegateError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tidegate.cluster.ledger import Applied
    from tidegate.cluster.members import Member


DECISIONS: dict[str, Verdict] = {
    "apply": Verdict.READY,
    "ready": Verdict.READY,
    "ok": Verdict.READY,
    "run": Verdict.READY,
    "wait": Verdict.WAIT,
    "waiting": Verdict.WAIT,
    "behind": Verdict.BEHIND,
    "error_behind": Verdict.BEHIND,
    "inconsistent": Verdict.INCONSISTENT,
    "error_inconsistent": Verdict.INCONSISTENT,
}
"""How cases call the answers of the gate."""


@dataclass
class Outcome:
    """How opening the database ended."""

    decision: Decision | None = None
    error: BaseException | None = None
    pauses: int = 0

    @property
    def is_ready(self) -> bool:
        return self.decision is not None and self.decision.is_ready

    @property
    def verdict(self) -> Verdict:
        """The answer; an error that is none of the gate's is no answer."""
        kinds: dict[type[BaseException], Verdict] = {
            NodeBehindError: Verdict.BEHIND,
            InconsistentVersionsError: Verdict.INCONSISTENT,
            SomeNodesAreBehindError: Verdict.WAIT,
            SchemaVersionError: Verdict.BEHIND,
        }
        if self.decision is not None:
            return self.decision.verdict
        for kind, verdict in kinds.items():
            if isinstance(self.error, kind):
                return verdict
        raise AssertionError(f"no answer of the gate: {self.error!r}")

    @property
    def message(self) -> str:
        """What the answer says; empty when ready."""
        if self.error is not None:
            return getattr(self.error, "message", str(self.error))
        return "" if self.is_ready or self.decision is None else self.decision.error().message


def attempt(act: Callable[..., Any], *arguments: Any, **named: Any) -> Outcome:
    """Run something that may be refused."""
    try:
        found = act(*arguments, **named)
    except Exception as error:  # noqa: BLE001 - whatever it is, the case says whether it was wanted
        return Outcome(error=error)
    return Outcome(decision=found if isinstance(found, Decision) else None)


def check_error(wanted: str | None, error: BaseException | None) -> None:
    """An error against a case's words: each part between colons must be in it, in this order."""
    if wanted is None or wanted in {"ok", "none"}:
        assert error is None, f"unwanted: {error!r}"
        return
    assert error is not None, f"no error, wanted: {wanted}"
    assert not isinstance(error, AssertionError), error
    message = getattr(error, "message", str(error))
    parts = [part for part in re.split(r":\s+", wanted.removeprefix("error")) if part.strip(": ")]
    place = 0
    for part in parts:
        found = message.find(part.strip(), place)
        assert found >= 0, f"{part!r} is not in {message!r}"
        place = found + len(part.strip())
    if isinstance(error, TidegateError):
        assert error.next_step


class Lab:
    """One SQLite file, and programs that open it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "cluster.db"
        self.url = f"sqlite:///{self.path}"
        self.database = ClusterDatabase.open(self.url, busy_timeout_s=0.05)
        self.store = MemberStore(self.database)

    def apply(self, version: int) -> None:
        """Bring the schema to a version, with no member; version 1 has the members' table."""
        Schema(updates(version)).ensure(self.database)

    def members(self, rows: Sequence[tuple[str, str, Sequence[int]]]) -> list[Member]:
        """Add active members: name, address, what their programs know."""
        return [add(self.database, *row) for row in rows]

    def alone(self, pair: Sequence[int], version: int | None = None) -> None:
        """A schema, and one node that was never clustered."""
        self.apply(pair[0] if version is None else version)
        add(self.database, "none", PLACEHOLDER, pair)

    def open(
        self, pair: Sequence[int], address: str = "1.2.3.4:666", name: str = "none", **options: Any
    ) -> Outcome:
        """Open the database with a program of a version."""
        pauses: list[float] = []
        sleep = options.pop("sleep", None)

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if sleep is not None:
                sleep(seconds)

        cluster = program(self.database, pair, sleep=pause, **options)
        outcome = attempt(lambda: cluster.ensure_schema(address, self.folder, name=name))
        outcome.pauses = len(pauses)
        return outcome

    def applied(self) -> list[Applied]:
        with self.database.read() as connection:
            return ledger.read(connection)

    @property
    def recorded(self) -> list[int]:
        return [row.version for row in self.applied()]

    @property
    def tables(self) -> list[str]:
        with self.database.read() as connection:
            return sorted(inspect(connection).get_table_names())

    def contents(self, *, but: tuple[str, ...] = ()) -> dict[str, object]:
        return contents(self.database, but=but)

    def rows(self) -> list[Member]:
        """The member rows that count or may come to."""
        if "member" not in self.tables:
            return []
        return [each for each in self.store.all() if each.state is not MemberState.EVICTED]

    @property
    def copies(self) -> list[Path]:
        return sorted(self.folder.glob("cluster.db.*.bak"))

    @property
    def patch(self) -> Path:
        return self.folder / FILE_NAME


@contextmanager
def lab() -> Iterator[Lab]:
    """A fresh database."""
    with tempfile.TemporaryDirectory(prefix="tidegate-case-") as folder:
        made = Lab(Path(folder))
        try:
            yield made
        finally:
            made.database.close()


def known(member: Member) -> list[int]:
    """What a row says of its program, as cases write it."""
    return [member.schema_version, member.extensions.count]


def text_of(events: Sequence[Any]) -> list[str]:
    """Events that are sentences."""
    return [event for event in events if isinstance(event, str)]
