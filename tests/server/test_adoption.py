"""A node that dies, a worker that dies, a server that restarts: the stream goes on."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from fix_node import until
from tidegate.server import processes

if TYPE_CHECKING:
    from fix_node import Shop
    from tidegate.client import Client

pytestmark = [pytest.mark.servers, pytest.mark.slow]


def worker(shop: Shop) -> dict[str, int]:
    """The one worker: pid and epoch, once it runs."""
    with shop.node.client() as client:
        found = until(lambda: [s for s in client.node.spans()["items"] if s["pid"] is not None])
    assert len(found) == 1
    return {"pid": found[0]["pid"], "epoch": found[0]["epoch"]}


def running(shop: Shop) -> None:
    with shop.node.client() as client:
        until(lambda: client.workflow.status("move", "customer")["phase"] == "running")


def in_step(shop: Shop, mark: str) -> None:
    """A row written at the source arrives at the target."""
    with shop.connect("source") as connection:
        connection.execute("INSERT INTO corder (customer, note) VALUES (1, %s)", [mark])
    with shop.connect("target") as connection:
        until(
            lambda: (
                connection.execute("SELECT count(*) FROM corder WHERE note = %s", [mark]).fetchone()
                == (1,)
            )
        )


def same_rows(shop: Shop) -> None:
    found = []
    for side in ("source", "target"):
        with shop.connect(side) as connection:
            found.append(
                [
                    connection.execute(
                        f"SELECT count(*), sum(hashtext(t::text)) FROM {table} AS t"
                    ).fetchone()
                    for table in ("customer", "corder")
                ]
            )
    assert found[0] == found[1]


def said_alike(client: Client) -> str:
    """The state that list, show and status agree on, with the same next step."""
    (listed,) = client.workflow.list()["items"]
    found = [
        listed,
        client.workflow.show("move", "customer"),
        client.workflow.status("move", "customer"),
    ]
    ((state, step, age),) = {(f["state"], f["next_step"], f["vdiff_age_s"]) for f in found}
    assert "-w move -t customer" in step
    assert age is None
    assert listed["unreachable"] == {}
    assert [each["waits"] for each in found] == [[], [], []]
    return str(state)


def test_a_stream_survives_node_worker_and_server(shop: Shop) -> None:
    with shop.node.client() as client:
        client.movetables.create("move", "customer", source_keyspace="commerce", all_tables=True)
    running(shop)
    in_step(shop, "first")
    first = worker(shop)

    shop.node.kill()
    assert processes.start_ticks(first["pid"]) is not None, "a worker outlives its node"
    in_step(shop, "while no node runs")
    shop.node.start()
    assert worker(shop) == first, "the new node adopts it and starts no other"
    in_step(shop, "after adoption")

    os.kill(first["pid"], signal.SIGKILL)
    until(lambda: processes.start_ticks(first["pid"]) is None)
    in_step(shop, "after the worker's death")
    second = worker(shop)
    assert second["pid"] != first["pid"]
    assert second["epoch"] > first["epoch"]

    shop.target.restart()
    in_step(shop, "after a restart of the target")
    shop.source.restart()
    in_step(shop, "after a restart of the source")

    third = worker(shop)
    assert shop.node.stop() == 0
    assert processes.start_ticks(third["pid"]) is None, "an orderly stop ends the workers"
    shop.node.start()
    in_step(shop, "after an orderly restart of the node")
    same_rows(shop)

    with shop.node.client() as client:
        shown = client.workflow.show("move", "customer")
        assert shown["workflow"]["version"] >= 1
        assert said_alike(client) == "running"
        client.workflow.stop("move", "customer")
        assert said_alike(client) == "stopped"
        client.workflow.cancel("move", "customer")
        assert client.workflow.list()["items"] == []
        until(lambda: not client.node.spans()["items"])
    assert not any(shop.traces().values())
    assert shop.tables("target") == []
