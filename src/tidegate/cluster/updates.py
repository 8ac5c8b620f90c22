"""The schema updates that belong to the cluster database itself.

Other domains declare theirs beside their stores; the node's composition root puts all of them into
one :class:`tidegate.cluster.schema.Schema`, oldest first.
"""

from __future__ import annotations

from typing import Final

from tidegate.cluster.ledger import Update

_LEASES: Final = """
CREATE TABLE lease (
    name text NOT NULL PRIMARY KEY,
    holder text,
    revision bigint NOT NULL,
    acquired_at_ms bigint NOT NULL,
    expires_at_ms bigint NOT NULL
)
"""  # a name that was ever leased keeps its row, so that its revisions never repeat

UPDATES: Final = (Update("cluster.leases", (_LEASES,)),)
"""What the cluster database itself adds to the ledger."""
