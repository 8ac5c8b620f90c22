"""Which files the parameters of a vindex may name, and how their content becomes the parameter.

``json_path`` of ``numeric_static_map`` and ``region_map`` of ``region_json`` take a JSON object, or
name a file that holds one. A file is read once, when a vschema is applied, and its content replaces
its name in what is stored. Every node, worker and router then maps by the same content, on whatever
machine it runs, and a file that changes later moves no row.

Whoever may apply a vschema has no account on the node's machine. Only regular files inside one
folder are read, up to ``FILE_BYTES_MAX``. A symbolic link is followed where it stays inside:
mounted configuration is made of such links. Every other name gets the same answer, which says
nothing about what exists outside. No message repeats content of a file.
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tidegate.errors import InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tidegate.topology.vschema import VSchema

FILE_BYTES_MAX: Final = 1 << 20

_FILE_PARAMS: Final = {
    "numeric_static_map": ("json_path", "json"),
    "region_json": ("region_map", "region_map"),
}
"""By type of vindex: the parameter that may name a file, and the one that takes its content."""


def is_inline(text: str) -> bool:
    """Whether a parameter is the JSON object itself."""
    return text.lstrip().startswith("{")


def inlined(
    vindex_type: str, name: str, params: Mapping[str, str], folder: Path | None
) -> Mapping[str, str]:
    """The parameters with the content of the file they name, if they name one.

    Args:
        vindex_type: such as ``region_json``.
        name: of the vindex, for messages.
        params: as given.
        folder: the only folder whose files are read; None where the file belongs to whoever asks,
            as on the command line.

    Raises:
        NotFoundError: the folder holds no such file.
        InvalidArgumentError: the file is too large, or not UTF-8 text of a JSON object.
    """
    naming, taking = _FILE_PARAMS.get(vindex_type, ("", ""))
    text = params.get(naming)
    if not text or is_inline(text) or (taking != naming and taking in params):
        return params  # what is missing or given twice is refused when the vindex is created
    content = _content(name, naming, Path(text), folder)
    if not is_inline(content):
        raise InvalidArgumentError(
            f"vindex {name}: the file that {naming} names does not hold a JSON object",
            next_step="write one JSON object into it",
            param=naming,
        )
    return {**{key: value for key, value in params.items() if key != naming}, taking: content}


def with_files_inlined(vschema: VSchema, folder: Path) -> VSchema:
    """A vschema in which no vindex names a file; errors as :func:`inlined`."""
    specs = {
        name: replace(spec, params=inlined(spec.type, name, spec.params, folder))
        for name, spec in vschema.vindexes.items()
    }
    return replace(vschema, vindexes=specs)


def unread_file(name: str, param: str) -> InvalidArgumentError:
    """The refusal of a parameter that still names a file where no file is read."""
    return InvalidArgumentError(
        f"vindex {name}: {param} names a file, and no file is read here",
        next_step="apply the vschema to the node, which reads the file, or give the JSON itself",
        param=param,
    )


def _content(name: str, param: str, path: Path, folder: Path | None) -> str:
    try:
        handle = _opened(path, folder)
    except (OSError, ValueError):
        where = "" if folder is None else f" inside {folder}"
        raise NotFoundError(
            f"vindex {name}: {param} does not name a readable regular file{where}",
            next_step=f"put the file{where or ' there'}, or give the JSON object itself",
            param=param,
        ) from None
    with os.fdopen(handle, "rb") as file:
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise InvalidArgumentError(
            f"vindex {name}: the file that {param} names is larger than {FILE_BYTES_MAX} bytes",
            next_step="use a smaller table",
            param=param,
        )
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidArgumentError(
            f"vindex {name}: the file that {param} names is not UTF-8 text",
            next_step="write one JSON object into it",
            param=param,
        ) from None


def _opened(path: Path, folder: Path | None) -> int:
    """An open handle of a regular file; OSError or ValueError for everything else.

    Links are resolved first and each step of the result is then opened without following any, so
    that a folder or link replaced in between leads nowhere else.
    """
    if folder is None:
        place, steps = Path("/"), path.resolve(strict=True).parts[1:]
    else:
        inside = Path(os.path.normpath(folder / path))
        if not inside.is_relative_to(os.path.normpath(folder)):
            raise ValueError  # outside by its name: nothing is looked at
        place = folder.resolve(strict=True)
        steps = inside.resolve(strict=True).relative_to(place).parts
    if not steps:
        raise ValueError
    handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for step in steps:
        try:  # O_NONBLOCK: a pipe is refused below instead of being waited for
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            following = os.open(step, flags, dir_fd=handle)
        finally:
            os.close(handle)
        handle = following
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError
    return handle
