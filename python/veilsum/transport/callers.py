"""Who calls: the identity behind a connection, and whether it may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import grpc
from cryptography import x509

from veilsum.errors import DecodeError, VeilsumError
from veilsum.pki.identity import Identity, parse_identity

INSECURE_IDENTITY = "veilsum-identity"
"""Metadata key in which a caller without TLS says who it is; read with --insecure only."""

_URI_PROPERTY = "peer_uri"
_PEM_PROPERTY = "x509_pem_cert"
_REMEMBERED = 4096  # certificates; one is read once, not with every call


class Context(Protocol):
    """What is used of grpc.aio.ServicerContext."""

    def auth_context(self) -> Mapping[str, Sequence[bytes]]: ...
    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]] | None: ...


class CallRefused(VeilsumError):  # noqa: N818  the answer, not a failure
    """A call that gets a status instead of an answer."""

    def __init__(self, status: grpc.StatusCode, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a caller showed in the handshake.

    Attributes:
        uri: whom it is for.
        serial: its number.
        ends: when it is not valid any more, seconds since 1970.
    """

    uri: str
    serial: int
    ends: float


def certificate_of(context: Context) -> Certificate | None:
    """The certificate behind a connection, which TLS has checked; None without TLS."""
    shown = context.auth_context()
    pem = shown.get(_PEM_PROPERTY, ())
    uris = shown.get(_URI_PROPERTY, ())
    if len(pem) != 1 or len(uris) != 1:
        return None  # the gate lets nobody in who has no identity or several
    return _certificate(pem[0], uris[0])


@lru_cache(_REMEMBERED)
def _certificate(pem: bytes, uri: bytes) -> Certificate:
    leaf = x509.load_pem_x509_certificate(pem)
    ends = leaf.not_valid_after_utc.timestamp()
    return Certificate(uri.decode("ascii", errors="replace"), leaf.serial_number, ends)


@dataclass(frozen=True, slots=True)
class Gate:
    """Decides by certificate, role and roster who may call what."""

    consortium: str
    sites: frozenset[str]
    insecure: bool

    def caller(self, context: Context, service: str) -> Identity:
        """Who calls a service.

        Raises:
            CallRefused: UNAUTHENTICATED without a usable identity; PERMISSION_DENIED for
                another consortium, a role that may not call the service, a site that is not
                in the roster.
        """
        identity = self._identity(context)
        if identity.consortium != self.consortium:
            raise CallRefused(
                grpc.StatusCode.PERMISSION_DENIED,
                f"this coordinator serves {self.consortium!r}, not {identity.consortium!r}",
            )
        if not identity.may_call(service):
            raise CallRefused(
                grpc.StatusCode.PERMISSION_DENIED,
                f"a certificate of the role {identity.role} may not call {service}",
            )
        if identity.role == "site" and identity.name not in self.sites:
            raise CallRefused(
                grpc.StatusCode.PERMISSION_DENIED,
                f"site {identity.name!r} is not in the roster",
                hint="a new member needs a new roster, the same at every member",
            )
        return identity

    def site(self, context: Context) -> str | None:
        """Which site of the roster calls, or None if somebody else does."""
        try:
            identity = self._identity(context)
        except CallRefused:
            return None
        known = identity.consortium == self.consortium and identity.name in self.sites
        return identity.name if known and identity.role == "site" else None

    def _identity(self, context: Context) -> Identity:
        uris = self._claimed(context) if self.insecure else self._certified(context)
        if len(uris) != 1:
            raise CallRefused(
                grpc.StatusCode.UNAUTHENTICATED,
                f"the caller must have one identity URI, it has {len(uris)}",
            )
        try:
            return parse_identity(uris[0])
        except DecodeError as error:
            raise CallRefused(grpc.StatusCode.UNAUTHENTICATED, str(error)) from error

    def _certified(self, context: Context) -> list[str]:
        found = context.auth_context().get(_URI_PROPERTY, ())
        return [uri.decode("ascii", errors="replace") for uri in found]

    def _claimed(self, context: Context) -> list[str]:
        metadata = context.invocation_metadata() or ()
        return [str(value) for key, value in metadata if key == INSECURE_IDENTITY]
