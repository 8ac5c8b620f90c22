"""TLS in front of a server that was built without it: ends it here and forwards what was inside."""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import ssl
import struct
import threading
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tidegate.engines.postgres.local import LocalServer

SSL_REQUEST = struct.pack("!II", 8, 80877103)


def certificate(folder: Path) -> Path:
    """A file with a key and a certificate signed by it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


class TlsFront:
    """Listens on a port of its own, speaks TLS there, and forwards to a server without it."""

    def __init__(self, port: int, pem: Path) -> None:
        self._to = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pem)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Accept nobody any more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def conninfo(self, conninfo: str) -> str:
        """The same database through TLS."""
        return conninfo.replace(f"port={self._to}", f"port={self.port}") + " sslmode=require"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), plain:
            assert plain.recv(8, socket.MSG_WAITALL) == SSL_REQUEST
            plain.sendall(b"S")
            inside, outside = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = self._context.wrap_bio(inside, outside, server_side=True)
            with socket.create_connection(("127.0.0.1", self._to)) as server:
                _relay(plain, server, tls, inside, outside)


def _relay(
    plain: socket.socket,
    server: socket.socket,
    tls: ssl.SSLObject,
    inside: ssl.MemoryBIO,
    outside: ssl.MemoryBIO,
) -> None:
    """Pass both directions on; the lock guards the TLS object, never a wait for the network."""
    lock = threading.Lock()

    def answers() -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                with lock:
                    tls.write(data)
                    out = outside.read()
                plain.sendall(out)
        with contextlib.suppress(OSError):
            plain.shutdown(socket.SHUT_RDWR)

    back = threading.Thread(target=answers, daemon=True)
    shaken = False
    while data := plain.recv(65536):
        inside.write(data)
        with lock:
            clear = b""
            with contextlib.suppress(ssl.SSLWantReadError):
                if not shaken:
                    tls.do_handshake()
                    shaken = True
                while piece := tls.read(65536):
                    clear += piece
            out = outside.read()
        if out:
            plain.sendall(out)
        if shaken and back.ident is None:
            back.start()
        server.sendall(clear)
    with contextlib.suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def make_tls(tmp_path: Path) -> Iterator[Callable[[LocalServer], TlsFront]]:
    made: list[TlsFront] = []

    def make(server: LocalServer) -> TlsFront:
        made.append(TlsFront(server.port, certificate(tmp_path)))
        return made[-1]

    yield make
    for front in made:
        front.close()
