"""Runs one verb of the workflow service in a process of its own: for tests that kill it."""

from __future__ import annotations

import ast
import os
import sys
from typing import Any

from tidegate.cluster.database import ClusterDatabase
from tidegate.topology.store import TopologyStore
from tidegate.workflow import requests
from tidegate.workflow.service import WorkflowService

REQUESTS: dict[str, Any] = {
    "create": requests.MoveTablesCreate,
    "reshard": requests.ReshardCreate,
    "switch_traffic": requests.SwitchRequest,
    "reverse_traffic": requests.SwitchRequest,
    "complete": requests.CompleteRequest,
    "cancel": requests.CancelRequest,
}


def main(url: str, verb: str, text: str) -> None:
    database = ClusterDatabase.open(url)
    service = WorkflowService(database, TopologyStore(database), holder=f"dying-{os.getpid()}")
    request = REQUESTS[verb](**ast.literal_eval(text))
    getattr(service, "create" if verb == "reshard" else verb)(request)


if __name__ == "__main__":
    main(*sys.argv[1:])
