"""Versions that sort before ones which tenants have already.

Decides from what is stored of tenants, before anything is run. What is missing there was never run
and would not be: the tenant's last version is the newest. It is refused by name, or run on request.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from tidegate.errors import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tidegate.bootstrap.tenants.model import Tenant
    from tidegate.bootstrap.tenants.versions import Chain

LATE_SHOWN: Final = 10


def late_versions(
    tenants: Iterable[Tenant], source: str, chain: Chain, sets: Mapping[str, frozenset[str]]
) -> dict[str, int]:
    """Versions that sort before ones which tenants have, and how many tenants lack each.

    Args:
        tenants: with what is stored of them.
        source: whose versions.
        chain: of the source.
        sets: by digest, what it stands for.
    """
    kinds = Counter(
        (each.versions.get(source, ""), each.digests.get(source, "")) for each in tenants
    )
    found: Counter[str] = Counter()
    for (version, digest), count in kinds.items():
        has = sets.get(digest)
        if has is not None and chain.position(version) is not None and not chain.heads:
            found.update({each: count for each in chain.upto(version) if each not in has})
    return {each: found[each] for each in chain.ids if each in found}


def out_of_order(late: Mapping[str, int], chain: Chain) -> FailedPreconditionError:
    """The refusal that names them."""
    names = {
        each.id: f"{each.id} ({each.name})" if each.name else each.id for each in chain.versions
    }
    shown = ", ".join(names[each] for each in list(late)[:LATE_SHOWN])
    return FailedPreconditionError(
        f"{shown} would run after later versions, which {max(late.values())} tenants have already;"
        " nothing was run",
        next_step="give what is late a later number, or run it where it is missing: --out-of-order",
        versions=list(late),
    )
