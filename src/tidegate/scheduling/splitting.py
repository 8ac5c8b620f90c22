"""Into how many spans a table is cut, and where: by the number of its regions or by writes.

A *region* is the smallest piece that is counted: for a database a table of a group, or a range of
keys. Regions are given in the order of their keys; cuts lie between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

SPANS_MAX: Final = 100
REGIONS_PER_SPAN: Final = 50_000
CAPTURES_MIN: Final = 3


def span_count(regions: int, captures: int) -> int:
    """How many spans so many regions become on so many captures."""
    if regions <= 1:
        return 1
    wanted = max(captures * max(captures - 1, CAPTURES_MIN), regions // REGIONS_PER_SPAN)
    return min(SPANS_MAX, wanted)


def split_by_count(regions: int, *, threshold: int, captures: int) -> list[int]:
    """The number of regions of each span, evenly; one span up to the threshold."""
    if regions <= threshold or captures <= 0:
        return [regions]
    step, left = divmod(regions, min(span_count(regions, captures), regions))
    if not step:
        return [1] * regions
    spans = (regions - left) // step
    return [step + (n < left) for n in range(spans)]


def split_by_writes(keys: Sequence[int], *, threshold: int, wanted: int) -> list[int]:
    """The number of regions of each span, so that each is written about as much.

    Args:
        keys: written keys of each region.
        threshold: a table that is written less stays whole; 0: none does.
        wanted: number of spans.
    """
    weights = [each + 1 for each in keys]
    total = sum(weights)
    if wanted <= 1 or len(keys) <= 1 or total < threshold:
        return [len(keys)]
    share = total / wanted
    found: list[int] = []
    count = weight = 0
    for number, each in enumerate(weights, 1):
        count += 1
        weight += each
        spans_left, regions_left = wanted - len(found) - 1, len(weights) - number
        is_full = count >= REGIONS_PER_SPAN
        if spans_left > 0:  # each span that is left needs a region
            is_full |= weight > share or regions_left == spans_left
        if is_full:
            found.append(count)
            count = weight = 0
    if count:
        found.append(count)
    return found
