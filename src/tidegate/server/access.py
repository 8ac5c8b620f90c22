"""Who may do what: three roles, each of which may do what the one before may, and more.

Decides the roles and how a route says which one it needs. It knows neither tokens nor resources.

* ``read``: look at everything but tokens, the audit log and backups; follow routes as a router.
* ``operate``: move and switch: workflows, comparisons, upgrades, the topology without endpoints.
* ``admin``: everything; what names secrets, programs, members and tokens needs it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from fastapi import Security
from fastapi.security import HTTPBearer

from tidegate.errors import ForbiddenError

if TYPE_CHECKING:
    from starlette.types import Scope


class AccessRole(StrEnum):
    """What the holder of a token may do."""

    READ = "read"
    OPERATE = "operate"
    ADMIN = "admin"

    def covers(self, needed: AccessRole) -> bool:
        """Whether this role may do what ``needed`` may."""
        order = list(AccessRole)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the name of a token, and its role.

    Attributes:
        origin: the address the request came from.
    """

    name: str
    role: AccessRole
    origin: str = ""

    def check(self, needed: AccessRole) -> None:
        """Refuse what the role may not do.

        Raises:
            ForbiddenError: naming the role that is needed.
        """
        if not self.role.covers(needed):
            raise ForbiddenError(
                f"this needs a token with the role {needed}; {self.name} has {self.role}",
                next_step=f"ask an admin for one: tidegate token create NAME --role {needed}",
                needs=needed.value,
                role=self.role.value,
            )


SCHEME: Final = HTTPBearer(
    auto_error=False, scheme_name="token", description="An API token: `tidegate token create`."
)


def _needs(role: AccessRole) -> Any:
    return Security(SCHEME, scopes=[role.value])


READ: Final = _needs(AccessRole.READ)
OPERATE: Final = _needs(AccessRole.OPERATE)
ADMIN: Final = _needs(AccessRole.ADMIN)


def role_of(dependencies: list[Any]) -> AccessRole | None:
    """The role a route declares; None for one that needs no token."""
    found = [scope for each in dependencies for scope in getattr(each, "scopes", None) or ()]
    return AccessRole(found[0]) if found else None


CALLER_STATE: Final = "caller"


def caller_of(scope: Scope) -> Caller:
    """Who asks, as the gate found out."""
    found: Caller = scope["state"][CALLER_STATE]
    return found


def told(caller: Caller) -> bytes:
    """A caller as one member tells another one."""
    return json.dumps([caller.name, caller.role, caller.origin]).encode()


def heard(text: str | None, member: str) -> Caller:
    """Inverse of :func:`told`; members before it had tokens that may do everything."""
    if text is None:
        return Caller(f"member {member}", AccessRole.ADMIN)
    name, role, origin = json.loads(text)
    return Caller(name, AccessRole(role), origin)
