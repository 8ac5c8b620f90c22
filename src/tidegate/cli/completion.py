"""`tidegate completion`: completion scripts for shells."""

from __future__ import annotations

from typing import Final, Literal

from cyclopts import App

from tidegate.cli.output import out

#: Names are asked of the node, and `tg` is completed like `tidegate`.
NAMES: Final = {
    "bash": """
_tidegate_names() {
  case "${COMP_WORDS[COMP_CWORD-1]}" in
    -w|--workflow)
      COMPREPLY=($(compgen -W "$(tidegate workflow list -o name 2>/dev/null)" -- "$2")) ;;
    -t|--target-keyspace|--source-keyspace|--keyspace)
      COMPREPLY=($(compgen -W "$(tidegate keyspace list -o name 2>/dev/null)" -- "$2")) ;;
    *) _tidegate "$@" ;;
  esac
}
complete -F _tidegate_names tidegate tg""",
    "zsh": """
_tidegate_names() {
  case "${words[CURRENT-1]}" in
    -w|--workflow) compadd -- ${(f)"$(tidegate workflow list -o name 2>/dev/null)"} ;;
    -t|--target-keyspace|--source-keyspace|--keyspace)
      compadd -- ${(f)"$(tidegate keyspace list -o name 2>/dev/null)"} ;;
    *) _tidegate "$@" ;;
  esac
}
compdef _tidegate_names tidegate tg""",
    "fish": """
complete -c tidegate -s w -l workflow -x -a '(tidegate workflow list -o name 2>/dev/null)'
complete -c tidegate -s t -l target-keyspace -x -a '(tidegate keyspace list -o name 2>/dev/null)'
complete -c tidegate -l source-keyspace -x -a '(tidegate keyspace list -o name 2>/dev/null)'
complete -c tg -w tidegate""",
}

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
    out(NAMES[shell])
