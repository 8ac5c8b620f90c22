"""Behaviour cases that tell a story: what is given, what happens, what is expected.

A file of them is a JSON list; each names its ``system``, which says who understands it
(``SYSTEMS`` of ``test_cases``). Values are read through :class:`Facts`, which remember what was
looked at: a key that nobody has read, and an event that nobody has taken, fail the case.

Where Tidegate means to do something else than the system that a case was taken from,
``deviations.toml`` says so: case, key of the expectation, ours, and the defect that it mends.
"""

from __future__ import annotations

import copy
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVIATIONS = Path(__file__).parent / "deviations.toml"

HEAD = frozenset({"id", "system", "origin", "source_test", "source_file", "notes"})
"""Keys that say where a case comes from; they check nothing."""

DEFECT = re.compile(r"A4\.[1-9]|D(?:[1-9]|1[01])|foreign setting: \S.*")
"""What a deviation may be founded on: a numbered defect, or a setting that only the other has."""


class Facts:
    """A JSON object whose keys must all be looked at; objects within it are facts as well."""

    def __init__(self, data: dict[str, Any], path: str = "") -> None:
        self.data = data
        self.path = path
        self._seen: dict[str, Any] = {}

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: str) -> Any:
        if key not in self._seen:
            self._seen[key] = _wrapped(self.data[key], f"{self.path}{key}.")
        return self._seen[key]

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self.data else default

    def unread(self) -> list[str]:
        """Paths of the keys that nobody has looked at."""
        found = [f"{self.path}{key}" for key in self.data if key not in self._seen]
        for value in self._seen.values():
            for facts in _within(value):
                found += facts.unread()
        return found


def _wrapped(value: Any, path: str) -> Any:
    if isinstance(value, dict):
        return Facts(value, path)
    if isinstance(value, list):
        return [_wrapped(each, f"{path}{number}.") for number, each in enumerate(value)]
    return value


def _within(value: Any) -> Iterator[Facts]:
    if isinstance(value, Facts):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _within(each)


@dataclass
class Scenario:
    """One case, with the expectation that holds for Tidegate."""

    id: str
    given: Facts
    events: list[Any]
    expect: Facts
    taken: set[int] = field(default_factory=set)

    def take(self, number: int) -> Any:
        """An event by its place; it counts as understood from now on."""
        self.taken.add(number)
        return self.events[number]

    def take_all(self) -> list[Any]:
        """All events, in their order."""
        return [self.take(number) for number in range(len(self.events))]

    def check_all_read(self) -> None:
        unknown = [*self.given.unread(), *self.expect.unread()]
        unknown += [f"event {n}" for n in range(len(self.events)) if n not in self.taken]
        for event in self.events:
            unknown += [key for facts in _within(event) for key in facts.unread()]
        assert not unknown, f"unknown in case {self.id}: {unknown}"


def scenario(data: dict[str, Any]) -> Scenario:
    """A case as it is to hold here; unknown parts of it fail."""
    unknown = set(data) - HEAD - {"given", "events", "expect"}
    assert not unknown, f"unknown parts of a case: {sorted(unknown)}"
    expect = copy.deepcopy(data["expect"])
    assert isinstance(expect, dict), "what is expected has no names"
    for deviation in deviations():
        if deviation.case == data["id"]:
            deviation.apply(expect)
    return Scenario(
        data["id"],
        Facts(data["given"], "given."),
        _wrapped(data["events"], "events."),
        Facts(expect, "expect."),
    )


@dataclass(frozen=True)
class Deviation:
    """One expectation that is another here, and why."""

    case: str
    key: str
    ours: Any
    defect: str

    def apply(self, expect: dict[str, Any]) -> None:
        """Put our expectation in the place of the other; the place must exist."""
        *way, last = self.key.split(".")
        place: Any = expect
        for step in way:
            place = place[int(step)] if isinstance(place, list) else place[step]
        index: Any = int(last) if isinstance(place, list) else last
        assert place[index] != self.ours, f"{self.case} {self.key} deviates in nothing"
        place[index] = self.ours


def deviations(path: Path = DEVIATIONS) -> list[Deviation]:
    """Every deviation; one that no numbered defect explains is an error."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))
    assert set(entries) <= {"deviation"}, f"unknown keys: {sorted(entries)}"
    found = []
    for entry in entries.get("deviation", []):
        assert set(entry) == {"case", "key", "ours", "defect"}, f"deviation {entry}"
        assert DEFECT.fullmatch(entry["defect"]), f"{entry['case']}: no defect {entry['defect']!r}"
        found.append(Deviation(**entry))
    assert len({(each.case, each.key) for each in found}) == len(found), "two for one key"
    return found


def unused(entries: list[Deviation], cases: list[dict[str, Any]]) -> list[str]:
    """The deviations that no case has the place for."""
    left = []
    by_id = {case["id"]: case for case in cases}
    for entry in entries:
        try:
            entry.apply(copy.deepcopy(by_id[entry.case]["expect"]))
        except (KeyError, IndexError, ValueError, TypeError):
            left.append(f"{entry.case} {entry.key}")
    return left
