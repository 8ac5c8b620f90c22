"""What one function's text refers to, as frozen values that pass between processes as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping


class Kind(StrEnum):
    """What a name stands for."""

    RELATION = "relation"
    ROUTINE = "routine"
    TYPE = "type"
    OPERATOR = "operator"
    COLLATION = "collation"
    TEXT_SEARCH_CONFIGURATION = "text search configuration"
    TEXT_SEARCH_DICTIONARY = "text search dictionary"


@dataclass(frozen=True, order=True)
class Reference:
    """A name as a text has it.

    Attributes:
        schema: as written; empty when the search path decides.
        arguments: of a call, how many; -1 when they cannot be counted.
        writes: of a relation: rows are written, not only read.
    """

    kind: Kind
    schema: str
    name: str
    arguments: int = -1
    writes: bool = False

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}" if self.schema else self.name


@dataclass(frozen=True)
class Body:
    """One function's text and what is needed to parse it.

    Attributes:
        language: ``sql`` or ``plpgsql``.
        returns: ``trigger``, ``event_trigger``, ``void``, ``set`` or anything else.
        inputs: names of the arguments that only come in, by position; empty where unnamed.
        outputs: names of the arguments that go out, in order.
        positions: name of each argument for ``$1``, ``$2``, …, inputs and those both ways.
    """

    language: str
    text: str
    returns: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    positions: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As the reading process takes it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_json`."""
        lists = {key: tuple(value[key]) for key in ("inputs", "outputs", "positions")}
        return cls(
            language=value["language"], text=value["text"], returns=value["returns"], **lists
        )


@dataclass(frozen=True)
class Reading:
    """What a text refers to.

    Attributes:
        dynamic: statements that are put together at run time, as far as the text shows them.
        search_paths: search paths that the text itself sets, each as a list of schemas.
        error: why the text could not be read; empty when it was.
    """

    references: tuple[Reference, ...] = ()
    dynamic: tuple[str, ...] = ()
    search_paths: tuple[tuple[str, ...], ...] = ()
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """As the reading process answers."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_json`."""
        return cls(
            references=tuple(
                Reference(**{**each, "kind": Kind(each["kind"])}) for each in value["references"]
            ),
            dynamic=tuple(value["dynamic"]),
            search_paths=tuple(tuple(each) for each in value["search_paths"]),
            error=value["error"],
        )
