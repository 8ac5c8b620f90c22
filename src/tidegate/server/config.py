"""What a node can be told, and where each setting came from.

Decides names, defaults and precedence: a flag beats the environment (``TIDEGATE_…``), that beats
the file (``/etc/tidegate/tidegate.toml``), that beats the default. Secrets are never settings, only
references to them.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, TomlConfigSettingsSource

from tidegate.cluster.database import FORMS, STORES
from tidegate.errors import InvalidArgumentError
from tidegate.server.bounds import (
    BODY_MAX_BYTES,
    CONNECTIONS_MAX,
    HEADERS_MAX_BYTES,
    IDLE_S,
    REQUEST_S,
    Limits,
)
from tidegate.server.headers import whole_number
from tidegate.topology.connections import DEFAULT_VARIABLES, Places, redacted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_settings import PydanticBaseSettingsSource

CONFIG_VARIABLE: Final = "TIDEGATE_CONFIG"
DEFAULT_FILE: Final = Path("/etc/tidegate/tidegate.toml")


def default_state_dir() -> Path:
    """Where a node keeps its state: the system's place for root, else the user's."""
    if os.geteuid() == 0:
        return Path("/var/lib/tidegate")
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "tidegate"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address to listen on."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Settings(BaseSettings):
    """A node's settings."""

    model_config = SettingsConfigDict(
        env_prefix="TIDEGATE_", extra="forbid", frozen=True, toml_file=DEFAULT_FILE
    )

    listen: str = Field(
        "127.0.0.1:8470", description="HOST:PORT of the HTTP API; port 0 takes a free one."
    )
    state_dir: Path = Field(
        default_factory=default_state_dir,
        description="Folder of the API tokens, the workers' records and, unless it is elsewhere,"
        " the cluster database.",
    )
    cluster_database: str | None = Field(
        None,
        description=f"URL of the cluster database, without a password: {FORMS}. Default: a SQLite"
        " file in the state directory.",
    )
    member_address: str | None = Field(
        None,
        description="HOST:PORT on which other members of a cluster reach this node; the next port"
        " is for the replication of the cluster database.",
    )
    member_listen: str | None = Field(
        None,
        description="HOST:PORT to listen on for them, where that differs from their way here.",
    )
    on_route_change: str | None = Field(
        None,
        description="Command run after each change of the routes, with the routes as JSON on its"
        " standard input; for applications that are not Python.",
    )
    migrations_from: str | None = Field(
        None,
        description="Folders, with colons between, below which migrations that are programs lie"
        " (Alembic, Django, Python); they run as the node's account. Default: nowhere.",
    )
    vindex_files: Path | None = Field(
        None,
        description="Folder of the files that parameters of vindexes may name. Default: `vindexes`"
        " in the state directory.",
    )
    secret_folders: str | None = Field(
        None,
        description="Folders, with colons between, below which the files lie that tablets may name"
        " as secrets. Default: `secrets` in the state directory.",
    )
    secret_variables: str = Field(
        DEFAULT_VARIABLES,
        description="Variables that tablets may name as secrets, with commas between; `*` at the"
        " end of one stands for any ending.",
    )
    tls_cert: Path | None = Field(None, description="Certificate chain of the HTTP API, PEM.")
    tls_key: Path | None = Field(None, description="Key of that certificate, PEM.")
    insecure_listen: bool = Field(
        default=False,
        description="Allow to listen beyond this machine without TLS; tokens can be read on the"
        " way.",
    )
    body_max_bytes: int = Field(BODY_MAX_BYTES, ge=1024, description="Of one request's body.")
    headers_max_bytes: int = Field(
        HEADERS_MAX_BYTES, ge=1024, description="Of one request's first line and headers."
    )
    idle_s: float = Field(
        IDLE_S, gt=0, description="How long a connection stays open between two requests."
    )
    request_s: float = Field(
        REQUEST_S, gt=0, description="How long a request may take to arrive as a whole."
    )
    connections_max: int = Field(
        CONNECTIONS_MAX, ge=1, description="Connections to the HTTP API, open at a time."
    )
    log_level: str = Field("info", description="debug, info, warning or error.")

    @field_validator("listen")
    @classmethod
    def _is_address(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if not (host and colon) or whole_number(port, largest=65535) is None:
            raise ValueError("write HOST:PORT, as in 127.0.0.1:8470")
        return value

    @field_validator("member_address", "member_listen")
    @classmethod
    def _is_member_address(cls, value: str | None) -> str | None:
        host, colon, port = (value or "h:1").rpartition(":")
        if not (host and colon and whole_number(port, largest=65534)):
            raise ValueError("write HOST:PORT; the next port must be free as well")
        return value

    @field_validator("cluster_database")
    @classmethod
    def _is_database(cls, value: str | None) -> str | None:
        if value is not None and redacted(value) != value:
            raise ValueError("a URL must not contain a password")
        if value is not None and value.partition("://")[0] not in STORES:
            raise ValueError(f"the URL names no engine there is; use {FORMS}")
        return value

    @field_validator("log_level")
    @classmethod
    def _is_level(cls, value: str) -> str:
        if value.lower() not in {"debug", "info", "warning", "error"}:
            raise ValueError("use debug, info, warning or error")
        return value.lower()

    @field_validator("migrations_from")
    @classmethod
    def _are_folders(cls, value: str | None) -> str | None:
        if any(not Path(each).is_absolute() for each in (value or "/").split(":")):
            raise ValueError("write absolute folders with colons between, as in /srv/app:/srv/jobs")
        return value

    @model_validator(mode="after")
    def _is_secure(self) -> Self:
        if not (is_loopback(self.host) or self.tls_cert or self.insecure_listen):
            raise ValueError(
                f"{self.listen} can be reached from other machines, which needs tls_cert and"
                " tls_key, or insecure_listen"
            )
        return self

    @field_validator("secret_folders")
    @classmethod
    def _are_secret_folders(cls, value: str | None) -> str | None:
        Places.parse(value, None)
        return value

    @field_validator("secret_variables")
    @classmethod
    def _are_variables(cls, value: str) -> str:
        Places.parse(None, value)
        return value

    @property
    def limits(self) -> Limits:
        """Of the API's listener."""
        return Limits(
            self.body_max_bytes,
            self.headers_max_bytes,
            self.idle_s,
            self.request_s,
            self.connections_max,
        )

    @property
    def secret_places(self) -> Places:
        """Which files and variables a tablet may name as its secret."""
        folders = self.secret_folders
        if folders is None:
            folders = str(self.state_dir.resolve() / "secrets")
        return Places.parse(folders, self.secret_variables)

    @property
    def program_folders(self) -> tuple[Path, ...]:
        """The folders below which programs of migrations may lie."""
        return (
            tuple(map(Path, (self.migrations_from or "").split(":")))
            if self.migrations_from
            else ()
        )

    @property
    def vindex_folder(self) -> Path:
        """The only folder whose files the parameters of vindexes may name."""
        return self.vindex_files or self.state_dir / "vindexes"

    @property
    def host(self) -> str:
        """The address to listen on."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port to listen on; 0 takes a free one."""
        return int(self.listen.rpartition(":")[2])

    @property
    def cluster_database_url(self) -> str:
        """The cluster database's URL; it holds no secret."""
        return self.cluster_database or f"sqlite:///{self.state_dir.resolve() / 'cluster.db'}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - not a source here
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - not a source here
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, environment, file; in this order."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, config_file())


def config_file() -> Path:
    """The file that is read, if it exists."""
    return Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_FILE)


def load(flags: Mapping[str, Any]) -> Settings:
    """The settings in force.

    Args:
        flags: by setting; None means not given.

    Raises:
        InvalidArgumentError: a setting is unknown or wrong, or the file cannot be read.
    """
    path = config_file()
    if os.environ.get(CONFIG_VARIABLE) and not path.is_file():
        raise InvalidArgumentError(
            f"the configuration file {path} does not exist",
            next_step=f"write it, or unset {CONFIG_VARIABLE}",
        )
    try:
        return Settings(**{key: value for key, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "listen"
        reason = "there is no such setting" if first["type"] == "extra_forbidden" else first["msg"]
        raise InvalidArgumentError(
            f"setting {name}: {reason.removeprefix('Value error, ')}",
            next_step=f"mend it in {path}, in TIDEGATE_{name.upper()} or in the flag;"
            " `tidegate config show --origin` says where each value is from",
        ) from None
    except (OSError, ValueError) as error:  # the file: unreadable, or not TOML
        raise InvalidArgumentError(
            f"the configuration file {path} cannot be read: {error}",
            next_step="mend it, or name another with TIDEGATE_CONFIG",
        ) from None


def origins(flags: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Each setting's value and where it is from: flag, env, file or default."""
    settings = load(flags)
    file = TomlConfigSettingsSource(Settings, config_file())()
    found: dict[str, tuple[Any, str]] = {}
    for name in Settings.model_fields:
        variable = f"TIDEGATE_{name.upper()}"
        if flags.get(name) is not None:
            origin = "flag"
        elif variable in os.environ:
            origin = f"env {variable}"
        elif name in file:
            origin = f"file {config_file()}"
        else:
            origin = "default"
        value = getattr(settings, name)
        found[name] = (str(value) if isinstance(value, Path) else value, origin)
    return found
