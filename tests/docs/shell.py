"""The shell blocks of a document, and a shell that runs them one after another.

A block fenced as ``sh`` is a step; a ``text`` block right after it is what it prints. A comment
before a block says what a reader would know: ``<!-- yours -->`` holds values of the reader,
``<!-- exit 4 -->`` ends with that status, ``<!-- interrupt -->`` runs until Ctrl-C.
"""

from __future__ import annotations

import re
import selectors
import shlex
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

INTERRUPT_AFTER_S = 3
STEP_TIMEOUT_S = 60.0

_BLOCK = re.compile(
    r"^## (?P<heading>.*?)$"
    r"|^(?:<!-- (?P<note>[\w ]+) -->\n)?```sh\n(?P<code>.*?)^```\n(?:```text\n(?P<text>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One step of a document."""

    heading: str
    note: str
    code: str
    expected: str | None

    @property
    def status(self) -> int:
        """The exit status the document tells."""
        return int(self.note.removeprefix("exit ")) if self.note.startswith("exit ") else 0


def blocks_of(path: Path) -> Iterator[Block]:
    """The steps of a document, in order."""
    heading = ""
    for found in _BLOCK.finditer(path.read_text(encoding="utf-8")):
        if found["heading"] is not None:
            heading = found["heading"]
        else:
            yield Block(heading, found["note"] or "", found["code"], found["text"])


_VARIABLE = (
    (r"\x1b\[[0-9;]*m", ""),
    # A verb that lasts for long on a busy machine says on standard error what it waits for.
    (r"(?m)^waits for .* since \d\d:\d\d:\d\d.*\n", ""),
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "UUID"),
    (r"\b(tidegate|fence)_[0-9a-f]{12}", r"\1_ID"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[\d.+:Z]*", "TIME"),
    (r"\b\d+(\.\d+)? (B|KiB|MiB|GiB|TiB)(?!\w)", "SIZE"),
    (r"\b(\d+ h )?(\d+ min )?\d+(\.\d+)? (ms|s|min)\b", "DURATION"),
    (r"\d+(\.\d+)?", "N"),
    (r"[ \t]+", " "),
    # A stream that has just been started may not have been heard of yet.
    (r"(?m)(_ID_(?:fwd|rev)\b.*) (?:yes|no) *$", r"\1 ACTIVE"),
    (r"\bRunning (?:DURATION|-)", "Running LAG"),
)


def shape(text: str) -> list[str]:
    """What stays the same from run to run: lines without figures, ids and padding."""
    for pattern, word in _VARIABLE:
        text = re.sub(pattern, word, text)
    return [line.strip() for line in text.strip().splitlines()]


class Shell:
    """One bash, as a reader has one."""

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        *,
        words: Mapping[str, str] | None = None,
    ) -> None:
        """``words``: names of this run, and what the document has in their place."""
        self._folder, self._words = folder, dict(words or {})
        self._number = 0
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=dict(environment),
        )
        assert self._bash.stdout is not None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bash.stdout, selectors.EVENT_READ)

    def run(self, block: Block) -> str:
        """Run a step, check its exit status, and return what it printed."""
        self._number += 1
        script = self._folder / f"step-{self._number}.sh"
        printed = script.with_suffix(".out")
        script.write_text(block.code, encoding="utf-8")
        source = f". {shlex.quote(str(script))}"
        status = block.status
        if block.note == "interrupt":
            source = f"timeout -s INT {INTERRUPT_AFTER_S} bash {shlex.quote(str(script))}"
            status = 124
        guard = "set +e" if status else "set -e"
        self._send(f"{guard}; {source} < /dev/null > {shlex.quote(str(printed))} 2>&1; echo $?\n")
        answer = self._line()
        text = printed.read_text(encoding="utf-8") if printed.exists() else ""
        assert answer == str(status), f"{block.heading}: {block.code}\nended {answer!r}:\n{text}"
        for ours, theirs in self._words.items():
            text = re.sub(rf"\b{re.escape(ours)}\b", theirs, text)
        return text

    def _send(self, line: str) -> None:
        assert self._bash.stdin is not None
        self._bash.stdin.write(line.encode())
        self._bash.stdin.flush()

    def _line(self) -> str:
        """The next line of bash itself; empty when it has ended."""
        assert self._bash.stdout is not None
        deadline = time.monotonic() + STEP_TIMEOUT_S
        while not self._selector.select(max(0.0, deadline - time.monotonic())):
            assert time.monotonic() < deadline, f"step {self._number} takes too long"
        return self._bash.stdout.readline().decode().strip()

    def close(self) -> None:
        """End the shell and what it left in the background."""
        if self._bash.poll() is None:
            self._send("kill $(jobs -p) 2> /dev/null; wait; exit\n")
            try:
                self._bash.wait(20)
            except subprocess.TimeoutExpired:
                self._bash.kill()
                self._bash.wait(5)
        self._selector.close()
        for pipe in (self._bash.stdin, self._bash.stdout):
            if pipe is not None:
                pipe.close()
