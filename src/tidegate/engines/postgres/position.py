"""Log sequence numbers and stream positions of PostgreSQL.

A position is (system identifier, timeline, commit end LSN): an LSN alone says nothing once a
server has been restored or failed over (datapath rule 3). LSNs are plain integers in Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self


def parse_lsn(text: str) -> int:
    """``16/B374D848`` as an integer."""
    high, low = text.split("/")
    return (int(high, 16) << 32) | int(low, 16)


def format_lsn(lsn: int) -> str:
    """The form PostgreSQL prints and accepts."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


@dataclass(frozen=True, order=True)
class Position:
    """How far a stream has come in one server's log."""

    system_identifier: str
    timeline: int
    lsn: int

    def __str__(self) -> str:
        return f"{self.system_identifier}/{self.timeline}/{format_lsn(self.lsn)}"

    def to_json(self) -> dict[str, Any]:
        """As stored and shown."""
        return {
            "system_identifier": self.system_identifier,
            "timeline": self.timeline,
            "lsn": format_lsn(self.lsn),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_json`."""
        return cls(value["system_identifier"], value["timeline"], parse_lsn(value["lsn"]))
