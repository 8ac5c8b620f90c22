"""How a table is named: ``accounts`` is in schema ``public``, ``sales.accounts`` in ``sales``.

Names are kept exactly as the catalogue has them; quoting happens where SQL is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from tidegate.errors import InvalidArgumentError

DEFAULT_SCHEMA = "public"


@dataclass(frozen=True, order=True)
class TableName:
    """A table inside one database."""

    schema: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name`` or ``schema.name``.

        Raises:
            InvalidArgumentError: the text is empty or has more than one dot.
        """
        schema, _, name = text.rpartition(".")
        if not name or "." in schema or (not schema and text.startswith(".")):
            raise InvalidArgumentError(
                f"{text!r} is not a table name", next_step="write `table` or `schema.table`"
            )
        return cls(schema or DEFAULT_SCHEMA, name)

    def __str__(self) -> str:
        return self.name if self.schema == DEFAULT_SCHEMA else f"{self.schema}.{self.name}"
