"""Runs verbs of the workflow service, each in a process of its own: for tests that kill it.

Started once, it reads a line for each verb, forks, and prints the child's exit status: importing
everything anew for each of dozens of kills would take longer than the kills.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

from tidegate.cluster.database import ClusterDatabase
from tidegate.steps import CRASH_VARIABLE, FREEZE_VARIABLE
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


def run(url: str, verb: str, given: dict[str, Any], step: str, frozen: bool) -> None:
    os.environ[FREEZE_VARIABLE if frozen else CRASH_VARIABLE] = step
    database = ClusterDatabase.open(url)
    service = WorkflowService(database, TopologyStore(database), holder=f"dying-{os.getpid()}")
    listed = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
    request = REQUESTS[verb](**listed)
    getattr(service, "create" if verb == "reshard" else verb)(request)


def main() -> None:
    for line in sys.stdin:
        url, verb, given, step, frozen = json.loads(line)
        child = os.fork()
        if child == 0:
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the answers' pipe is not for logs
            try:
                run(url, verb, given, step, frozen)
            except BaseException:  # noqa: BLE001 - told to the test
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, os.WUNTRACED)
        # The child stays when it has stopped; the test wakes it or kills it.
        code = None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)
        sys.stdout.write(json.dumps([child, code]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
