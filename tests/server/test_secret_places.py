"""A reference of a secret names what the node's configuration allows, and nothing else."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from fix_node import NodeProcess
from free_ports import free_port
from tidegate.errors import InvalidArgumentError, SecretError, TidegateError
from tidegate.secret import SECRET_MAX_BYTES, Places, resolve_secret

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tidegate.client import Client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "secrets"
    made.mkdir()
    return made


@pytest.fixture
def places(folder: Path) -> Places:
    return Places.parse(str(folder), "SHOP_*,ONE")


def test_a_file_below_an_allowed_folder_is_read(folder: Path, places: Places) -> None:
    (folder / "a").write_text("sesame\n")
    assert resolve_secret(f"file:{folder}/a", places) == "sesame"
    (folder / "deeper").mkdir()
    (folder / "deeper" / "link").symlink_to(folder / "a")
    assert resolve_secret(f"file:{folder}/deeper/link", places) == "sesame"


def test_a_file_elsewhere_is_refused_the_same_way_whether_it_is_there_or_not(
    tmp_path: Path, folder: Path, places: Places
) -> None:
    """Situation 27: `secret=file:/etc/shadow`, and no oracle for which files exist."""
    (tmp_path / "there").write_text("x")
    (folder / "out").symlink_to(tmp_path / "there")
    (folder / "dangling").symlink_to(tmp_path / "missing")
    (tmp_path / "secrets2").mkdir()
    (tmp_path / "secrets2" / "a").write_text("x")
    said = set()
    for path in (
        "/etc/shadow",
        "/proc/self/environ",
        "/no/such/file",
        f"{tmp_path}/there",
        f"{tmp_path}/missing",
        f"{folder}/../there",
        f"{folder}/out",
        f"{folder}/dangling",
        f"{tmp_path}/secrets2/a",
        "relative",
    ):
        with pytest.raises(SecretError) as caught:
            resolve_secret(f"file:{path}", places)
        said.add(str(caught.value).replace(path, "PATH"))
    assert len(said) == 1


def test_a_link_that_is_turned_outward_later_is_refused_when_it_is_read(
    tmp_path: Path, folder: Path, places: Places
) -> None:
    """Situation 27: what counts is where the link leads at the moment of reading."""
    (folder / "a").write_text("x")
    (folder / "link").symlink_to(folder / "a")
    places.check(f"file:{folder}/link")
    (folder / "link").unlink()
    (tmp_path / "out").write_text("y")
    (folder / "link").symlink_to(tmp_path / "out")
    with pytest.raises(SecretError):
        resolve_secret(f"file:{folder}/link", places)


def test_what_is_no_small_text_file_is_refused(folder: Path, places: Places) -> None:
    """Situation 29: `secret=file:/bin/ls`, a folder, a pipe nobody writes to, a huge file."""
    (folder / "binary").write_bytes(b"\x7fELF\xff")
    (folder / "nul").write_bytes(b"a\0b")
    (folder / "large").write_bytes(b"x" * (SECRET_MAX_BYTES + 1))
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    for name in ("binary", "nul", "large", "folder", "pipe", "missing", "no\0such"):
        with pytest.raises(SecretError) as caught:
            resolve_secret(f"file:{folder}/{name}", places)
        assert "ELF" not in str(caught.value)
    assert resolve_secret(None, places) is None


def test_only_the_allowed_variables_are_read(
    monkeypatch: pytest.MonkeyPatch, places: Places
) -> None:
    """Situation 27: variables, too."""
    for name in ("SHOP_A", "ONE", "ONES", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"):
        monkeypatch.setenv(name, "sesame")
    assert resolve_secret("env:SHOP_A", places) == "sesame"
    assert resolve_secret("env:ONE", places) == "sesame"
    for name in ("ONES", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "NOT_SET", "TIDEGATE_SECRET_X"):
        with pytest.raises(SecretError, match="not one this node may use"):
            resolve_secret(f"env:{name}", places)
    with pytest.raises(SecretError):
        resolve_secret("env:TIDEGATE_SECRET_FOLDERS", Places())


def test_a_reference_of_the_operators_own_is_not_bounded(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    assert resolve_secret(f"file:{tmp_path}/a") == "x"


@pytest.mark.parametrize(
    "reference", ["plain", "file:", "env:", "env:A=B", "env:a b", "file:/a\nb", "FILE:/x", ":x"]
)
def test_what_is_no_reference_is_refused(places: Places, reference: str) -> None:
    with pytest.raises(SecretError, match="must be a reference"):
        resolve_secret(reference, places)


@pytest.mark.parametrize("given", ["secrets", "/a:b", "./x"])
def test_folders_are_absolute(given: str) -> None:
    with pytest.raises(ValueError, match="absolute"):
        Places.parse(given, None)


# -- a node


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """A node with the default: `secrets` in its state directory, and TIDEGATE_SECRET_*."""
    made = NodeProcess(
        tmp_path_factory.mktemp("strict") / "state",
        {"TIDEGATE_SECRET_VARIABLES": "TIDEGATE_SECRET_*"},
    )
    environment = dict(os.environ)
    os.environ.pop("TIDEGATE_SECRET_FOLDERS")
    try:
        made.start()
    finally:
        os.environ.update(environment)
    with made.client() as client:
        client.cell.create("zone1")
        client.keyspace.create("shop", shards=["0"])
    yield made
    made.stop()


def put(client: Client, secret: str, **more: Any) -> Any:
    conninfo = more.pop("conninfo", "host=127.0.0.1 port=1 dbname=x user=y")
    return client.tablet.create(
        "zone1-1", keyspace="shop", shard="0", conninfo=conninfo, secret=secret, **more
    )


@pytest.mark.parametrize("options", [{"dry_run": True}, {"check": False}, {}])
@pytest.mark.parametrize(
    "secret", ["file:/etc/shadow", "file:/etc/hostname", "env:HOME", "file:/bin/ls"]
)
def test_an_api_token_reads_no_file_of_the_node(
    strict: NodeProcess, secret: str, options: dict[str, bool]
) -> None:
    """Situation 27: by no tablet, checked or not, made or only rehearsed."""
    with strict.client() as client:
        with pytest.raises(SecretError, match=r"not (below|one)"):
            put(client, secret, **options)
        assert client.tablet.list()["items"] == []


def test_a_tablet_is_not_changed_to_a_secret_elsewhere(strict: NodeProcess) -> None:
    """Situation 27: nor by a change."""
    with strict.client() as client:
        put(client, f"file:{strict.state_dir}/secrets/later", check=False)
        try:
            for check in (False, True):
                with pytest.raises(SecretError, match="not below"):
                    client.tablet.update(
                        "zone1-1", secret="file:/etc/hostname", check=check, dry_run=check
                    )
            for conninfo in (
                "postgresql://u@h/d?p%61ssword=pw",
                "host=h oauth_client_secret=pw",
                "postgresql://u:pw/with/slash@host",
            ):
                with pytest.raises(InvalidArgumentError) as caught:
                    client.tablet.update("zone1-1", conninfo=conninfo, check=False)
                assert "pw" not in str(caught.value.to_json())
        finally:
            client.tablet.delete("zone1-1")


def test_a_tablet_tells_no_port_from_another(strict: NodeProcess) -> None:
    """Situation 27: what listens at a port, and whether anything does, reads the same."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]

        def greet() -> None:
            for _ in range(4):  # libpq asks again without TLS
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"SSH-2.0-OpenSSH_9.2 secret-banner\r\n")

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        said = []
        with strict.client() as client:
            for number in (port, free_port()):
                with pytest.raises(TidegateError) as caught:
                    client.tablet.create(
                        "zone1-1",
                        keyspace="shop",
                        shard="0",
                        conninfo=f"host=127.0.0.1 port={number} dbname=x user=y connect_timeout=3",
                        dry_run=True,
                    )
                said.append(str(caught.value.to_json()).replace(f"{number}", "PORT"))
        listener.close()
        thread.join(5)
    assert said[0] == said[1]
    assert "banner" not in said[0]
    assert "refused" not in said[0]
    assert "Connection refused" in strict.log.read_text(), "the operator's log has the details"
