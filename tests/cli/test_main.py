from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tidegate.cli import common, follow, output, settings
from tidegate.cli.main import run
from tidegate.cli.nouns import NOUNS
from tidegate.errors import (
    DetachedError,
    ExitStatus,
    InvalidArgumentError,
    NotFoundError,
    StreamFailedError,
    WaitTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_node import NodeProcess

HEAVY = ("fastapi", "sqlalchemy", "pydantic", "psycopg", "httpx2", "uvicorn", "cyclopts")


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of whoever runs the tests."""
    for name in ("TIDEGATE_URL", "TIDEGATE_TOKEN", "TIDEGATE_CONTEXT", "TIDEGATE_CA_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("TIDEGATE_STATE_DIR", str(tmp_path / "state"))


def loaded(arguments: str) -> list[str]:
    code = (
        "import sys; from tidegate.cli.main import run\n"
        f"status = run({arguments!r}.split())\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stderr.splitlines()[-1].replace("'", '"'))
    return found


@pytest.mark.alone
def test_help_answers_at_once_and_loads_nothing_heavy() -> None:
    assert loaded("--help") == []
    took = []
    for _ in range(5):
        began = time.monotonic()
        command = [sys.executable, "-m", "tidegate.cli.main", "--help"]
        done = subprocess.run(command, capture_output=True, check=True)
        took.append(time.monotonic() - began)
        assert b"movetables" in done.stdout
    assert min(took) < 0.3


@pytest.mark.parametrize(
    "line", ["movetables create --help", "vdiff --help", "serve --help", "demo --help"]
)
def test_help_of_a_command_loads_nothing_heavy(line: str) -> None:
    assert loaded(line) == ["cyclopts"]


def test_every_noun_has_a_module_that_says_what_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _, nouns in NOUNS:
        for noun, _, text in nouns:
            assert run([noun, "--help"]) == 0
            assert f"tidegate {noun}" in capsys.readouterr().out
            assert text.endswith(".")


def test_no_arguments_show_help_and_are_a_usage_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([]) == ExitStatus.USAGE
    assert "Usage: tidegate" in capsys.readouterr().out
    assert run(["--version"]) == 0


@pytest.mark.parametrize(
    ("text", "value"), [("30s", 30), ("500ms", 0.5), ("2m", 120), ("1h", 3600), ("7", 7)]
)
def test_durations(text: str, value: float) -> None:
    assert common.seconds(text) == value


def test_words_that_cannot_be_read_are_refused() -> None:
    for action in (
        lambda: common.seconds("soon"),
        lambda: common.size_of("much"),
        lambda: common.shard_of("customer"),
        lambda: common.pairs(["novalue"]),
        lambda: common.read_json("/nowhere.json"),
        lambda: common.confirm("remove x", "x", yes=False, dry_run=False),
    ):
        with pytest.raises(InvalidArgumentError):
            action()
    assert common.pairs(["a=1,b=2", "c=x=y"]) == {"a": "1", "b": "2", "c": "x=y"}
    assert common.size_of("1.5GiB") == 3 * 2**29
    assert common.size_of(None) is None
    common.confirm("remove x", "x", yes=True, dry_run=False)
    common.confirm("remove x", "x", yes=False, dry_run=True)


def test_yaml_is_read_back_as_the_same_value() -> None:
    value: dict[str, Any] = {
        "a": [1, {"b": None, "c": []}, [True, "x: y"]],
        "odd key": {"e": {}},
        "text": "two\nlines",
    }
    assert output.yaml_lines(value) == [
        "a:",
        "  - 1",
        "  - b: null",
        "    c: []",
        "  - - true",
        '    - "x: y"',
        '"odd key":',
        "  e: {}",
        'text: "two\\nlines"',
    ]


def test_tables_are_aligned_and_wide_columns_hidden() -> None:
    columns = (output.Column("NAME", "n"), output.Column("MORE", "m", wide=True))
    items: list[dict[str, Any]] = [{"n": "a", "m": [1, 2]}, {"n": None, "m": True}]
    assert output.table_text(items, columns) == "NAME\na\n-"
    assert output.table_text(items, columns, wide=True) == "NAME  MORE\na     1,2\n-     yes"


def test_settings_come_from_flag_environment_context_and_default_in_this_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(**flags: str) -> tuple[str | None, str]:
        given = {"url": None, "token": None, "context": None, **flags}
        setting = settings.resolve(**given).url
        return setting.value, setting.origin.split()[0]

    assert found() == (settings.DEFAULT_URL, "default")
    assert run(["config", "set", "prod", "--url", "https://a", "--token", "file:/t"]) == 0
    assert run(["config", "set", "test", "--url", "https://b"]) == 0
    assert found() == ("https://b", "context")
    assert run(["config", "use", "prod"]) == 0
    assert found() == ("https://a", "context")
    monkeypatch.setenv("TIDEGATE_URL", "http://c")
    assert found() == ("http://c", "env")
    assert found(url="http://d") == ("http://d", "flag")
    assert run(["config", "use", "nope"]) == ExitStatus.NOT_FOUND
    assert run(["config", "set", "x", "--url", "u", "--token", "secret"]) == ExitStatus.USAGE
    assert settings.config_path().stat().st_mode & 0o077 == 0
    capsys.readouterr()
    assert run(["config", "show", "--origin", "-o", "json", "--token", "tg_secret"]) == 0
    text = capsys.readouterr().out
    assert "tg_secret" not in text
    items = {each["setting"]: each for each in json.loads(text)["items"]}
    assert items["client.url"]["origin"] == "env TIDEGATE_URL"
    assert items["node.state_dir"]["origin"] == "env TIDEGATE_STATE_DIR"
    assert items["node.listen"]["origin"] == "default"


def test_dry_runs_of_config_write_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "set", "a", "--url", "https://a", "--dry-run"]) == 0
    assert "context a would be written" in capsys.readouterr().out
    assert not settings.config_path().exists()
    assert run(["config", "set", "a", "--url", "https://a"]) == 0
    assert run(["config", "set", "b", "--url", "https://b"]) == 0
    before = settings.config_path().read_bytes()
    assert run(["config", "set", "a", "--url", "https://c", "--dry-run"]) == 0
    assert "context a would be replaced" in capsys.readouterr().out
    assert run(["config", "use", "a", "--dry-run"]) == 0
    assert "context a would be used" in capsys.readouterr().out
    assert run(["config", "use", "nope", "--dry-run"]) == ExitStatus.NOT_FOUND
    assert (
        run(["config", "set", "x", "--url", "u", "--token", "t", "--dry-run"]) == ExitStatus.USAGE
    )
    assert settings.config_path().read_bytes() == before


def test_debug_lists_the_durable_steps_of_node_and_workers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["debug", "steps", "-o", "json"]) == 0
    items = json.loads(capsys.readouterr().out)["items"]
    assert {item["runs_in"] for item in items} == {"node", "worker"}
    assert {"copy", "switch", "complete", "cancel"} <= {item["plan"] for item in items}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed_and_define_what_they_call(
    capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "movetables" in script
    called = set(re.findall(r'(_[a-z_]+) "\$@"', script))
    called |= set(re.findall(r"^ *(?:compdef|complete -F) (_[a-z_]+)", script, flags=re.MULTILINE))
    assert called or shell == "fish"
    assert called <= set(re.findall(r"^(_[a-z_]+)\(\)", script, flags=re.MULTILINE))


class Verbs:
    """Statuses, one after another; the last one for ever."""

    def __init__(self, *statuses: dict[str, Any], interrupt: bool = False) -> None:
        self._statuses: Iterator[dict[str, Any]] = iter(statuses)
        self._last = statuses[-1]
        self._interrupt = interrupt

    def status(self, *_names: str) -> dict[str, Any]:
        if self._interrupt:
            raise KeyboardInterrupt
        self._last = next(self._statuses, self._last)
        return self._last


def status(state: str, **more: Any) -> dict[str, Any]:
    return {
        "workflow": {"name": "w"},
        "state": state,
        "traffic": "Reads Not Switched. Writes Not Switched",
        "tables": [],
        "streams": [],
        "slots": [],
        "spans": [],
        "max_lag_s": 0.1,
        **more,
    }


def follow_until_running(verbs: Verbs, timeout_s: float | None = None) -> dict[str, Any]:
    return follow.until_running(verbs, "w", "t", timeout_s=timeout_s)  # type: ignore[arg-type]


def test_following_ends_when_the_streams_are_in_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    final = follow_until_running(Verbs(status("copying"), status("running")))
    assert final["state"] == "running"
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["state"] for line in lines] == ["copying", "running"]


def test_following_ends_with_the_reason_when_a_stream_fails() -> None:
    failed = {"source": "a/0", "target": "b/0", "state": "Error", "message": "table altered"}
    with pytest.raises(StreamFailedError, match="table altered"):
        follow_until_running(Verbs(status("error", streams=[failed])))


def test_a_wait_that_is_over_says_that_the_work_goes_on() -> None:
    with pytest.raises(WaitTimeoutError) as caught:
        follow_until_running(Verbs(status("copying")), timeout_s=0.0)
    assert caught.value.exit_status == ExitStatus.WAIT_TIMEOUT
    assert "--watch" in caught.value.next_step


def test_a_verb_that_lasts_says_once_who_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Situation 14: a completion behind a reader says so while it waits, and what ends it."""
    monkeypatch.setattr(follow, "SAY_WAITS_S", 0.01)
    wait = {
        "name": "table.lock",
        "what": "tables that are to go",
        "where": "shop/0",
        "since": "2026-11-30T10:15:02.123+00:00",
        "in_the_way": "session 4711 of app in shop, open for 3.0 s, idle in transaction",
        "next_step": "let it end, or end it: SELECT pg_terminate_backend(4711)",
        "holders": [{"pid": 4711, "gid": None}],
    }
    looks: list[int] = []
    ended = threading.Event()

    def look() -> dict[str, Any]:
        looks.append(1)
        if len(looks) == 1:
            raise NotFoundError("there is no workflow yet", next_step="")
        if len(looks) == 5:
            ended.set()
        return status("completing", waits=[{**wait, "in_the_way": f"{wait['in_the_way']}"}])

    def work() -> dict[str, Any]:
        assert ended.wait(10)
        return {"summary": "complete shop.move"}

    assert follow.saying_waits(look, work) == {"summary": "complete shop.move"}
    assert capsys.readouterr().err == (
        "waits for tables that are to go at shop/0 since 10:15:02: session 4711 of app in shop,"
        " open for 3.0 s, idle in transaction; let it end, or end it:"
        " SELECT pg_terminate_backend(4711)\n"
    )
    with pytest.raises(StreamFailedError):
        follow.saying_waits(look, failing)


def failing() -> dict[str, Any]:
    raise StreamFailedError("it failed", next_step="")


def test_ctrl_c_stops_following_and_says_how_to_come_back() -> None:
    with pytest.raises(DetachedError) as caught:
        follow_until_running(Verbs(status("copying"), interrupt=True))
    assert caught.value.exit_status == ExitStatus.INTERRUPTED
    assert "tidegate workflow status -w w -t t" in caught.value.next_step


def test_a_ctrl_c_whose_exception_python_drops_stops_following_all_the_same() -> None:
    """As when it comes while a finaliser or a callback of the garbage collector runs."""

    class Dropping(Verbs):
        def status(self, *names: str) -> dict[str, Any]:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            return super().status(*names)

    with pytest.raises(DetachedError):
        follow_until_running(Dropping(status("copying")))


def test_lists_are_shown_in_every_form(
    node: NodeProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIDEGATE_URL", node.url)
    monkeypatch.setenv("TIDEGATE_TOKEN", node.token)
    assert run(["keyspace", "create", "forms", "--shards", "-80,80-"]) == 0
    assert capsys.readouterr().out == "keyspace forms created\n"
    assert run(["keyspace", "list", "-o", "name"]) == 0
    assert capsys.readouterr().out == "forms\n"
    assert run(["keyspace", "get", "-o", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema_version"] == 1
    assert answer["items"][0]["name"] == "forms"
    assert run(["keyspace", "list", "-o", "yaml"]) == 0
    assert '- name: "forms"' in capsys.readouterr().out
    assert run(["shard", "list", "forms"]) == 0
    assert "forms/-80" in capsys.readouterr().out
    assert run(["vindex", "map", "42", "--type", "hash", "--keyspace", "forms"]) == 0
    assert "shard" in capsys.readouterr().out
    assert run(["keyspace", "delete", "forms", "--recursive"]) == ExitStatus.USAGE
    assert run(["keyspace", "delete", "forms", "--recursive", "--dry-run"]) == 0
    assert "would be deleted" in capsys.readouterr().out
    assert run(["keyspace", "delete", "forms", "--recursive", "--yes"]) == 0


def test_values_are_mapped_from_lines_of_json(node: NodeProcess) -> None:
    command = [sys.executable, "-m", "tidegate.cli.main", "vindex", "map", "--type", "xxhash"]
    where = ["--url", node.url, "--token", node.token]
    done = subprocess.run(
        [*command, *where],
        input='1\n"abc"\n\n2\n',
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["value"] for line in lines] == [1, "abc", 2]
    wrong = subprocess.run(
        [*command, *where], input="1\nnot json\n", capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert "line 2" in wrong.stderr


@pytest.mark.parametrize(
    ("line", "next_step"),
    [
        ("workflw list", "tidegate --help"),
        ("workflow lst", "tidegate workflow --help"),
        ("workflow --bogus", "tidegate workflow --help"),
        ("workflow list --bogus", "tidegate workflow list --help"),
        ("movetables create", "tidegate movetables create --help"),
        ("-o json workflow list", "tidegate --help"),
    ],
)
def test_the_help_that_a_wrong_line_is_sent_to_exists(
    capsys: pytest.CaptureFixture[str], line: str, next_step: str
) -> None:
    assert run(line.split()) == ExitStatus.USAGE
    assert next_step in capsys.readouterr().err
    assert run(next_step.split()[1:]) == 0
    assert "Usage" in capsys.readouterr().out
