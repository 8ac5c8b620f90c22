from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2

from fix_node import until

if TYPE_CHECKING:
    from fix_node import Shop


def metrics(shop: Shop) -> dict[str, float]:
    text = httpx2.get(f"{shop.node.url}/metrics", timeout=30, trust_env=False).text
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def test_metrics_show_workflows_by_their_names(shop: Shop) -> None:
    """Situation 25: they are read when somebody asks; progress, lag, proof, build and process."""
    with shop.node.client() as client:
        client.movetables.create("m1", "customer", source_keyspace="commerce", all_tables=True)
        running = 'tidegate_workflow_state{state="running",workflow="customer.m1"}'
        until(lambda: client.workflow.status("m1", "customer")["state"] == "running")
        uuid = client.vdiff.create("m1", "customer")["uuid"]
        client.vdiff.wait("m1", "customer", uuid, timeout_s=60)
        age = 'tidegate_workflow_vdiff_age_seconds{workflow="customer.m1"}'
        found = until(lambda: seen if age in (seen := metrics(shop)) else None, 30)
        assert found[running] == 1.0
        assert found['tidegate_workflow_copied_ratio{workflow="customer.m1"}'] == 1.0
        assert 0 <= found['tidegate_workflow_lag_seconds{workflow="customer.m1"}'] < 5
        assert 0 <= found[age] < 60
        assert any(name.startswith("tidegate_build_info{") for name in found)
        assert found["process_cpu_seconds_total"] > 0
        client.workflow.cancel("m1", "customer")
    until(lambda: running not in metrics(shop), 30)
