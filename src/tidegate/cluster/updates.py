"""The schema updates that belong to the cluster database itself.

Other domains declare theirs beside their stores; the node's composition root puts all of them into
one :class:`tidegate.cluster.ledger.Ledger`, oldest first.
"""

from __future__ import annotations

from typing import Final

from tidegate.cluster.ledger import Update

LEASES: Final = Update(
    "cluster.leases",
    (
        """
        CREATE TABLE lease (
            name text NOT NULL PRIMARY KEY,
            holder text,
            revision bigint NOT NULL,
            acquired_at_ms bigint NOT NULL,
            expires_at_ms bigint NOT NULL
        )
        """,
    ),
)
"""A row per name that was ever leased; it stays, so that revisions never repeat."""
