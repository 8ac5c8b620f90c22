"""Which threads of a process come first when processors are short: those that renew leases.

Decides how, and only where the operating system allows it; without the right to it nothing changes.
Threads and processes that a preferred thread starts would be preferred as well, so none of them
starts any.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Final

NICENESS: Final = -10


def prefer_this_thread() -> None:
    """Let this thread go before others from now on."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
