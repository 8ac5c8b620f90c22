"""A request that is sent twice is done once; a repeated key means the same request."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import uuid4

import httpx2
import pytest
from sqlalchemy import text

from fix_proxy import Proxy
from tidegate.client import Client, token_of
from tidegate.cluster import answers, updates
from tidegate.cluster.answers import WORKED_ON, Answer, Answers
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.schema import Schema
from tidegate.errors import AlreadyExistsError, IdempotencyKeyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_node import NodeProcess


@pytest.fixture
def http(node: NodeProcess) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {token_of(node.token)}"}
    with httpx2.Client(base_url=node.url, headers=headers, trust_env=False) as made:
        yield made


def create(http: httpx2.Client, name: str, key: str) -> httpx2.Response:
    return http.post("/v1/keyspaces", json={"name": name}, headers={"Idempotency-Key": key})


def test_a_repeated_request_gets_the_first_answer(http: httpx2.Client) -> None:
    key = str(uuid4())
    first = create(http, "once", key)
    again = create(http, "once", key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["tidegate-api-level"] == first.headers["tidegate-api-level"]
    fresh = create(http, "once", str(uuid4()))
    assert (fresh.status_code, fresh.json()["code"]) == (409, AlreadyExistsError.code)


def test_a_key_belongs_to_one_request(http: httpx2.Client) -> None:
    key = str(uuid4())
    assert create(http, "mine", key).status_code == 201
    for other in (
        create(http, "other", key),
        http.post("/v1/cells", json={"name": "mine"}, headers={"Idempotency-Key": key}),
        http.post(
            "/v1/keyspaces?dry_run=true", json={"name": "mine"}, headers={"Idempotency-Key": key}
        ),
    ):
        assert (other.status_code, other.json()["code"]) == (409, IdempotencyKeyError.code)
    assert http.get("/v1/keyspaces/other").status_code == 404


def test_a_request_that_failed_can_be_sent_again(http: httpx2.Client) -> None:
    key = str(uuid4())
    body = {"names": ["0"]}
    headers = {"Idempotency-Key": key}
    assert http.post("/v1/keyspaces/later/shards", json=body, headers=headers).status_code == 404
    assert create(http, "later", str(uuid4())).status_code == 201
    assert http.post("/v1/keyspaces/later/shards", json=body, headers=headers).status_code == 201


@pytest.mark.parametrize("key", ["short", "x" * 201, "with space"])
def test_a_key_that_is_none_is_refused(http: httpx2.Client, key: str) -> None:
    refused = create(http, "never", key)
    assert (refused.status_code, refused.json()["code"]) == (400, "TG-ARG-001")


def test_the_same_request_at_the_same_time_is_done_once(http: httpx2.Client) -> None:
    key = str(uuid4())
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: create(http, "crowd", key), range(8)))
    assert {answer.status_code for answer in found} == {201}
    assert sum("idempotency-replayed" not in answer.headers for answer in found) == 1


def test_a_create_whose_answer_is_lost_is_sent_again_and_done_once(node: NodeProcess) -> None:
    port = urlsplit(node.url).port
    assert port is not None
    with Proxy(port) as proxy:
        proxy.lose_answers(b"POST /v1/keyspaces", 2)
        with Client(f"http://127.0.0.1:{proxy.port}", node.token) as client:
            assert client.keyspace.create("lost", shards=["0"])["name"] == "lost"
            assert proxy.lost_commits == 2
            with pytest.raises(AlreadyExistsError):
                client.keyspace.create("lost")
    with node.client() as client:
        assert [s["name"] for s in client.shard.list("lost")["items"]] == ["0"]


# ---- what is kept ------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Iterator[ClusterDatabase]:
    with ClusterDatabase.open(f"sqlite:///{tmp_path / 'cluster.db'}") as opened:
        Schema((*updates.UPDATES, *answers.UPDATES)).ensure(opened)
        yield opened


def count(database: ClusterDatabase) -> int:
    with database.read() as connection:
        return int(connection.execute(text("SELECT count(*) FROM request_answer")).scalar_one())


def test_a_request_of_a_dead_process_is_taken_over(database: ClusterDatabase) -> None:
    dead, mine, other = (Answers(database, name) for name in ("dead", "mine", "other"))
    assert dead.begin("key", "request") is None
    assert dead.begin("key", "request") == WORKED_ON
    assert mine.begin("key", "request") is None
    dead.forget("key")
    dead.finish("key", Answer(201, "late"))
    assert mine.begin("key", "request") == WORKED_ON
    mine.finish("key", Answer(201, "{}"))
    assert other.begin("key", "request") == Answer(201, "{}")
    with pytest.raises(IdempotencyKeyError):
        other.begin("key", "another")


def test_expired_answers_are_removed(database: ClusterDatabase) -> None:
    store = Answers(database, "mine")
    assert store.begin("old", "request") is None
    store.finish("old", Answer(201, "{}"))
    with database.transaction() as connection:
        connection.execute(text("UPDATE request_answer SET expires_at_ms = 1"))
    assert store.begin("new", "request") is None
    assert count(database) == 1
    assert store.begin("old", "another") is None


def test_rows_and_bodies_are_bounded(
    database: ClusterDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "ROWS_MAX", 20)
    store = Answers(database, "mine")
    assert store.begin("open", "request") is None
    for number in range(60):
        assert store.begin(f"key{number}", "request") is None
        store.finish(f"key{number}", Answer(201, "{}"))
    assert count(database) <= 20
    assert store.begin("open", "request") == WORKED_ON
    assert store.begin("large", "request") is None
    store.finish("large", Answer(201, "x" * (answers.BODY_MAX_CHARS + 1)))
    assert store.begin("large", "request") is None
