"""Requests that can never be right are refused before anything is looked at."""

from __future__ import annotations

from typing import Any

import pytest

from tidegate.errors import InvalidArgumentError
from tidegate.workflow.requests import (
    CompleteRequest,
    MoveTablesCreate,
    ReshardCreate,
    SwitchRequest,
)

MOVE: dict[str, Any] = {
    "workflow": "m",
    "source_keyspace": "a",
    "target_keyspace": "b",
    "tables": ("t",),
}
SPLIT: dict[str, Any] = {
    "workflow": "s",
    "keyspace": "a",
    "source_shards": ("0",),
    "target_shards": ("-80", "80-"),
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"workflow": ""}, "not a name"),
        ({"workflow": "m_reverse"}, "not a name"),
        ({"workflow": "x" * 64}, "not a name"),
        ({"target_keyspace": "a"}, "same keyspace"),
        ({"tables": ()}, "name the tables"),
        ({"all_tables": True}, "name the tables"),
        ({"exclude_tables": ("u",)}, "--all-tables only"),
        ({"tables": ("a.b.c",)}, "not a table name"),
        ({"on_ddl": "EXEC"}, "not supported"),
        ({"copy_threads": 0}, "out of bounds"),
        ({"sharded_auto_increment_handling": "GUESS"}, "unknown"),
        ({"sharded_auto_increment_handling": "REMOVE"}, "not supported"),
        ({"sharded_auto_increment_handling": "replace"}, "not supported"),
        ({"tablet_types": ("REPLICA",)}, "tablet_types of a create are not supported"),
        ({"cells": ("zone1",)}, "cells of a create are not supported"),
    ],
)
def test_a_move_that_cannot_be_right_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason):
        MoveTablesCreate(**{**MOVE, **change})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"target_shards": ()}, "no target shards"),
        ({"source_shards": ("-80",)}, "both source and target"),
    ],
)
def test_a_reshard_that_cannot_be_right_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason):
        ReshardCreate(**{**SPLIT, **change})


def test_names_and_words_are_brought_to_one_form() -> None:
    move = MoveTablesCreate(**{**MOVE, "tables": ("public.t", "t", "s.u"), "on_ddl": "ignore"})
    assert (move.tables, move.on_ddl) == (("s.u", "t"), "IGNORE")
    assert MoveTablesCreate.from_json(move.to_json()) == move
    split = ReshardCreate(**SPLIT)
    assert ReshardCreate.from_json(split.to_json()) == split


def test_a_switch_has_bounds() -> None:
    given: dict[str, Any] = {"keyspace": "b", "workflow": "m"}
    assert SwitchRequest(**given).writes
    assert SwitchRequest(**given, tablet_types=("replica",)).reads == ("REPLICA",)
    with pytest.raises(InvalidArgumentError, match="too short"):
        SwitchRequest(**given, timeout_s=0.5)
    with pytest.raises(InvalidArgumentError, match="out of bounds"):
        SwitchRequest(**given, max_pause_s=0.0)
    with pytest.raises(InvalidArgumentError, match="exclude each other"):
        CompleteRequest(**given, keep_data=True, rename_tables=True)
