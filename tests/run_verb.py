"""Runs a verb of the workflow service as a process: for tests that kill or freeze it.

Usage: run_verb.py URL VERB REQUEST, the request as JSON; the step is in the environment.
"""

from __future__ import annotations

import json
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


def main() -> None:
    url, verb, text = sys.argv[1:]
    database = ClusterDatabase.open(url)
    service = WorkflowService(database, TopologyStore(database), holder=f"dying-{os.getpid()}")
    given = json.loads(text)
    listed = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
    request = REQUESTS[verb](**listed)
    getattr(service, "create" if verb == "reshard" else verb)(request)
