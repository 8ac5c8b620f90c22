from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tidegate
from tidegate.cli.main import run
from tidegate.cli.words import spelled_out
from tidegate.errors import UsageError

if TYPE_CHECKING:
    from fix_node import NodeProcess


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("workflow show -w customer/m1", "workflow show -w m1 --target-keyspace customer"),
        ("vdiff list --workflow=customer/m1 -o json",
         "vdiff list --workflow=m1 -o json --target-keyspace customer"),
        ("workflow show -w customer/m1 -t customer", "workflow show -w m1 -t customer"),
        ("workflow show -w m1 -t customer", "workflow show -w m1 -t customer"),
        ("shard show customer/-80", "shard show customer/-80"),
        ("workflow show -w customer.m1", "workflow show -w m1 --target-keyspace customer"),
        ("help movetables create", "movetables create --help"),
    ],
)  # fmt: skip
def test_a_workflow_may_be_named_with_its_keyspace(line: str, found: str) -> None:
    assert " ".join(spelled_out(line.split())) == found


def test_a_keyspace_that_is_named_twice_must_be_one() -> None:
    with pytest.raises(UsageError) as caught:
        spelled_out(["workflow", "show", "-w", "customer/m1", "--target-keyspace=other"])
    assert "other" in caught.value.message


def test_help_and_version_are_words_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version"]) == 0
    assert capsys.readouterr().out == f"{tidegate.__version__}\n"
    assert run(["help"]) == 0
    assert "Usage: tidegate NOUN VERB" in capsys.readouterr().out
    assert run(["help", "vdiff", "create"]) == 0
    assert "tidegate vdiff create" in capsys.readouterr().out


@pytest.mark.parametrize("program", ["tidegate", "tg"])
def test_bash_completes_nouns_and_names(node: NodeProcess, tmp_path: Path, program: str) -> None:
    with node.client() as client:
        names = {item["name"] for item in client.keyspace.list()["items"]}
        if "completed" not in names:
            client.keyspace.create("completed")
    script = tmp_path / "completion"
    tool = Path(sys.executable).with_name("tidegate")
    made = subprocess.run([tool, "completion", "bash"], capture_output=True, check=True)
    script.write_bytes(made.stdout)

    def completed(*words: str) -> list[str]:
        line = " ".join(words)
        code = (
            f"source {script}; COMP_WORDS=({line} ''); COMP_CWORD={len(words)};"
            f" $(complete -p {program} | sed 's/.*-F \\([^ ]*\\).*/echo \\1/') >/dev/null;"
            f" _tidegate_names {program} '' {words[-1]}; echo \"${{COMPREPLY[@]}}\""
        )
        environment = {
            **os.environ,
            "PATH": f"{tool.parent}:{os.environ['PATH']}",
            "TIDEGATE_URL": node.url,
            "TIDEGATE_TOKEN": node.token,
        }
        done = subprocess.run(
            ["bash", "-c", code], capture_output=True, text=True, env=environment, check=True
        )
        return done.stdout.split()

    assert {"movetables", "vdiff"} <= set(completed(program))
    assert "completed" in completed(program, "workflow", "show", "-t")
