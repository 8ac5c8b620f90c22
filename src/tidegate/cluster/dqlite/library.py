"""The binding of libdqlite: where the library is, and one Python method for each function used.

Decides which libdqlite is loaded: the one that ``TIDEGATE_DQLITE_LIBRARY`` names, else the one that
``scripts/dqlite`` put into the checkout's ``.cache/dqlite/lib``, else the system's. It must not
know what a member or a cluster is.

What it needs (libraft, libuv, libsqlite3, liblz4) is loaded first, from the same folder where it
lies there and from the system where it does not; the loader then finds each by its name. libdqlite
calls neither ``sqlite3_config`` nor ``sqlite3_initialize`` and registers its file system under a
name of its own, not as the default, so Python's :mod:`sqlite3` in the same process is as safe as
without it, whether the two share one libsqlite3 or load one each. Tests hold that.
"""

from __future__ import annotations

import ctypes
import os
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tidegate.errors import DqliteError, DqliteLibraryError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

VARIABLE: Final = "TIDEGATE_DQLITE_LIBRARY"
NAME: Final = "libdqlite.so.0"
_NEEDED: Final = ("liblz4.so.1", "libuv.so.1", "libsqlite3.so.0", "libraft.so.2")
_CHECKOUT: Final = Path(__file__).resolve().parents[4] / ".cache" / "dqlite" / "lib"
_INSTALL: Final = (
    f"install it (Debian, Ubuntu: apt-get install libdqlite0), or name its file in {VARIABLE};"
    " in a source checkout, scripts/dqlite fetches it without root"
)

_POOL_THREADS: Final = "16"
"""Threads of libuv's pool, which dials as well as writes the log: one peer that does not answer
occupies a thread for as long as a dial may take, and four, the default, would soon be none."""

_ConnectFunction = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int)
)


class _NodeInfo(ctypes.Structure):
    """``dqlite_node_info_ext`` of dqlite.h: 64-bit words, the first one the struct's size."""

    _fields_ = (
        ("size", ctypes.c_uint64),
        ("id", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("dqlite_role", ctypes.c_uint64),
    )


class _FileSystem(ctypes.Structure):
    """The beginning of ``sqlite3_vfs``, a linked list."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("file_bytes", ctypes.c_int),
        ("max_path_bytes", ctypes.c_int),
        ("next", ctypes.c_void_p),
    )


_RAFT_ERRORS: Final = {
    6: "its files are damaged",
    12: "its files are damaged",
    18: "its files cannot be read or written",
    19: "its folder is not there",
}
_creating: Final = threading.Lock()

_SIGNATURES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "dqlite_version_number": (ctypes.c_int, ()),
    "dqlite_node_create": (
        ctypes.c_int,
        (ctypes.c_ulonglong, ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)),
    ),
    "dqlite_node_destroy": (None, (ctypes.c_void_p,)),
    "dqlite_node_set_bind_address": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p)),
    "dqlite_node_get_bind_address": (ctypes.c_char_p, (ctypes.c_void_p,)),
    "dqlite_node_set_connect_func": (
        ctypes.c_int,
        (ctypes.c_void_p, _ConnectFunction, ctypes.c_void_p),
    ),
    "dqlite_node_set_network_latency_ms": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_uint)),
    "dqlite_node_set_failure_domain": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_ulonglong)),
    "dqlite_node_set_snapshot_params": (
        ctypes.c_int,
        (ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint),
    ),
    "dqlite_node_start": (ctypes.c_int, (ctypes.c_void_p,)),
    "dqlite_node_stop": (ctypes.c_int, (ctypes.c_void_p,)),
    "dqlite_node_recover_ext": (
        ctypes.c_int,
        (ctypes.c_void_p, ctypes.POINTER(_NodeInfo), ctypes.c_int),
    ),
    "dqlite_node_errmsg": (ctypes.c_char_p, (ctypes.c_void_p,)),
    "sqlite3_vfs_find": (ctypes.c_void_p, (ctypes.c_char_p,)),
    "sqlite3_vfs_unregister": (ctypes.c_int, (ctypes.c_void_p,)),
}


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded libdqlite."""

    functions: Any
    description: str
    """Where it came from: a path, or the loader's name for the system's."""

    @property
    def version_number(self) -> int:
        """Major · 10000 + minor · 100 + release; Debian's 1.11.1 says 11000, that is 1.10.0."""
        number: int = self.functions.dqlite_version_number()
        return number


class Handle:
    """One ``dqlite_node``: create, set, start, stop, destroy, in this order, from one thread.

    Args:
        library: to be used.
        node_id: of the node, 1 … 2^64-1.
        address: as other members know it; handed to their ``connect``.
        folder: of the node's files.

    Raises:
        DqliteError: the node cannot be made.
    """

    def __init__(self, library: Library, *, node_id: int, address: str, folder: Path) -> None:
        self._c = library.functions
        self._address = address
        self._node = ctypes.c_void_p()
        self._connect: Any = None
        self._kept: list[Any] = []
        with _creating:
            before = _file_systems(self._c)
            status = self._c.dqlite_node_create(
                node_id, address.encode(), os.fsencode(folder), ctypes.byref(self._node)
            )
            if status:
                # 1.11 leaves what it has registered with SQLite there, with a name that it has
                # freed. The node itself is lost: it may not be destroyed half made.
                for stale in _file_systems(self._c) - before:
                    self._c.sqlite3_vfs_unregister(stale)
                self._node = ctypes.c_void_p()
                reason = _RAFT_ERRORS.get(status, f"error {status}")
                raise DqliteError(
                    f"the dqlite node {address} could not be made from {folder}: {reason}",
                    status=status,
                )

    def _error(self, what: str, status: int) -> DqliteError:
        text = self._c.dqlite_node_errmsg(self._node) if self._node else None
        reason = text.decode(errors="replace") if text else f"error {status}"
        return DqliteError(f"the dqlite node {self._address} {what}: {reason}", status=status)

    def _call(self, what: str, name: str, *arguments: Any) -> None:
        status = getattr(self._c, name)(self._node, *arguments)
        if status:
            raise self._error(what, status)

    def bind(self, address: str) -> None:
        """Where to listen: ``@`` is an abstract Unix socket with a name the kernel picks."""
        self._call("cannot listen", "dqlite_node_set_bind_address", address.encode())

    @property
    def bound(self) -> str:
        """Where it listens: ``@name``."""
        name: bytes = self._c.dqlite_node_get_bind_address(self._node)
        return name.decode()

    def connect_with(self, connect: Callable[[str], int]) -> None:
        """Have other nodes dialled by a function from an address to a file descriptor.

        It is called in threads of libuv's pool, may block for a bounded time, and owns nothing
        once it has returned. Whatever it raises is a failed dial.
        """

        def call(_argument: Any, address: bytes, descriptor: Any) -> int:
            try:
                descriptor[0] = connect(address.decode(errors="replace"))
            except Exception:  # noqa: BLE001 - nothing may travel through C; the node dials again
                return 1
            return 0

        self._connect = _ConnectFunction(call)  # must live as long as the node
        self._call("takes no dialler", "dqlite_node_set_connect_func", self._connect, None)

    def set_network_latency(self, milliseconds: int) -> None:
        """The one-way latency, from which heartbeats and elections take their times."""
        self._call("takes no latency", "dqlite_node_set_network_latency_ms", milliseconds)

    def set_failure_domain(self, code: int) -> None:
        """A number that members in one rack or zone share."""
        self._call("takes no failure domain", "dqlite_node_set_failure_domain", code)

    def set_snapshots(self, threshold: int, trailing: int) -> None:
        """Snapshot after ``threshold`` log entries and keep ``trailing`` entries behind it."""
        self._call(
            "takes no snapshot limits", "dqlite_node_set_snapshot_params", threshold, trailing
        )

    def start(self) -> None:
        """Start the node's thread; returns when it accepts connections."""
        self._call("could not be started", "dqlite_node_start")

    def stop(self) -> None:
        """Stop the node's thread and wait for it, however long it takes."""
        self._call("could not be stopped", "dqlite_node_stop")

    def recover(self, members: Sequence[tuple[int, str, int]]) -> None:
        """Make these members (id, address, role) the configuration; the node must not run."""
        infos = (_NodeInfo * len(members))()
        for info, (member_id, address, role) in zip(infos, members, strict=True):
            text = ctypes.c_char_p(address.encode())
            self._kept.append(text)
            info.size = ctypes.sizeof(_NodeInfo)
            info.id = member_id
            info.address = ctypes.cast(text, ctypes.c_void_p).value
            info.dqlite_role = role
        self._call("could not be recovered", "dqlite_node_recover_ext", infos, len(members))

    def destroy(self) -> None:
        """Free the node, which must not run; safe to call twice."""
        if self._node:
            self._c.dqlite_node_destroy(self._node)
            self._node = ctypes.c_void_p()


def _file_systems(functions: Any) -> set[int]:
    """Addresses of the file systems that libdqlite's SQLite knows."""
    found: set[int] = set()
    address: int | None = functions.sqlite3_vfs_find(None)
    while address:
        found.add(address)
        address = _FileSystem.from_address(address).next
    return found


def _load(path: str) -> Any:
    """Load what libdqlite needs, then itself.

    Raises:
        OSError: something is not there, or is of another machine.
    """
    os.environ.setdefault("UV_THREADPOOL_SIZE", _POOL_THREADS)
    folder = Path(path).parent if "/" in path else None
    for name in _NEEDED:
        if folder is not None and (folder / name).exists():
            ctypes.CDLL(str(folder / name))
    loaded = ctypes.CDLL(path)
    for name, (result, arguments) in _SIGNATURES.items():
        try:
            function = getattr(loaded, name)
        except AttributeError:
            raise OSError(f"it has no function {name}") from None
        function.restype = result
        function.argtypes = arguments
    return loaded


@cache
def locate() -> Library:
    """The libdqlite of this machine, loaded; the same one at each call.

    Raises:
        DqliteLibraryError: there is none, or it cannot be loaded.
    """
    named = os.environ.get(VARIABLE)
    if named:
        candidates = [named]
    else:
        local = _CHECKOUT / NAME
        candidates = [*([str(local)] if local.exists() else []), NAME]
    reasons = []
    for candidate in candidates:
        try:
            return Library(_load(candidate), candidate)
        except OSError as error:
            reasons.append(f"{candidate}: {error}")
    raise DqliteLibraryError(
        f"libdqlite cannot be loaded ({'; '.join(reasons)})", next_step=_INSTALL
    )
