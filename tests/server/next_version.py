"""The program one version on: it knows one more schema update and one more API extension."""

from __future__ import annotations

from tidegate.cli.main import main
from tidegate.cluster.ledger import Update
from tidegate.server import api_extensions, node, serving, transitions

NEXT = Update(
    "test.next_version",
    ("CREATE TABLE next_version (id integer NOT NULL PRIMARY KEY)",),
    older_works=True,
)

if __name__ == "__main__":
    updates = (*node.UPDATES, NEXT)
    extensions = (*api_extensions.API_EXTENSIONS, "next_version")
    vars(serving).update(UPDATES=updates, API_EXTENSIONS=extensions)
    vars(transitions).update(API_EXTENSIONS=extensions)
    main()
