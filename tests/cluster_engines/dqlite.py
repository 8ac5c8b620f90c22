"""dqlite under the conformance suite: three members, one process each; a database a test."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import ClassVar, Self

from cluster_engines.engine import Engine
from fix_dqlite import Members, make_authority


class DqliteEngine(Engine):
    """Databases of one cluster."""

    name: ClassVar[str] = "dqlite"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members = Members(folder, make_authority(folder / "authority"))
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
