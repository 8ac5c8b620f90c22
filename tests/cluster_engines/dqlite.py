"""dqlite under the conformance suite: three members, one process each; a database a test."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from cluster_engines.engine import Cut, Engine, Fault

if TYPE_CHECKING:
    from collections.abc import Iterator
from fix_dqlite import STEADY, Members, make_authority


class DqliteEngine(Engine):
    """Databases of one cluster."""

    name: ClassVar[str] = "dqlite"
    faults: ClassVar[frozenset[Fault]] = frozenset({"lost commit", "cut connection"})

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members = Members(folder, make_authority(folder / "authority"), STEADY)
        self._numbers = itertools.count(1)

    @classmethod
    def start(cls) -> Self:
        engine = cls(Path(tempfile.mkdtemp(prefix="tidegate-dqlite-")))
        engine.members.grow(voters=3)
        return engine

    def stop(self) -> None:
        self.members.close()
        shutil.rmtree(self.folder)

    def fresh_url(self) -> str:
        return self.members.url(f"cluster-{next(self._numbers)}")

    @contextmanager
    def losing_commits(self, url: str, count: int) -> Iterator[str]:
        self.members.leader().fault(f"lose {count}")
        yield url
        self.members.leader().fault("lose 0")

    @contextmanager
    def through_a_cut(self, url: str) -> Iterator[Cut]:
        yield MembersCut(url, self.members)


class MembersCut(Cut):
    """The connections of all clients to all members."""

    def __init__(self, url: str, members: Members) -> None:
        self.url = url
        self._members = members

    def cut(self) -> None:
        for process in self._members.processes.values():
            process.fault("cut")
