"""The HTTP API over TLS: a private authority is trusted where it is named, and nowhere else."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fix_node import NodeProcess
from tidegate.client import Client
from tidegate.errors import ExitStatus, UnreachableNodeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey


def certificate(
    subject: str,
    key: EllipticCurvePrivateKey,
    issuer: str,
    signer: EllipticCurvePrivateKey,
    *,
    authority: bool,
) -> bytes:
    now = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=not authority,
                key_cert_sign=authority,
                crl_sign=authority,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if not authority:
        names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return built.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class SecureNode(NodeProcess):
    """A node behind a certificate of an authority that only ``ca`` names."""

    def client(self) -> Client:
        return Client(self.url, self.token, verify=str(self.state_dir.parent / "ca.pem"))


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[SecureNode]:
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "node", "other")}
    for name in ("ca", "other"):
        pem = certificate(name, keys[name], name, keys[name], authority=True)
        (tmp_path / f"{name}.pem").write_bytes(pem)
    (tmp_path / "node.pem").write_bytes(
        certificate("node", keys["node"], "ca", keys["ca"], authority=False)
    )
    (tmp_path / "node.key").write_bytes(
        keys["node"].private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    flags = ("--tls-cert", str(tmp_path / "node.pem"), "--tls-key", str(tmp_path / "node.key"))
    made = SecureNode(tmp_path / "state", flags=flags)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def tidegate(node: SecureNode, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line with nobody's settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TIDEGATE_")}
    return subprocess.run(
        [sys.executable, "-m", "tidegate.cli.main", "keyspace", "list", "-o", "json"],
        env={
            **kept,
            "XDG_CONFIG_HOME": str(node.state_dir.parent / "config"),
            "TIDEGATE_URL": node.url,
            "TIDEGATE_TOKEN": node.token,
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_command_line_trusts_the_named_authority_and_no_other(secure: SecureNode) -> None:
    assert secure.url.startswith("https://127.0.0.1:")
    folder = secure.state_dir.parent
    done = tidegate(secure, TIDEGATE_CA_FILE=str(folder / "ca.pem"))
    assert (done.returncode, done.stderr) == (0, "")
    for environment in ({}, {"TIDEGATE_CA_FILE": str(folder / "other.pem")}):
        refused = tidegate(secure, **environment)
        assert refused.returncode == ExitStatus.ERROR
        assert refused.stdout == ""
        assert "TG-API-002" in refused.stderr
        assert "certificate" in refused.stderr
        assert "not trusted" in refused.stderr
        assert "TIDEGATE_CA_FILE" in refused.stderr


def test_a_missing_authority_file_is_named(secure: SecureNode) -> None:
    done = tidegate(secure, TIDEGATE_CA_FILE="/nowhere/ca.pem")
    assert done.returncode == ExitStatus.USAGE
    assert "/nowhere/ca.pem" in done.stderr
    assert "Traceback" not in done.stderr


def test_plain_http_to_a_tls_port_is_an_answer_that_is_none(secure: SecureNode) -> None:
    with (
        Client(secure.url.replace("https:", "http:"), secure.token) as client,
        pytest.raises(UnreachableNodeError),
    ):
        client.keyspace.list()
