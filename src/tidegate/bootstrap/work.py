"""What every part of the service works with, and how failures are put into words for the tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog
from sqlalchemy.exc import DBAPIError

from tidegate.bootstrap.retry import USUAL
from tidegate.errors import TidegateError
from tidegate.secret import redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from tidegate.backoff import Backoff
    from tidegate.bootstrap.directory import TenantDirectory
    from tidegate.bootstrap.model import Member, Options, Version, VersionHandle
    from tidegate.bootstrap.store import UpgradeStore
    from tidegate.cluster.database import ClusterDatabase

log: Final = structlog.get_logger("tidegate.bootstrap")

BATCH_LEASE_S: Final = 60.0
"""How long a worker may be silent before another one takes its batch."""


@dataclass(frozen=True)
class Work[C]:
    """The open parts of a service; ``holder`` names this process among all that ever worked."""

    database: ClusterDatabase
    store: UpgradeStore
    handles: Mapping[str, VersionHandle[C]]
    versions: Sequence[Version]
    directory: TenantDirectory[C]
    holder: str
    options: Options
    members: Callable[[], Sequence[Member]]
    chance: Callable[[], float]
    backoff: Backoff = USUAL
    batch_lease_s: float = BATCH_LEASE_S

    @property
    def final(self) -> Version:
        """The newest version of this program."""
        return self.versions[-1]

    def now(self) -> datetime:
        """The database's time."""
        return self.database.now()


def reason(error: BaseException) -> str:
    """A failure in one line: without secrets, without the values of a statement."""
    if isinstance(error, TidegateError):
        text = f"{error.code}: {error.message}"
    else:
        shown = error.orig if isinstance(error, DBAPIError) and error.orig else error
        text = f"{type(shown).__name__}: {shown}"
    return " ".join(redacted(text).split())
