"""Streams found on the shards become one workflow, or one clear error."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tidegate.engines.postgres.position import Position
from tidegate.errors import (
    InvalidWorkflowError,
    MultipleSourceKeyspacesError,
    MultipleTargetKeyspacesError,
    NoStreamsError,
)
from tidegate.topology.records import Shard, Tablet, TabletType
from tidegate.workflow.state import FROZEN, StreamWorkflowSubType, StreamWorkflowType
from tidegate.workflow.targets import (
    MigrationTarget,
    ObservedShard,
    StreamSource,
    TargetInfo,
    VReplicationStream,
    VReplicationStreams,
    build_targets,
    hash_streams,
    new_migration_source,
)

PRIMARY = Tablet("z1-1", "customer", "0", frozenset({TabletType.PRIMARY}), "host=db")
SOURCE = StreamSource("commerce", "0", ("customer",))
ONE = VReplicationStream(1, "cust", SOURCE, Position("7", 1, 42))
TWO = VReplicationStream(2, "cust", SOURCE, workflow_sub_type=StreamWorkflowSubType.PARTIAL)


def shard(name: str) -> Shard:
    return Shard("customer", name)


def test_ids_become_the_right_side_of_in() -> None:
    assert VReplicationStreams((ONE, TWO)).values() == "(1, 2)"


def test_no_streams_still_make_valid_sql_that_matches_nothing() -> None:
    assert VReplicationStreams().values() == "(NULL)"


def test_workflows_are_listed_once_and_sorted() -> None:
    streams = VReplicationStreams(
        (replace(TWO, workflow="z"), ONE, replace(ONE, workflow="a"), ONE)
    )
    assert streams.workflows() == ["a", "cust", "z"]


def test_a_copy_keeps_everything_but_the_position() -> None:
    copied = VReplicationStreams((ONE, TWO)).copy()
    assert copied.to_slice() == [replace(ONE, position=None), TWO]
    assert len(copied) == 2
    assert [stream.id for stream in copied] == [1, 2]


def build(*shards: ObservedShard) -> TargetInfo:
    return build_targets("customer", "cust", shards, opt_cells="z1", opt_tablet_types="REPLICA")


def test_shards_without_streams_are_left_out() -> None:
    info = build(
        ObservedShard(shard("-80"), PRIMARY, (ONE,)),
        ObservedShard(shard("80-"), PRIMARY, (replace(ONE, workflow="x"),)),
    )
    assert set(info.targets) == {"-80"}
    target = info.targets["-80"]
    assert target.sources == {1: SOURCE}
    assert (target.get_shard(), target.get_primary(), target.position) == (
        shard("-80"),
        PRIMARY,
        "",
    )
    assert (info.frozen, info.opt_cells, info.opt_tablet_types) == (False, "z1", "REPLICA")
    assert info.workflow_type is StreamWorkflowType.MOVE_TABLES


def test_one_frozen_stream_freezes_the_workflow() -> None:
    frozen = replace(ONE, id=9, message=FROZEN)
    assert build(ObservedShard(shard("0"), PRIMARY, (ONE, frozen))).frozen


def test_no_streams_anywhere_is_named_with_keyspace_and_workflow() -> None:
    with pytest.raises(NoStreamsError, match=r"no streams found in keyspace customer for .* cust"):
        build(ObservedShard(shard("0"), PRIMARY))


@pytest.mark.parametrize(
    ("odd", "error"),
    [
        (replace(ONE, source=StreamSource("other", "0")), MultipleSourceKeyspacesError),
        (replace(ONE, target_keyspace="other"), MultipleTargetKeyspacesError),
        (replace(ONE, workflow_type=StreamWorkflowType.RESHARD), InvalidWorkflowError),
    ],
)
def test_streams_that_contradict_each_other_are_no_workflow(
    odd: VReplicationStream, error: type[InvalidWorkflowError]
) -> None:
    with pytest.raises(error) as caught:
        build(
            ObservedShard(shard("-80"), PRIMARY, (ONE,)),
            ObservedShard(shard("80-"), PRIMARY, (odd,)),
        )
    assert isinstance(caught.value, InvalidWorkflowError)
    assert caught.value.next_step


def test_a_new_source_has_no_position_and_no_journal() -> None:
    source = new_migration_source(shard("0"), PRIMARY)
    assert (source.position, source.journaled) == ("", False)
    assert (source.get_shard(), source.get_primary()) == (shard("0"), PRIMARY)


def test_the_hash_of_streams_is_stable_and_positive() -> None:
    targets = {
        "80-": MigrationTarget(shard("0"), PRIMARY, {2: SOURCE}),
        "-80": MigrationTarget(shard("0"), PRIMARY, {10: SOURCE, 1: SOURCE}),
    }
    value = hash_streams("ks", targets)
    assert value == hash_streams("ks", dict(reversed(targets.items())))
    assert 0 <= value < 2**63
    # FNV-1, 64 bits, without its top bit: of nothing, and of the one letter "a"
    assert hash_streams("", {}) == 0xCBF29CE484222325 & (2**63 - 1)
    assert hash_streams("a", {}) == 0xAF63BD4C8601B7BE & (2**63 - 1)
