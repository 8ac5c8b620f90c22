"""The wheel holds all that a checkout runs from, and runs without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UV = ROOT / ".cache" / "uv" / "bin" / "uv"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [str(UV), "build", "-q", "--wheel", "--python", sys.executable]
    subprocess.run([*command, "--out-dir", str(folder), str(ROOT)], check=True, timeout=120)
    (built,) = folder.glob("tidegate-*-py3-none-any.whl")
    return built


def test_it_holds_every_file_of_the_package(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "src"], check=True, capture_output=True, text=True
    )
    wanted = {line.removeprefix("src/") for line in listed.stdout.splitlines()}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == wanted


def test_it_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(unpacked)
    script = "import tidegate; print(tidegate.__file__); import tidegate.cli.main as m; m.main()"
    ended = subprocess.run(
        [sys.executable, "-c", script, "demo", "--help"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(str(unpacked))
    assert "--keep" in ended.stdout
