"""Who a certificate stands for, and what that role may call.

The name is one SAN URI, veilsum://<consortium>/<role>/<name>. Characters outside of
A-Z a-z 0-9 - . _ ~ in a member's name are percent-encoded in UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import quote, unquote

from veilsum.errors import ConfigError, DecodeError

Role = Literal["site", "operator", "coordinator", "relay"]
ROLES: tuple[Role, ...] = get_args(Role)

_COMMON_SERVICES = frozenset(
    {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
)
_MAY_CALL: Mapping[Role, frozenset[str]] = {
    "site": _COMMON_SERVICES | {"veilsum.v1.Federation"},
    "operator": _COMMON_SERVICES | {"veilsum.v1.Operator"},
    # Neither calls a coordinator in this version; both may ask whether it is alive.
    "coordinator": _COMMON_SERVICES,
    "relay": _COMMON_SERVICES,
}

_SCHEME = "veilsum://"
# The consortium is the host of the URI: host characters only, so that the authority's
# name constraint on it means the same to every TLS library.
_CONSORTIUM = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,62}[A-Za-z0-9])?", re.ASCII)
_MAX_NAME_BYTES = 64


@dataclass(frozen=True, slots=True)
class Identity:
    """A member of a consortium in one role.

    Raises:
        ConfigError: a part is malformed.
    """

    consortium: str
    role: Role
    name: str

    def __post_init__(self) -> None:
        if not _CONSORTIUM.fullmatch(self.consortium):
            raise ConfigError(
                "a consortium's name must be 1 to 64 of A-Z a-z 0-9 . - and begin and end "
                f"with a letter or digit, got {self.consortium!r}"
            )
        if self.role not in ROLES:
            raise ConfigError(f"a role must be one of {', '.join(ROLES)}, got {self.role!r}")
        if not 1 <= len(self.name.encode()) <= _MAX_NAME_BYTES or not self.name.isprintable():
            raise ConfigError(f"a name must be 1 to 64 printable bytes, got {self.name!r}")

    @property
    def uri(self) -> str:
        """The SAN URI; identities are equal if and only if these are."""
        return f"{_SCHEME}{self.consortium}/{self.role}/{quote(self.name, safe='')}"

    def may_call(self, service: str) -> bool:
        """Whether this role may call a gRPC service, named in full."""
        return service in _MAY_CALL[self.role]


def parse_identity(uri: str) -> Identity:
    """The identity that a SAN URI names.

    Raises:
        DecodeError: not such a URI, or not the one spelling that Identity.uri gives it.
    """
    parts = uri.removeprefix(_SCHEME).split("/")
    if not uri.startswith(_SCHEME) or len(parts) != 3:
        raise DecodeError(f"expected veilsum://<consortium>/<role>/<name>, got {uri[:200]!r}")
    consortium, role, name = parts
    try:
        # Identity itself refuses any other role; the cast would only hide that.
        identity = Identity(consortium, role, unquote(name, errors="strict"))  # type: ignore[arg-type]
        canonical = identity.uri
    except (ConfigError, UnicodeError) as error:
        raise DecodeError(f"the identity {uri[:200]!r} is malformed: {error}") from error
    if canonical != uri:
        raise DecodeError(f"the identity {uri[:200]!r} is not in its canonical spelling")
    return identity
