"""Shard layouts: specs such as ``-40-80-``, generated layouts, and whether shards tile the space.

Decides which ranges a layout consists of and whether a set of ranges covers every keyspace id
exactly once. It must not know which of the shards exist or serve.

The forms and limits are those of Vitess sharding specs; the tiling check is stricter than Vitess's
own adjacency test, which lets the space wrap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from tidegate.errors import InvalidArgumentError
from tidegate.topology.keyrange import KeyRange, compare_ids, is_valid_key_range, normalize

if TYPE_CHECKING:
    from collections.abc import Iterable

SHARDS_MAX: Final = 65536
"""No layout has more shards than this."""

_FORM: Final = "write a sharding spec such as -80- or -40-80-c0-"


def _malformed(reason: str, spec: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f'malformed spec: {reason}: "{spec}"', next_step=_FORM, spec=spec, reason=reason
    )


def parse_spec(spec: str) -> tuple[KeyRange, ...]:
    """Read a layout: ``a-b-c`` is a-b and b-c, a dash at either end opens that side.

    ``0`` means the whole space. The limits are compared as text, as in Vitess: ``a0-B0`` is refused
    although it rises, and ``40-4000`` is let through although it is empty; give all limits the same
    length and case.

    Raises:
        InvalidArgumentError: no dash, an empty limit in the middle, limits that do not rise, or a
            limit that is not hexadecimal; checked in this order.
    """
    if spec == "0":
        return (KeyRange(),)
    limits = spec.split("-")
    if len(limits) < 2:
        raise _malformed("doesn't define a range", spec)
    for index, (low, high) in enumerate(itertools.pairwise(limits)):
        if not high and index != len(limits) - 2:
            raise _malformed("MinKey/MaxKey cannot be in the middle of the spec", spec)
        if high and high <= low:
            raise _malformed("shard limits should be in order", spec)
    try:
        edges = [bytes.fromhex(limit) for limit in limits]
    except ValueError as error:
        raise _malformed(f"limits should be hexadecimal of even length ({error})", spec) from None
    return tuple(KeyRange(low, high) for low, high in itertools.pairwise(edges))


@lru_cache(maxsize=SHARDS_MAX)
def shard_key_range(name: str) -> KeyRange:
    """The range a shard's name stands for; a name that is no range stands for the whole space."""
    return KeyRange.parse(name) if is_valid_key_range(name) else KeyRange()


def generate(shards: int, hex_width: int = 0) -> tuple[str, ...]:
    """Names of ``shards`` ranges of nearly the same size; the count need not be a power of two.

    Args:
        shards: 1 to 65536.
        hex_width: hexadecimal digits in each limit; 0 picks 2 up to 256 shards, 4 above. Odd widths
            give names that no other function here accepts; they exist for compatibility.

    Raises:
        InvalidArgumentError: the count is out of bounds, or too large for the width.
    """
    if not 0 < shards <= SHARDS_MAX:
        raise InvalidArgumentError(
            f"cannot generate {shards} shards: the count must be 1 to {SHARDS_MAX}",
            next_step="choose a count within the bounds",
        )
    width = hex_width or (2 if shards <= 256 else 4)
    slots = 16**width
    if shards > slots:
        raise InvalidArgumentError(
            f"the given number of shards ({shards}) is too high for the given number of characters"
            f" to use ({width})",
            next_step=f"use at least {math.ceil(math.log(shards, 16))} characters",
        )
    limits = ["", *(f"{index * slots // shards:0{width}x}" for index in range(1, shards)), ""]
    return tuple(f"{low}-{high}" for low, high in itertools.pairwise(limits))


def even(index: int, shards: int) -> KeyRange:
    """The range of shard ``index`` out of ``shards`` equal ones, in the fewest bytes.

    Raises:
        InvalidArgumentError: the count is not a power of two, or the index is out of bounds.
    """
    if shards <= 0:
        raise InvalidArgumentError(
            f"the shard count must be > 0: {shards}", next_step="give a power of two"
        )
    if not 0 <= index < shards:
        raise InvalidArgumentError(
            f"the shard number ({index}) must be less than the shard count ({shards})",
            next_step=f"give a number from 0 to {shards - 1}",
        )
    bits = shards.bit_length() - 1
    if shards != 1 << bits:
        raise InvalidArgumentError(
            f"the shard count must be a power of two: {shards}",
            next_step="use generated shard names for any other count",
        )
    length = (bits + 7) // 8
    step = 1 << (8 * length - bits)

    def limit(number: int) -> bytes:
        return b"" if number in {0, shards} else (number * step).to_bytes(length, "big")

    return KeyRange(limit(index), limit(index + 1))


def check_tiling(shards: Mapping[str, KeyRange] | Iterable[str], what: str = "shards") -> None:
    """Make sure that every keyspace id lies in exactly one of the shards.

    Args:
        shards: ranges by shard name, or names that are ranges themselves.
        what: how a message calls the set, such as ``target shards of commerce``.

    Raises:
        InvalidArgumentError: naming every gap and every overlap, and the shards beside it.
    """
    ranges = (
        dict(shards)
        if isinstance(shards, Mapping)
        else {name: KeyRange.parse(name) for name in shards}
    )
    findings = tiling_findings(ranges)
    if findings:
        raise InvalidArgumentError(
            f"the {what} do not cover the key space exactly once: {'; '.join(findings)}",
            next_step="give shards whose ranges meet, from an open start to an open end",
            findings=findings,
            shards=sorted(ranges),
        )


def tiling_findings(ranges: Mapping[str, KeyRange]) -> list[str]:
    """Every gap, overlap and void range, in key order; empty when the ranges tile the space."""
    if not ranges:
        return ["there are no shards"]
    findings = [f"{name} is empty" for name, key_range in ranges.items() if key_range.is_void]
    ordered = sorted(
        ((key_range, name) for name, key_range in ranges.items() if not key_range.is_void),
        key=lambda pair: pair[0],
    )
    if not ordered:
        return findings
    reach, holder = ordered[0]
    if not reach.start_is_open:
        findings.append(f"gap before {holder}")
    for current, name in ordered[1:]:
        if reach.end_is_open or compare_ids(current.start, reach.end) < 0:
            findings.append(f"{holder} and {name} overlap")
        elif normalize(current.start) != normalize(reach.end):
            findings.append(f"gap between {holder} and {name}")
        if current.compare_end(reach) > 0:
            reach, holder = current, name
    if not reach.end_is_open:
        findings.append(f"gap after {holder}")
    return findings
