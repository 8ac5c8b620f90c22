"""`tidegate serve`: run a node."""

from __future__ import annotations

import gc
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from collections.abc import Iterator

app = App(
    name="serve",
    help_epilogue="Example:  tidegate serve --listen 127.0.0.1:8470 --state-dir /var/lib/tidegate",
)


@app.default
def serve(
    *,
    listen: Annotated[str | None, Parameter(help="HOST:PORT of the HTTP API.")] = None,
    state_dir: Annotated[str | None, Parameter(help="Folder of the node's state.")] = None,
    cluster_database: Annotated[
        str | None, Parameter(help="URL of the cluster database; default: in the state folder.")
    ] = None,
    member_address: Annotated[
        str | None, Parameter(help="HOST:PORT on which other members of a cluster reach the node.")
    ] = None,
    member_listen: Annotated[
        str | None, Parameter(help="HOST:PORT to listen on for them, where that differs.")
    ] = None,
    on_route_change: Annotated[
        str | None, Parameter(help="Command run after each change of the routes.")
    ] = None,
    migrations_from: Annotated[
        str | None,
        Parameter(help="Folders whose Alembic, Django and Python migrations the node may run."),
    ] = None,
    vindex_files: Annotated[
        str | None, Parameter(help="Folder of the files that parameters of vindexes may name.")
    ] = None,
    secret_folder: Annotated[
        list[str] | None,
        Parameter(
            help="Folder whose files tablets may name as secrets; more than once for several."
            " Default: `secrets` in the state folder."
        ),
    ] = None,
    secret_variables: Annotated[
        str | None,
        Parameter(help="Variables tablets may name as secrets; default: TIDEGATE_SECRET_*."),
    ] = None,
    tls_cert: Annotated[str | None, Parameter(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[str | None, Parameter(help="Key of the certificate, PEM.")] = None,
    insecure_listen: Annotated[
        bool, Parameter(help="Allow to listen beyond this machine without TLS.")
    ] = False,
    log_level: Annotated[str | None, Parameter(help="debug, info, warning or error.")] = None,
) -> None:
    """Run a node until SIGTERM or Ctrl-C, which stop its workers in order.

    Settings not given are read from TIDEGATE_... variables, then /etc/tidegate/tidegate.toml. The
    log is JSON lines on standard error. A node that is killed leaves its workers running; the next
    one adopts them.
    """
    with _loading():
        from tidegate.server import config, logs, serving  # noqa: PLC0415 - heavy, only needed here

    settings = config.load(
        {
            "listen": listen,
            "state_dir": state_dir,
            "cluster_database": cluster_database,
            "member_address": member_address,
            "member_listen": member_listen,
            "on_route_change": on_route_change,
            "migrations_from": migrations_from,
            "vindex_files": vindex_files,
            "secret_folders": ":".join(_absolute(secret_folder)) if secret_folder else None,
            "secret_variables": secret_variables,
            "tls_cert": tls_cert,
            "tls_key": tls_key,
            "insecure_listen": insecure_listen or None,
            "log_level": log_level,
        }
    )
    logs.configure(settings.log_level)
    serving.serve(settings)


@contextmanager
def _loading() -> Iterator[None]:
    """While a thousand modules are imported: nothing of them is garbage, now or later.

    The collector would look at all of it again and again, which is a tenth of the time to load a
    node, and each full collection of an idle one.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _absolute(folders: list[str]) -> list[str]:
    """Folders as the shell's user means them; the workers' folder may be another."""
    return [os.path.abspath(folder) for folder in folders]  # noqa: PTH100 - links stay as written
