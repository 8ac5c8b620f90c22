"""Makes the certificates of a cluster and reads what is in them.

Decides what a certificate says and how long it holds. The authority is made when a cluster is
bootstrapped and travels to every member that joins, so that any of them can accept the next one.
Only members of a cluster import this module: a node on its own needs no certificate.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tidegate.cluster.certificates import Pair, Succession
from tidegate.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable

AUTHORITY_DAYS: Final = 7300
MEMBER_DAYS: Final = 3650
SKEW: Final = timedelta(hours=1)
"""Certificates begin this long before they are made: clocks of machines differ."""
_RECOVERED: Final = "tidegate recovery "
"""How the name in a proof of succession begins; no member's name has a space."""


def make_authority(cluster: str, now: datetime) -> Pair:
    """The authority of a new cluster; ``cluster`` is its UUID."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"tidegate cluster {cluster}")
    certificate = (
        _builder(name, name, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Pair(_pem(certificate), _key_pem(key))


def make_request(member: str) -> Pair:
    """A signing request for a member's name, in place of the certificate, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder(_name(member)).sign(key, hashes.SHA256())
    return Pair(request.public_bytes(serialization.Encoding.PEM), _key_pem(key))


def sign(authority: Pair, request: bytes, member: str, now: datetime) -> bytes:
    """The member's certificate, PEM, for the key in its request.

    Args:
        authority: the cluster's.
        request: PEM, as :func:`make_request` makes it.
        member: the name the certificate is for; the request must ask for the same.
        now: the beginning of its validity.

    Raises:
        InvalidArgumentError: the request is malformed, not signed by its key, or for another name.
    """
    try:
        asked = x509.load_pem_x509_csr(request)
        of_a_curve = isinstance(asked.public_key(), ec.EllipticCurvePublicKey)
        valid = of_a_curve and asked.is_signature_valid and asked.subject == _name(member)
    except ValueError:
        valid = False
    if not valid:
        raise InvalidArgumentError(
            f"the signing request of member {member} is not one for that name",
            next_step="join again with `tidegate cluster join`",
        )
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    key = serialization.load_pem_private_key(authority.key, password=None)
    asked_key, issuer_key = asked.public_key(), issuer.public_key()
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(issuer_key, ec.EllipticCurvePublicKey)
    assert isinstance(asked_key, ec.EllipticCurvePublicKey)
    certificate = (
        _builder(asked.subject, issuer.subject, asked_key, now, MEMBER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    return _pem(certificate)


def make_succession(authority: Pair, name: str, generation: int, now: datetime) -> bytes:
    """The proof, PEM, that a cluster goes on under another authority since it was recovered.

    A certificate that the old authority signs and whose key nobody keeps: it proves nothing but
    that. A member of the recovered cluster shows it in every handshake, so that a member that was
    given up, and trusts the old authority only, learns why it is refused.

    Args:
        authority: the old one.
        name: of the member that was recovered.
        generation: of the recovered cluster.
        now: the beginning of its validity.
    """
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    key = serialization.load_pem_private_key(authority.key, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, f"{_RECOVERED}{generation}"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, name),
        ]
    )
    made = _builder(
        subject,
        issuer.subject,
        ec.generate_private_key(ec.SECP256R1()).public_key(),
        now,
        AUTHORITY_DAYS,
    ).sign(key, hashes.SHA256())
    return _pem(made)


def succeeded(chain: Iterable[bytes], authority: bytes) -> Succession | None:
    """Whether what a peer shows proves that it goes on in place of this authority's cluster.

    Args:
        chain: the peer's certificates, DER, not verified.
        authority: PEM, the one that is trusted.
    """
    trusted = x509.load_pem_x509_certificate(authority)
    for raw in chain:
        found = x509.load_der_x509_certificate(raw)
        try:
            found.verify_directly_issued_by(trusted)
        except (ValueError, TypeError, InvalidSignature):
            continue
        common = str(found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        names = found.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        generation = common.removeprefix(_RECOVERED)
        if common.startswith(_RECOVERED) and generation.isdigit() and names:
            return Succession(str(names[0].value), int(generation))
    return None


def make_member(authority: Pair, member: str, now: datetime) -> Pair:
    """A member's own pair, when the authority is at hand."""
    request = make_request(member)
    return Pair(sign(authority, request.certificate, member, now), request.key)


def common_name(certificate: bytes) -> str:
    """The name in a certificate, DER."""
    found = x509.load_der_x509_certificate(certificate).subject
    (value,) = found.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(value.value)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
