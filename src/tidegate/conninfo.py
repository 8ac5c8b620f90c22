"""What a connection string may say, read by libpq's own parser.

Decides which keys are allowed, and that none of them holds a secret: a password can be spelled in
many ways (``?p%61ssword=``, ``sslpassword``, ``oauth_client_secret``, a URL whose password contains
a slash), so nothing is searched for; what is not on the list is refused. It also decides that a
password is never sent in clear text unless the server has proved who it is (:func:`guarded`).

No message repeats any part of the string but the names of libpq's own keys.
"""

from __future__ import annotations

import re
from typing import Final

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from tidegate.errors import FailedPreconditionError, InvalidArgumentError

#: Keys that hold no secret, name no place where one is, and write no file.
ALLOWED: Final = frozenset(
    [
        "application_name",
        "channel_binding",
        "client_encoding",
        "connect_timeout",
        "dbname",
        "fallback_application_name",
        "gssencmode",
        "host",
        "hostaddr",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "krbsrvname",
        "load_balance_hosts",
        "options",
        "port",
        "require_auth",
        "requirepeer",
        "sslcert",
        "sslcertmode",
        "sslcompression",
        "sslcrl",
        "sslcrldir",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslrootcert",
        "sslsni",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "target_session_attrs",
        "tcp_user_timeout",
        "user",
    ]
)
_FILES: Final = ("sslcert", "sslkey", "sslcrl", "sslcrldir", "sslrootcert")
VALUE_MAX_CHARS: Final = 1024
VERIFYING: Final = frozenset({"verify-ca", "verify-full"})
NO_CLEAR_TEXT: Final = "!password"
REQUIRE_AUTH_SINCE: Final = 160000
FORM: Final = "write it as libpq does: host=… port=… dbname=… user=…"

_PORTS: Final = re.compile(r"[0-9]{0,5}(,[0-9]{0,5})*")
#: Settings of the server's own; one with a dot is an extension's or anybody's, and may be a secret.
_OPTION: Final = re.compile(r"(?:-c\s*|--)[A-Za-z_]+=(?:[^\\\s]|\\.)*")


def parsed(conninfo: str) -> dict[str, str]:
    """The keys and values of a connection string.

    Raises:
        InvalidArgumentError: it cannot be read, or holds what a connection string must not hold.
    """
    if not conninfo.isprintable() and not conninfo.replace("\n", " ").isprintable():
        raise _refused("has characters that cannot be printed")
    try:
        given = {k: str(v) for k, v in conninfo_to_dict(conninfo).items() if v is not None}
    except (psycopg.Error, UnicodeError):
        raise InvalidArgumentError("the connection string cannot be read", next_step=FORM) from None
    for key in sorted(given.keys() - ALLOWED):
        raise _refused(f"must not say {key}")
    _check_values(given, is_url="://" in conninfo.partition("=")[0])
    return given


def _check_values(given: dict[str, str], *, is_url: bool) -> None:
    for key, value in given.items():
        if len(value) > VALUE_MAX_CHARS or not value.isprintable():
            raise _refused(f"has a value for {key} that is too long or cannot be printed")
    if "port" in given and not _PORTS.fullmatch(given["port"]):
        # of a URL whose password contains a slash, libpq takes the password for a port
        raise _refused("names a port that is no number")
    for host in ",".join((given.get("host", ""), given.get("hostaddr", ""))).split(","):
        if "@" in host[1:] or ("@" in host and is_url):
            raise _refused("names a host with an @ in it")
    name = given.get("dbname", "")
    if "=" in name or "://" in name or (is_url and "@" in name):
        raise _refused("names a database that looks like a connection string itself")
    for key in _FILES:
        if given.get(key) and not (given[key].startswith("/") or given[key] == "system"):
            raise _refused(f"names no absolute path for {key}")
    options = given.get("options", "")
    if options.strip() and _OPTION.sub("", options).strip():
        raise _refused("has options other than -c SETTING=VALUE for the server's own settings")


def _refused(why: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the connection string {why}",
        next_step=f"{FORM}; name the password's place as a reference, env:NAME or file:/path",
    )


def guarded(given: dict[str, str]) -> dict[str, str]:
    """What is to be added so that no password is sent in clear text to a server that is not known.

    With ``sslmode=verify-ca`` or ``verify-full`` nothing is: the server has proved who it is.

    Raises:
        FailedPreconditionError: this libpq cannot refuse a clear-text password.
        InvalidArgumentError: the string itself asks for one.
    """
    if given.get("sslmode") in VERIFYING:
        return {}
    if pq.version() < REQUIRE_AUTH_SINCE:
        raise FailedPreconditionError(
            f"libpq {pq.version() // 10000} cannot refuse to send a password in clear text",
            next_step="use libpq 16 or newer, or connect with sslmode=verify-full",
        )
    methods = [each.strip() for each in given.get("require_auth", "").split(",") if each.strip()]
    if not methods or all(each.startswith("!") for each in methods):
        return {"require_auth": ",".join(dict.fromkeys([*methods, NO_CLEAR_TEXT]))}
    if "password" in methods:
        raise InvalidArgumentError(
            "the connection string allows a password in clear text (require_auth)",
            next_step="connect with sslmode=verify-full, or leave require_auth out",
        )
    return {}
