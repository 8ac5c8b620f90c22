"""What a connection string may say, and that no password goes out in clear text."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import pq

from fix_thief import Thief
from tidegate.conninfo import ALLOWED, guarded, parsed
from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.schema_dump import SchemaDumpError, dump_items
from tidegate.errors import (
    AuthenticationError,
    FailedPreconditionError,
    InvalidArgumentError,
    TidegateError,
)
from tidegate.topology.connections import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.local import LocalServer

CLOTHES = [
    "host=h password=xyzzy",
    "host=h password = 'xyzzy'",
    "host=h PASSWORD=xyzzy",
    "postgresql://u:xyzzy@h/d",
    "postgres://u:xyzzy@h/d",
    "postgresql://u@h/d?password=xyzzy",
    "postgresql://u@h/d?p%61ssword=xyzzy",
    "postgresql://u@h/d?%70%61%73%73%77%6f%72%64=xyzzy",
    "postgresql://u:xyzzy/with/slash@h",
    "postgresql://u:1/xyzzy@h",
    "postgresql://u:xy@zzy@h/d",
    "postgresql://:xyzzy@h/d",
    "host=h oauth_client_secret=xyzzy",
    "host=h oauth_issuer=https://xyzzy oauth_client_id=x",
    "host=h sslpassword=xyzzy",
    "host=h scram_client_key=xyzzy",
    "host=h passfile=/etc/xyzzy",
    "service=xyzzy",
    "host=h servicefile=/etc/xyzzy",
    "host=h sslkeylogfile=/tmp/xyzzy",
    "host=h sslkey=engine:xyzzy",
    "host=h options='-c shop.jwt_secret=xyzzy'",
    "host=h options='--shop.jwt=xyzzy'",
    "host=h options=xyzzy",
    "host=h dbname='password=xyzzy'",
    "host=h dbname=postgresql://u:xyzzy@h/d",
    "host=h replication=xyzzy",
    "host=h\0password=xyzzy",
    "host=h dbname=\ud800xyzzy",
    "host 'xyzzy",
    "host=h port=xyzzy",
    "host=u:xyzzy@h",
    "host=h no_such_key=xyzzy",
]


@pytest.mark.parametrize("conninfo", CLOTHES)
def test_a_password_is_refused_in_any_clothes_and_not_repeated(conninfo: str) -> None:
    """Situation 28: read by libpq's own parser; what is not on the list of keys is refused."""
    with pytest.raises(InvalidArgumentError) as caught:
        parsed(conninfo)
    assert "xyzzy" not in str(caught.value.to_json())
    assert caught.value.next_step


@pytest.mark.parametrize(
    "conninfo",
    [
        "",
        "host=db1,db2 port=5432,5433 user=tidegate sslmode=verify-full sslrootcert=system",
        "postgresql://tidegate@db1:5432,db2/shop?target_session_attrs=read-write",
        "host=/var/run/postgresql dbname='my shop' user='tidegate@tenant'",
        "host=@abstract dbname=shop",
        "hostaddr=::1 dbname=shop",
        "host=h options='-c search_path=a,b -c work_mem=64MB'",
        r"host=h options='-c search_path=a,\\ b'",
        "host=h sslcert=/etc/a.crt sslkey=/etc/a.key connect_timeout=3 keepalives_idle=5",
    ],
)
def test_what_a_connection_needs_is_allowed(conninfo: str) -> None:
    assert parsed(conninfo) is not None


@given(st.sampled_from([o.keyword.decode() for o in pq.Conninfo.get_defaults()]))
def test_every_key_of_libpq_that_is_not_listed_is_refused(key: str) -> None:
    """Situation 28: also the keys that the next libpq brings."""
    value = {"port": "1"}.get(key, "/x")
    if key in ALLOWED - {"options", "dbname"}:
        parsed(psycopg.conninfo.make_conninfo("", **{key: value}))
    elif key not in ALLOWED:
        with pytest.raises(InvalidArgumentError, match=f"must not say {key}"):
            parsed(f"{key}=x")


def test_no_listed_key_is_marked_as_a_secret_by_libpq() -> None:
    """Situation 28: libpq marks what a password dialog must hide."""
    hidden = {o.keyword.decode() for o in pq.Conninfo.get_defaults() if b"*" in (o.dispchar or b"")}
    assert {"password", "sslpassword"} <= hidden
    assert not hidden & ALLOWED


@pytest.mark.parametrize(
    ("conninfo", "added"),
    [
        ("host=h", "!password"),
        ("host=h sslmode=require", "!password"),
        ("host=h sslmode=prefer require_auth=!md5", "!md5,!password"),
        ("host=h require_auth=!password,!md5", "!password,!md5"),
        ("host=h require_auth=scram-sha-256", None),
        ("host=h sslmode=verify-full", None),
        ("host=h sslmode=verify-ca require_auth=password", None),
    ],
)
def test_clear_text_needs_a_server_that_has_proved_itself(conninfo: str, added: str | None) -> None:
    """Situation 27: in every session of ours."""
    assert guarded(parsed(conninfo)).get("require_auth") == added


def test_a_string_that_asks_for_clear_text_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="clear text"):
        guarded(parsed("host=h require_auth=scram-sha-256,password"))


def test_an_old_libpq_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Situation 27: one that would send the password all the same."""
    monkeypatch.setattr(pq, "version", lambda: 150004)
    with pytest.raises(FailedPreconditionError, match="libpq 15"):
        guarded(parsed("host=h"))
    assert guarded(parsed("host=h sslmode=verify-full")) == {}


@pytest.fixture
def thief() -> Iterator[Thief]:
    made = Thief()
    with closing(made):
        yield made


@pytest.mark.parametrize("replication", [False, True])
def test_a_server_that_asks_for_clear_text_gets_none(
    thief: Thief, monkeypatch: pytest.MonkeyPatch, replication: bool
) -> None:
    """Situation 27: a conninfo at a server that asks for the password; walsenders, too."""
    monkeypatch.setenv("TIDEGATE_SECRET_TEST", "xyzzy-17")
    endpoint = Endpoint(
        f"host=127.0.0.1 port={thief.port} dbname=x user=y", "env:TIDEGATE_SECRET_TEST"
    )
    with pytest.raises(AuthenticationError, match="clear text"):
        connect(endpoint, purpose="test", replication=replication)
    assert b"user\0y" in thief.heard
    assert b"xyzzy" not in thief.heard


def test_pg_dump_sends_none_either(thief: Thief, monkeypatch: pytest.MonkeyPatch) -> None:
    """Situation 27: programs of ours are sessions of ours."""
    monkeypatch.setenv("TIDEGATE_SECRET_TEST", "xyzzy-17")
    endpoint = Endpoint(
        f"host=127.0.0.1 port={thief.port} dbname=x user=y", "env:TIDEGATE_SECRET_TEST"
    )
    with pytest.raises(SchemaDumpError):
        dump_items(endpoint, major=18, snapshot="00000003-00000001-1", arguments=[])
    assert b"user\0y" in thief.heard
    assert b"xyzzy" not in thief.heard


def test_what_was_stored_before_is_refused_at_the_connect(source_server: LocalServer) -> None:
    """Situation 28: a string of an older version is not used, and not shown."""
    endpoint = Endpoint(f"{source_server.conninfo()} oauth_client_secret=xyzzy")
    with pytest.raises(TidegateError) as caught:
        connect(endpoint, purpose="test")
    assert "xyzzy" not in str(caught.value.to_json())
