"""The OpenAPI document is true: requests made from it meet no answer that it does not describe."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fix_node import NodeProcess
from tidegate.client import token_of
from tidegate.server.app import create_app
from tidegate.server.description import FAILURES

if TYPE_CHECKING:
    from random import Random

    from schemathesis import Case

DOCUMENT: dict[str, Any] = create_app(None).openapi()
OPERATIONS = sorted(
    (path, method, operation["operationId"])
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
)
#: Of these the node ends, or becomes another one, or the answer is a stream without an end.
LEFT_OUT = {"enable_cluster", "join_cluster", "remove_member", "show_routes"}
EXAMPLES = 12
WORDS = (
    "a",
    "-80",
    "80-",
    "0",
    "zone1",
    "zone1-1",
    "zone1-2",
    "t",
    "w",
    "r",
    "first",
    "last",
    "hash",
    "PRIMARY",
    "host=127.0.0.1 port=1 dbname=x",
    "env:TIDEGATE_SECRET_X",
    "sql:/nowhere",
    "1",
)
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A node of its own with a little of everything, to be asked anything."""
    made = NodeProcess(tmp_path_factory.mktemp("fuzzed") / "state").start()
    with made.client() as client:
        client.cell.create("zone1")
        client.keyspace.create("a", shards=["-80", "80-"])
        client.tablet.create(
            "zone1-1",
            keyspace="a",
            shard="-80",
            conninfo="host=127.0.0.1 port=1 dbname=x user=y",
            check=False,
        )
        client.vschema.apply("a", {"sharded": False, "tables": {"t": {}}})
        client.router.report("r", 0)
    yield made
    assert made.stop() == 0
    assert "bug in a request" not in made.log.read_text()


def test_failures_are_described_and_422_is_not() -> None:
    """Situation 30: 400, 401, 403, 404, 409, 412, 413, 503; as problems; no 422."""
    text = json.dumps(DOCUMENT)
    assert '"422"' not in text
    assert "HTTPValidationError" not in text
    for path, method, name in OPERATIONS:
        operation = DOCUMENT["paths"][path][method]
        if not path.startswith("/v1"):
            assert "security" not in operation
            continue
        assert operation["security"], name
        for status in FAILURES:
            (reference,) = operation["responses"][status].values()
            found = DOCUMENT["components"]["responses"][reference.rpartition("/")[2]]
            assert list(found["content"]) == ["application/problem+json"]
    assert DOCUMENT["components"]["securitySchemes"]["token"]["scheme"] == "bearer"


def test_every_answer_has_a_shape() -> None:
    """Situation 30: no operation answers with just any object."""
    for path, method, name in OPERATIONS:
        responses = DOCUMENT["paths"][path][method]["responses"]
        for status, response in responses.items():
            if status.startswith("2"):
                assert response["content"], name
                for content in response["content"].values():
                    assert content["schema"], name


@pytest.mark.slow
def test_requests_made_from_the_document_meet_no_answer_it_does_not_describe(
    fuzzed: NodeProcess,
) -> None:
    """Situations 29 and 30: no 500 and no undocumented status, whatever is sent."""
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    schema.config.update(base_url=fuzzed.url)
    headers = {"Authorization": f"Bearer {token_of(fuzzed.token)}"}
    statuses: Counter[int] = Counter()
    for path, method, name in OPERATIONS:
        if name in LEFT_OUT:
            continue
        good = schema[path][method].as_strategy()
        bad = schema[path][method].as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)

        @hypothesis.seed(20_26)
        @hypothesis.settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(case=good | good | bad, chance=st.randoms(use_true_random=False))
        def send(case: Case[Any], chance: Random) -> None:
            case.body = known(case.body, chance)
            case.path_parameters = known(case.path_parameters, chance)
            response = case.call(headers=headers, timeout=20)
            statuses[response.status_code] += 1
            assert response.status_code != 500, response.text
            case.validate_response(response, checks=CHECKS)

        send()
    assert {200, 201, 400, 404, 409, 412} <= set(statuses), statuses


def known(value: Any, chance: Random) -> Any:
    """The same with most texts replaced by such as mean something to the node."""
    if isinstance(value, dict):
        return {key: known(each, chance) for key, each in value.items()}
    if isinstance(value, list):
        return [known(each, chance) for each in value]
    return chance.choice(WORDS) if isinstance(value, str) and chance.random() < 0.7 else value
