"""The nouns of the command line: name, place, one line of help. The only list of them.

It is read before anything else is imported, so that `tidegate --help` answers at once.
"""

from __future__ import annotations

from typing import Final

#: Heading, then (noun, module, help).
NOUNS: Final[tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...]] = (
    (
        "Workflows",
        (
            ("movetables", "movetables", "Move tables to another keyspace while writers run."),
            ("reshard", "reshard", "Split or merge the shards of a keyspace while writers run."),
            (
                "workflow",
                "workflow",
                "Workflows of any type: list, look, start, switch, end.",
            ),
            ("vdiff", "vdiff", "Prove that source and target are equal."),
            (
                "operation",
                "operation",
                "Reshardings and splits that run by themselves to their end.",
            ),
        ),
    ),
    (
        "Topology",
        (
            ("cell", "cell", "Places whose readers are served together."),
            ("keyspace", "keyspace", "Logical databases."),
            ("shard", "shard", "The parts of a keyspace."),
            ("tablet", "tablet", "Database endpoints."),
            ("vschema", "vschema", "Which table is sharded how."),
            ("routingrules", "routingrules", "Where the traffic of tables goes."),
            ("vindex", "vindex", "Map values to keyspace ids and shards."),
            ("schema", "schema", "Compare the schemas of shards, and copy one to another."),
        ),
    ),
    (
        "Tenants",
        (
            ("tenant", "tenant", "Schemas and databases of tenants, and their upgrades."),
            ("migrations", "migrations", "Where the upgrades of tenants come from."),
        ),
    ),
    (
        "Routers",
        (
            ("routes", "routes", "What routers follow."),
            ("router", "router", "Who follows the routes, and how far."),
        ),
    ),
    (
        "Node",
        (
            ("serve", "serve", "Run a node."),
            ("cluster", "cluster", "The nodes that work together."),
            ("upgrade", "upgrade", "The version of the cluster's own tables at its shards."),
            ("span", "span", "The worker processes of a node."),
            ("token", "token", "Who may use the API, and for what."),
            ("audit", "audit", "Who did what, and whether the log of it is whole."),
            ("doctor", "doctor", "What to look at first when something is wrong."),
            ("demo", "demo", "See it all on this machine in three minutes."),
            ("config", "config", "Settings, and where each is from."),
            ("debug", "debug", "For tests of crashes: the named durable steps."),
            ("completion", "completion", "Completion for bash, zsh and fish."),
        ),
    ),
)

SUMMARY: Final = "Move, split, verify and switch live PostgreSQL databases without downtime."

EPILOGUE: Final = """\
Every command has --help with an example. Output: -o table|wide|json|yaml|name.
Exit statuses and error codes: docs/reference/exit-status.md, docs/reference/errors.md."""


def root_help() -> str:
    """What `tidegate --help` prints."""
    lines = ["Usage: tidegate NOUN VERB [FLAGS]", "", SUMMARY]
    for heading, nouns in NOUNS:
        lines += ["", f"{heading}:"]
        lines += [f"  {name:<14}{text}" for name, _, text in nouns]
    lines += [
        "",
        "Flags:",
        f"  {'--help, -h':<14}Show this.",
        f"  {'--version':<14}Show the version.",
        "",
        "`tidegate help NOUN VERB` shows a verb's help, `tidegate version` the version.",
        "A workflow may be named with its keyspace: -w customer/move1 is -w move1 -t customer.",
    ]
    return "\n".join([*lines, "", EPILOGUE, ""])
