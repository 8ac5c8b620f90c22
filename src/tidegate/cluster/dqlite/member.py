"""A member of the replicated cluster database: libdqlite's node, its door, and its files.

Decides what a member's folder holds, when a folder may be opened, and how a member comes and goes.
It must not know the tables, nor how members learn of each other or get their certificates.

How to use it::

    tls = MemberTls.from_files(authority=…, certificate=…, key=…)

    # the first member; its id is always FIRST_ID, and only it may begin an empty folder with it
    member = DqliteMember.open(folder, FIRST_ID, "10.0.0.1:7420", tls, first=True)
    member.start()
    database = ClusterDatabase.open(member.url)  # in this process: through its own socket

    # another one: start it empty, then have any member add it, then give it a role
    other = DqliteMember.open(folder, new_member_id(), "10.0.0.2:7420", tls)
    other.start()                                       # waits to be added
    member.client.add(other.member_id, other.address, role=Role.VOTER)

    # later starts
    member = DqliteMember.reopen(folder, tls)

    # who there is, who leads, changes of both; any member may be asked
    member.client.list() · leader() · promote(id, role) · transfer(id) · remove(id) · set_weight(…)

    # an orderly stop, and leaving for good
    member.handover(); member.close()
    another.client.remove(member.member_id)

    # a majority is gone for good: all stopped, on the survivor with the longest log
    last_entry(folder)                           # the largest of all survivors
    recover(folder, [RaftMember(id, address, Role.VOTER)])  # the others are added again, empty

``client`` of a member asks that member who leads; a :class:`DqliteClient` can be made without a
member, too. All methods block.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import threading
from typing import TYPE_CHECKING, Any, Final, Self

import structlog
from sqlalchemy import URL

from tidegate.cluster.dqlite.client import (
    DqliteClient,
    Handover,
    RaftMember,
    plan_handover,
    raft_role,
)
from tidegate.cluster.dqlite.dialling import Dialler, Local, forget, remember
from tidegate.cluster.dqlite.disk import LOW_BYTES, DiskAction, disk_action, free_bytes
from tidegate.cluster.dqlite.library import Handle, locate
from tidegate.cluster.dqlite.log import LogEnd, log_end
from tidegate.cluster.dqlite.node import STOP_TIMEOUT_S, FolderLock, HostedNode, NodeOptions
from tidegate.cluster.dqlite.tls import MemberTls, parsed_address
from tidegate.cluster.dqlite.tunnel import Tunnel
from tidegate.cluster.members import Role
from tidegate.errors import (
    DqliteError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    TidegateError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from tidegate.cluster.dqlite.tunnel import Refusal

FIRST_ID: Final = 1
"""The id with which libdqlite begins a cluster in an empty folder; no other member may have it."""

DATABASE: Final = "tidegate"
DISK_CHECK_S: Final = 1.0
HEIR_S: Final = 3.0
"""How long a member that stops waits for a leader to be there, and for one heir to lead."""
_IDENTITY: Final = "member.json"
_LOG: Final = "raft"


log = structlog.get_logger("tidegate.dqlite")


def new_member_id() -> int:
    """An id for a member that joins: random, so it was never anybody's; it fits a bigint."""
    return FIRST_ID + 1 + secrets.randbelow(2**62)


class DqliteMember:
    """One member; made by :meth:`open` or :meth:`reopen`, which lock its folder.

    Attributes:
        member_id: its id in the cluster, for ever.
        address: under which the other members know it.
        client: administration of the whole cluster, asked through this member.
    """

    def __init__(
        self,
        folder: Path,
        lock: FolderLock,
        identity: dict[str, Any],
        tls: MemberTls,
        *,
        listen: str | None,
        options: NodeOptions,
        refusal: Refusal | None = None,
    ) -> None:
        self._folder = folder
        self._lock = lock
        self._identity = identity
        self._tls = tls
        self._listen = listen
        self._options = options
        self._refusal = refusal
        self._node: HostedNode | None = None
        self._tunnel: Tunnel | None = None
        self._changing = threading.Lock()
        self._closing = threading.Event()
        self._guard = threading.Thread(
            target=self._watch_disk, name=f"dqlite-disk-{identity['address']}", daemon=True
        )
        self.member_id: Final[int] = identity["member_id"]
        self.address: Final[str] = identity["address"]
        self._local = Local(self.address, tls, self._socket)
        self.client: Final = DqliteClient([self.address], Dialler(tls))

    @classmethod
    def open(
        cls,
        folder: Path,
        member_id: int,
        address: str,
        tls: MemberTls,
        *,
        first: bool = False,
        listen: str | None = None,
        options: NodeOptions | None = None,
        refusal: Refusal | None = None,
    ) -> Self:
        """Take a folder for a member; it does not run yet. A folder that is its own is no error.

        Args:
            folder: of the member alone; made if it is not there.
            member_id: ``FIRST_ID`` for the first member, else :func:`new_member_id`.
            address: ``host:port`` under which the other members reach it.
            tls: its certificate.
            first: it begins a cluster of its own, rather than waiting to be added to one.
            listen: ``host:port`` to listen on, where that differs from ``address``.
            options: how its node behaves.
            refusal: why a peer's certificate is refused, if the authority's signature is not all.

        Raises:
            InvalidArgumentError: id, address and ``first`` do not fit together.
            FailedPreconditionError: the folder is another member's, or has lost its log.
            NodeRunningError: another process works on the folder.
            DqliteError: the folder cannot be used.
        """
        for given in (address, *([listen] if listen else [])):
            parsed_address(given)
        if not 0 < member_id < 2**63 or first != (member_id == FIRST_ID):
            raise InvalidArgumentError(
                f"a member with the id {member_id} cannot be {'the first' if first else 'added'}",
                next_step=f"the first member, and only it, has the id {FIRST_ID}",
            )
        wanted = {"member_id": member_id, "address": address, "started": False}
        lock = FolderLock(folder)
        try:
            identity = _identity(folder)
            if identity is None:
                _write_identity(folder, wanted)
                identity = wanted
            _require_same(folder, identity, wanted)
            _require_log(folder, identity)
            return cls(
                folder,
                lock,
                identity,
                tls,
                listen=listen,
                options=options or NodeOptions(),
                refusal=refusal,
            )
        except BaseException:
            lock.release()
            raise

    @classmethod
    def reopen(
        cls,
        folder: Path,
        tls: MemberTls,
        *,
        listen: str | None = None,
        options: NodeOptions | None = None,
    ) -> Self:
        """Take the folder of a member that was opened before.

        Raises:
            NotFoundError: the folder is no member's.
            FailedPreconditionError: the folder has lost its log.
            NodeRunningError: another process works on the folder.
        """
        identity = _identity(folder)
        if identity is None:
            raise NotFoundError(
                f"there is no member in {folder}", next_step="make one, or name its folder"
            )
        member_id = identity["member_id"]
        return cls.open(
            folder,
            member_id,
            identity["address"],
            tls,
            first=member_id == FIRST_ID,
            listen=listen,
            options=options,
        )

    @property
    def url(self) -> str:
        """The database's URL for :meth:`ClusterDatabase.open`; good in this process only."""
        host, port = parsed_address(self.address)
        return URL.create("dqlite", host=host, port=port, database=DATABASE).render_as_string()

    def start(self) -> None:
        """Listen, start the node, and take part; a member that nobody has added yet waits.

        Raises:
            DqliteError: it cannot listen, or its node does not start.
            DqliteLibraryError: libdqlite is not there.
        """
        assert self._tunnel is None, "started twice"
        (self._folder / _LOG).mkdir(mode=0o700, exist_ok=True)
        self._tunnel = Tunnel(
            self._listen or self.address, self._tls, self._socket, refusal=self._refusal
        )
        try:
            self._start_node(self._tunnel)
        except BaseException:
            self._tunnel.close()
            self._tunnel = None
            raise
        remember(self._local)
        self._guard.start()
        self._note_log()

    def handover(self) -> Handover:
        """Step back before a stop, so that the others need not find out that it is gone.

        Returns:
            What was done; see :func:`plan_handover`.

        Raises:
            NoLeaderError: there is none to ask, or no heir is up.
        """
        client = DqliteClient([self.address], Dialler(self._tls), patience_s=HEIR_S)
        leader = client.leader()
        plan = plan_handover(client.list(), self.member_id, leader.member_id if leader else None)
        if plan.promote is not None:
            client.promote(plan.promote, Role.VOTER)
        _first_that_leads(client, plan.heirs)
        if plan.demote:
            client.promote(self.member_id, Role.SPARE)
        return plan

    def close(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop the node, hang up, and give the folder back; safe to call twice.

        Raises:
            DqliteError: the node did not stop in time; the folder stays locked.
        """
        forget(self._local)
        self._closing.set()
        with self._changing:
            try:
                if self._node is not None:
                    self._node.stop(timeout_s=timeout_s)
                    self._node = None
                    with contextlib.suppress(TidegateError):  # a full disk must not keep it open
                        self._note_log()
            finally:
                if self._tunnel is not None:
                    self._tunnel.close()
                    self._tunnel = None
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    def _note_log(self) -> None:
        """Remember that this member has a log, as soon as it has one.

        A member that is not a voter gets none for as long as nobody gives it a role; it may have
        been started many times without one, and has nothing to lose.
        """
        if not self._identity["started"] and _has_log(self._folder):
            self._identity = {**self._identity, "started": True}
            _write_identity(self._folder, self._identity)

    def _start_node(self, tunnel: Tunnel) -> None:
        self._node = HostedNode(
            self._folder / _LOG,
            node_id=self.member_id,
            address=self.address,
            dial=tunnel.dial,
            options=self._options,
        )

    def _watch_disk(self) -> None:
        for turn in itertools.count():
            if self._closing.wait(DISK_CHECK_S):
                return
            with self._changing:
                try:
                    self._note_log()
                    self._look_at_disk(free_bytes(self._folder), turn)
                except (TidegateError, OSError) as error:
                    log.warning("dqlite.disk.failed", member=self.address, error=str(error))

    def _look_at_disk(self, free: int, turn: int) -> None:
        if self._closing.is_set() or (self._node is not None and free >= LOW_BYTES):
            return
        leader = self.client.leader() if self._node is not None else None
        leads = leader is not None and leader.member_id == self.member_id
        voters = [m.member_id for m in self.client.list() if m.role is Role.VOTER] if leads else []
        heirs = [member_id for member_id in voters if member_id != self.member_id]
        action = disk_action(free, runs=self._node is not None, leads=leads, has_heir=bool(heirs))
        if action is DiskAction.NOTHING:
            return
        log.error("dqlite.disk.low", member=self.address, free_bytes=free, action=action.value)
        if action is DiskAction.HAND_OVER:
            heir = heirs[turn % len(heirs)]  # one of them may be down
            DqliteClient([self.address], Dialler(self._tls), patience_s=2.0).transfer(heir)
        elif action is DiskAction.STOP:
            assert self._node is not None
            self._node.stop()
            self._node = None
        else:
            assert self._tunnel is not None
            self._start_node(self._tunnel)

    def _socket(self) -> str:
        node = self._node
        if node is None:
            raise DqliteError(f"the member {self.address} does not run")
        return node.socket


def _first_that_leads(client: DqliteClient, heirs: Sequence[int]) -> None:
    """Make one of the voters the leader; those that are down are passed over."""
    for heir in heirs:
        try:
            client.transfer(heir)
        except TidegateError:
            if heir == heirs[-1]:
                raise
        else:
            return


def last_entry(folder: Path) -> LogEnd:
    """How far a stopped member's log goes; the largest of the survivors is to be recovered.

    Raises:
        NodeRunningError: the member still runs.
        DqliteError: its log cannot be read.
    """
    lock = FolderLock(folder)
    try:
        return log_end(folder / _LOG)
    finally:
        lock.release()


def recover(folder: Path, members: Sequence[RaftMember]) -> None:
    """Go on without a majority that is gone for good.

    Every member must be stopped, and ``folder`` that of the survivor with the longest log: what it
    lacks is lost. ``members`` are those to go on with, this one among them as a voter; usually it
    alone. The folders of all others must be removed, and they be added again under new ids: an old
    one that came back would not know that it was left out.

    Raises:
        NotFoundError: the folder is no member's.
        InvalidArgumentError: the members do not include this one as a voter.
        NodeRunningError: the member still runs.
        DqliteError: the log cannot be read or written.
    """
    identity = _identity(folder)
    if identity is None:
        raise NotFoundError(f"there is no member in {folder}", next_step="name a member's folder")
    mine = [member for member in members if member.member_id == identity["member_id"]]
    if [member.role for member in mine] != [Role.VOTER]:
        raise InvalidArgumentError(
            f"the members to go on with must include {identity['member_id']} once, as a voter",
            next_step="recover on the survivor with the longest log, for that one alone",
        )
    # libdqlite aborts the process on a configuration in which two are one.
    for parts in ({m.member_id for m in members}, {parsed_address(m.address) for m in members}):
        if len(parts) != len(members):
            raise InvalidArgumentError(
                "two of the members to go on with have one id or one address",
                next_step="name each member once",
            )
    lock = FolderLock(folder)
    try:
        _require_log(folder, identity)
        handle = Handle(
            locate(), node_id=mine[0].member_id, address=mine[0].address, folder=folder / _LOG
        )
        try:
            handle.recover([(m.member_id, m.address, raft_role(m.role)) for m in members])
        finally:
            handle.destroy()
        _write_identity(folder, {**identity, "address": mine[0].address})
    finally:
        lock.release()


def _identity(folder: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / _IDENTITY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DqliteError(
            f"the member's file {folder / _IDENTITY} cannot be read: {error}"
        ) from None
    return found


def _write_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Replace the file; it is there as a whole, or as it was, whenever the power goes."""
    path = folder / _IDENTITY
    draft = path.with_suffix(".new")
    try:
        with draft.open("w", encoding="utf-8") as file:
            json.dump(identity, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise DqliteError(f"the member's file {path} cannot be written: {error}") from None


def _require_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse the folder of another member.

    Raises:
        FailedPreconditionError: it is one's.
    """
    if {**found, "started": False} != wanted:
        raise FailedPreconditionError(
            f"the folder {folder} is that of member {found['member_id']} at {found['address']}",
            next_step="open it as that member, or give this one a folder of its own",
        )


def _has_log(folder: Path) -> bool:
    """Whether Raft has kept anything here: a term, a vote, or entries."""
    return any((folder / _LOG).glob("metadata*"))


def _require_log(folder: Path, identity: dict[str, Any]) -> None:
    """A member that had a log and lost it may have voted and acknowledged; it must not return.

    Raises:
        FailedPreconditionError: it has.
    """
    if identity["started"] and not _has_log(folder):
        raise FailedPreconditionError(
            f"member {identity['member_id']} has lost its log in {folder / _LOG}",
            next_step="remove it from the cluster, empty its folder, and add it under a new id",
        )
