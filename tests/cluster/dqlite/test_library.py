"""The binding of libdqlite: found, or said how to get; and Python's SQLite beside it."""

from __future__ import annotations

import ctypes
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tidegate.cluster.dqlite.library import NAME, VARIABLE, Handle, _file_systems, locate
from tidegate.errors import DqliteError

if TYPE_CHECKING:
    from tidegate.cluster.dqlite.member import DqliteMember

ROOT = Path(__file__).resolve().parents[3]
LOCATE = """
from tidegate.cluster.dqlite.library import locate
from tidegate.errors import TidegateError
try:
    print(locate().description)
except TidegateError as error:
    print(error.code, error.message, error.next_step)
"""


def located(value: str | None) -> str:
    environment = {name: text for name, text in os.environ.items() if name != VARIABLE}
    if value is not None:
        environment[VARIABLE] = value
    done = subprocess.run(
        [sys.executable, "-c", LOCATE], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_set_up_makes_it_loadable_without_root() -> None:
    done = subprocess.run(
        [ROOT / "scripts/dqlite", "--print"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip().endswith(NAME)
    assert located(None) == done.stdout.strip()


def test_the_setting_comes_first_and_what_it_names_must_be_there(tmp_path: Path) -> None:
    found = locate().description
    assert located(found) == found
    answer = located(str(tmp_path / "nothing.so"))
    assert answer.startswith("TG-CDB-012 libdqlite cannot be loaded")
    assert "nothing.so" in answer
    assert "apt-get install libdqlite0" in answer


def test_a_library_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no library\n" * 50)
    assert "invalid ELF header" in located(str(tmp_path / "text.so"))
    assert "it has no function dqlite_version_number" in located("libc.so.6")


def test_what_the_library_refuses_carries_its_own_words(tmp_path: Path) -> None:
    handle = Handle(locate(), node_id=2, address="127.0.0.1:1", folder=tmp_path)
    with pytest.raises(DqliteError, match="takes no latency") as caught:
        handle.set_network_latency(0)
    assert caught.value.details["status"]
    handle.destroy()
    handle.destroy()


def test_a_node_that_cannot_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    """Where 1.11 alone leaves a pointer to freed memory in SQLite's list of file systems."""
    before = _file_systems(locate().functions)
    for _ in range(20):
        with pytest.raises(DqliteError, match=r"could not be made .*: its folder is not there"):
            Handle(locate(), node_id=2, address="127.0.0.1:1", folder=tmp_path / "nowhere")
    handle = Handle(locate(), node_id=2, address="127.0.0.1:1", folder=tmp_path)
    assert len(_file_systems(locate().functions)) == len(before) + 1
    handle.destroy()
    assert _file_systems(locate().functions) == before


def test_pythons_sqlite_stays_thread_safe_beside_a_running_node(
    member: DqliteMember, tmp_path: Path
) -> None:
    """What it was before: serialized, with its own default file system, on real files."""
    assert member.client.leader() is not None
    assert sqlite3.threadsafety == 3
    compiled = ctypes.CDLL("libsqlite3.so.0")
    assert compiled.sqlite3_threadsafe() == 1
    path = tmp_path / "plain.db"
    shared = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    shared.execute("PRAGMA journal_mode=WAL")
    shared.execute("CREATE TABLE t (n integer)")

    def write() -> None:
        own = sqlite3.connect(path, timeout=30, isolation_level=None)
        for number in range(100):
            own.execute("INSERT INTO t VALUES (?)", (number,))
            shared.execute("SELECT count(*) FROM t").fetchone()
        own.close()

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shared.execute("SELECT count(*) FROM t").fetchone() == (400,)
    assert shared.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    shared.close()
    assert path.read_bytes().startswith(b"SQLite format 3\0")
    assert member.client.leader() is not None


def test_the_nodes_socket_takes_connections_of_its_own_process_only(member: DqliteMember) -> None:
    name = member._socket()
    with socket.socket(socket.AF_UNIX) as own:
        own.settimeout(5)
        own.connect(f"\0{name}")
        own.sendall((1).to_bytes(8, "little") + bytes.fromhex("01000000 00000000 0000000000000000"))
        assert own.recv(8), "the node answers its own process"
    foreign = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect('\\0' + sys.argv[1])\n"
        "try:\n"
        "    s.sendall((1).to_bytes(8, 'little') + bytes.fromhex('01' + '00' * 15))\n"
        "    print(s.recv(8))\n"
        "except OSError as error:\n"
        "    print(b'', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", foreign, name], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("b''")
