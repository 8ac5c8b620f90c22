"""`tidegate completion`: completion scripts for shells."""

from __future__ import annotations

from typing import Final, Literal

from cyclopts import App

from tidegate.cli.output import out

#: Names are asked of the node, and `tg` is completed like `tidegate`. The script for zsh may be
#: sourced, or lie as `_tidegate` in a folder of `fpath`: then zsh calls it for a completion.
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
    *) _cyclopts_tidegate "$@" ;;
  esac
}
if [[ "${funcstack[1]}" == _tidegate ]]; then
  _tidegate_names "$@"
else
  compdef _tidegate_names tidegate tg
fi""",
    "fish": """
complete -c tidegate -f
for option in file folder state-dir secret-folder vindex-files ca-file tls-cert tls-key python
  complete -c tidegate -l $option -r -F
end
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

    script = build_app().generate_completion(shell=shell)
    out(script.replace("#compdef tidegate\n", "#compdef tidegate tg\n", 1))
    out(NAMES[shell])
