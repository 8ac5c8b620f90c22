"""The demo's node: a real ``tidegate serve`` in a process of its own, and a client for it."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tidegate.client import Client
from tidegate.engines.postgres.local import free_port
from tidegate.errors import TidegateError, UnreachableNodeError

if TYPE_CHECKING:
    from pathlib import Path

START_TIMEOUT_S = 30.0


@dataclass
class Node:
    """A running node."""

    state_dir: Path
    url: str
    process: subprocess.Popen[bytes]

    @property
    def token(self) -> str:
        """The API token, as a reference."""
        return f"file:{self.state_dir / 'tokens'}"

    @classmethod
    def start(cls, state_dir: Path, secret_folder: Path) -> Self:
        """Start ``tidegate serve`` and wait until it is ready."""
        state_dir.mkdir(mode=0o700)
        state = str(state_dir)
        listen = f"127.0.0.1:{free_port()}"
        options = ["--listen", listen, "--state-dir", state]
        options += ["--secret-folder", str(secret_folder)]
        with (state_dir / "serve.log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-m", "tidegate.cli.main", "serve", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        node = cls(state_dir, f"http://{listen}", process)
        node.wait_ready()
        return node

    def wait_ready(self) -> None:
        """Wait until the API answers."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                with self.client() as client:
                    client.keyspace.list()
            except TidegateError as error:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    log = (self.state_dir / "serve.log").read_text(errors="replace")
                    raise UnreachableNodeError(
                        "the demo's node did not start", next_step=f"read: {log[-1500:]}"
                    ) from error
                time.sleep(0.1)
            else:
                return

    def client(self) -> Client:
        """A client with the node's token."""
        return Client(self.url, self.token)

    def stop(self) -> None:
        """Stop the node and its workers in order."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
