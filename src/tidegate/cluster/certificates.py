"""The certificates by which members know each other: one authority a cluster, one pair a member.

Decides what a member demands of its peer and what it shows. How certificates are made and read is
in :mod:`.issuing`, which needs a library that a node on its own never loads. Nothing here opens a
socket or reads a clock.

A peer is known by its chain, not by its host name: members move between addresses. Its name is the
certificate's common name; that an evicted one is refused all the same is decided where connections
are accepted, by the member rows.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, both PEM; the key never appears in ``repr``."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"Pair({fingerprint(self.certificate)[:12]})"


@dataclass(frozen=True, slots=True)
class Succession:
    """A cluster goes on under another authority: recovered on a member, as a generation."""

    name: str
    generation: int


def presented(member: bytes, authority: bytes, succession: bytes = b"") -> bytes:
    """What a member shows in a handshake: its certificate, the authority's, and the proofs."""
    return member.rstrip() + b"\n" + authority.rstrip() + b"\n" + succession


def succession_in(chain: bytes) -> bytes:
    """The proofs in what a member shows, PEM; empty for a cluster that was never recovered."""
    return b"".join(each + b"\n" for each in _PEM.findall(chain)[2:])


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of a certificate's DER form, in hex; takes PEM or DER."""
    found = _PEM.search(certificate)
    der = ssl.PEM_cert_to_DER_cert(found[0].decode()) if found else certificate
    return hashlib.sha256(der).hexdigest()


def member_context(side: ssl.Purpose, folder: Path, *, anonymous: bool = False) -> ssl.SSLContext:
    """How a member speaks to its peers, from the files that :mod:`..identity` keeps.

    Args:
        side: ``SERVER_AUTH`` to call a peer, ``CLIENT_AUTH`` to be called.
        folder: with ``ca.crt``, ``member.crt`` and ``member.key``. A member presents the
            authority beside its own certificate, so that a joining node can recognise it.
        anonymous: let peers without a certificate in; only for who must tell the two apart.
    """
    protocol = (
        ssl.PROTOCOL_TLS_CLIENT if side is ssl.Purpose.SERVER_AUTH else ssl.PROTOCOL_TLS_SERVER
    )
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_OPTIONAL if anonymous else ssl.CERT_REQUIRED
    context.load_verify_locations(folder / "ca.crt")
    context.load_cert_chain(folder / "member.crt", folder / "member.key")
    return context
