"""How a command ends: what it opened is closed, and Ctrl-C is never lost."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

AT_END: Final = ExitStack()
"""Closed by :func:`tidegate.cli.main.run`."""


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """A loop that Ctrl-C ends, whenever it is pressed; yields what the loop calls at each turn.

    Python drops an exception that is raised while a finaliser or a callback of the garbage
    collector runs, so the first KeyboardInterrupt may be lost. It is raised again at the next turn.
    """
    pressed = False

    def press(_number: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def look() -> None:
        if pressed:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield look
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield look
    finally:
        signal.signal(signal.SIGINT, before)
