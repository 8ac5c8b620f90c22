"""A program of some version that opens a cluster database, for tests that run it as a process.

``python -m ensure_program URL ADDRESS SCHEMA EXTENSIONS [FOLDER]`` writes one JSON line: the gate's
verdict and who it is because of, or the code of the error. It says ``ready`` first and starts when
a line comes on its standard input. ``FULL_DISK=always|once`` in the environment gives it no room to
write, for good or until it tries again.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path

from make_cluster import program
from tidegate.cluster import member_store
from tidegate.cluster.database import ClusterDatabase
from tidegate.errors import TidegateError

NO_ROOM_BYTES = 4096


def main() -> None:
    """Open the database once."""
    url, address, schema, extensions, *folder = sys.argv[1:]
    tries = 0

    def sleep(_seconds: float) -> None:
        nonlocal tries
        tries += 1
        if os.environ.get("FULL_DISK") == "once":
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

    with ClusterDatabase.open(url) as database:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        if "FULL_DISK" in os.environ:
            with database.read() as connection:  # the file's shared memory gets its size
                member_store.has_table(connection)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (NO_ROOM_BYTES, resource.RLIM_INFINITY))
        cluster = program(database, (int(schema), int(extensions)), sleep=sleep)
        try:
            answer = cluster.ensure_schema(address, Path(*folder) if folder else None)
        except TidegateError as error:
            found = {"error": error.code, "message": error.message, "tries": tries}
        else:
            found = {"verdict": answer.verdict, "who": list(answer.names), "tries": tries}
        sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
