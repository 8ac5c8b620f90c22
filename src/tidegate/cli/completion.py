"""`tidegate completion`: completion scripts for shells."""

from __future__ import annotations

from typing import Literal

from cyclopts import App

from tidegate.cli.output import out

app = App(
    name="completion",
    help_epilogue="Example:  tidegate completion bash > /etc/bash_completion.d/tidegate",
)


@app.default
def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print the completion script of a shell.

    Args:
        shell: bash, zsh or fish.
    """
    from tidegate.cli.main import build_app  # noqa: PLC0415 - the tree holds this module

    out(build_app().generate_completion(shell=shell))
