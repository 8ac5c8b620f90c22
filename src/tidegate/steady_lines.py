"""Lines of a log that must not end whoever writes them: a disk may be full, a reader gone.

Decides what becomes of a line that cannot be written: it is lost, and counted. Nothing is kept for
later, so a process whose log fails does not grow, and does not fail at its end for what is left.
"""

from __future__ import annotations

import os


class SteadyLines:
    """A file of lines, written at once; a line that was cut off is ended before the next one.

    Args:
        handle: of an open file.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._is_torn = False
        self.lost = 0
        self.failure: str | None = None
        """Why the last line could not be written; None when it was."""

    def write(self, text: str) -> int:
        """Write whole lines, or lose them; how many characters were given."""
        data = (("\n" if self._is_torn else "") + text).encode("utf-8", errors="replace")
        try:
            while data:
                written = os.write(self._handle, data)
                self._is_torn = not data[:written].endswith(b"\n")
                data = data[written:]
        except OSError as error:
            self.failure = error.strerror or type(error).__name__
            self.lost += text.count("\n")
        else:
            self.failure = None
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""
