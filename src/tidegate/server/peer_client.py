"""How a member asks another one, and how a node that is to join finds out whom it speaks to.

Decides what is trusted: members trust the cluster's authority; a joining node trusts the authority
whose fingerprint its token carries, which it takes from the chain that the member presents, before
it says anything.
"""

from __future__ import annotations

import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from tidegate.cluster.certificates import fingerprint, member_context
from tidegate.errors import JoinTokenError, SupersededError, UnreachableNodeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tidegate.client.transport import Transport
    from tidegate.cluster.join_tokens import JoinToken

DIAL_S: Final = 3.0
ANSWER_S: Final = 10.0
PROBES: Final = 16
"""How many members are looked at at once."""

type Json = dict[str, Any]


class PeerClient:
    """Calls other members; safe for several threads.

    Args:
        folder: of this member's certificate and key, and of the authority.
    """

    def __init__(self, folder: Path) -> None:
        self._context = member_context(ssl.Purpose.SERVER_AUTH, folder)
        self._authority = (folder / "ca.crt").read_bytes()

    def call(
        self,
        address: str,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        timeout_s: float = ANSWER_S,
    ) -> Json:
        """One request to the member at ``address`` (HOST:PORT).

        Raises:
            SupersededError: the cluster goes on there under another authority, without this member.
            UnreachableNodeError: there was no answer.
            TidegateError: the member's refusal, in its own class.
        """
        try:
            with _transport(address, self._context) as transport:
                return transport.call(method, path, body, timeout_s=timeout_s)
        except UnreachableNodeError as error:
            if "is not trusted" in error.message:
                check_not_superseded([address], self._authority)
            raise


def _transport(address: str, context: ssl.SSLContext) -> Transport:
    from tidegate.client.transport import Transport  # noqa: PLC0415 - only members call members

    return Transport(f"https://{address}", verify=context)


def check_not_superseded(addresses: Sequence[str], authority: bytes) -> None:
    """Look whether the cluster goes on at one of these addresses without this member.

    All are looked at at once, for :data:`DIAL_S` at most; one that does not answer says nothing.

    Args:
        addresses: HOST:PORT of members.
        authority: PEM, the one that this member trusts.

    Raises:
        SupersededError: it does.
    """
    if not addresses:
        return
    from tidegate.cluster.issuing import succeeded  # noqa: PLC0415 - a node on its own needs none

    with ThreadPoolExecutor(min(len(addresses), PROBES), thread_name_prefix="probe") as pool:
        chains = pool.map(_chain_or_nothing, addresses)
        for address, chain in zip(addresses, chains, strict=True):
            found = succeeded(chain, authority)
            if found is not None:
                raise SupersededError(
                    f"the cluster was recovered on member {found.name} at {address}, as generation"
                    f" {found.generation}: this member was given up",
                    next_step="remove this node's state directory, then join the cluster as a"
                    " fresh node: tidegate cluster join",
                    generation=found.generation,
                )


def _chain_or_nothing(address: str) -> list[bytes]:
    try:
        return _chain_at(address)
    except (OSError, ValueError):
        return []


def _chain_at(address: str) -> list[bytes]:
    """What the member at ``address`` presents, DER; not verified, and nothing is said to it.

    Raises:
        OSError: nothing answers there, or nothing that speaks TLS.
        ValueError: the address is none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host.strip("[]"), int(port)), timeout=DIAL_S) as raw,
        context.wrap_socket(raw) as secured,
    ):
        return secured.get_unverified_chain()


def authority_at(address: str, expected: str) -> bytes:
    """The authority's certificate that the member at ``address`` shows, PEM.

    Args:
        address: HOST:PORT.
        expected: fingerprint that it must have.

    Raises:
        UnreachableNodeError: nothing answers there, or nothing that speaks TLS.
        JoinTokenError: a member of another cluster answers.
    """
    try:
        chain = _chain_at(address)
    except (OSError, ValueError) as error:
        raise UnreachableNodeError(
            f"no member answers at {address}: {error}",
            next_step="check that the member runs and that this machine can reach the address",
        ) from None
    for certificate in chain:
        if fingerprint(certificate) == expected:
            return ssl.DER_cert_to_PEM_cert(certificate).encode()
    raise JoinTokenError(
        f"the node at {address} is no member of the cluster that made the token",
        next_step="make a token on the cluster you mean: tidegate cluster token create NAME",
    )


def ask_to_join(token: JoinToken, body: Json) -> tuple[str, Json]:
    """Ask the members that a token names, one after the other, to let this node in.

    Returns:
        The address of the member that did, and its answer.

    Raises:
        UnreachableNodeError: none of them answers.
        TidegateError: the refusal of the first that answers.
    """
    for address in token.addresses:
        try:
            authority = authority_at(address, token.authority)
        except UnreachableNodeError as error:
            last = error
            continue
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # members are known by their authority, not by their host
        context.load_verify_locations(cadata=authority.decode())
        with _transport(address, context) as transport:
            told = {**body, "name": token.name, "secret": token.secret}
            return address, transport.call("POST", "/peer/join", told, timeout_s=60.0)
    raise last
