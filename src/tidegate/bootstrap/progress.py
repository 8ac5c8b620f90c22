"""How far a step is, counted from its tenants' rows each time; there is no counter to repair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidegate.bootstrap.model import TenantState

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Progress:
    """Tenants of a step by state."""

    pending: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    gone: int = 0

    @classmethod
    def of(cls, counts: Mapping[TenantState, int]) -> Progress:
        """From the number of rows in each state."""
        return cls(**{state.value: counts.get(state, 0) for state in TenantState})

    @property
    def total(self) -> int:
        """All tenants of the step."""
        return self.pending + self.done + self.failed + self.skipped + self.gone

    @property
    def ready(self) -> int:
        """Those that the step waits for no more; never above :attr:`total`."""
        return self.done + self.skipped + self.gone

    @property
    def is_complete(self) -> bool:
        """Whether no tenant is left to wait for."""
        return self.ready == self.total
