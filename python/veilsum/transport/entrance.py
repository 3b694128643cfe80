"""Who may call now: not while the coordinator starts or stops, and not with a certificate that is
revoked or over. What a certificate says is the gate's business (callers.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import grpc

from veilsum.pki.revoked_file import RevocationList
from veilsum.transport.callers import CallRefused, Certificate, Context, certificate_of

State = Literal["starting", "serving", "stopping"]

STOPPING = "the coordinator is stopping; what is under way goes on when it is back"

_TEXTS: dict[State, str] = {
    "starting": "the coordinator is starting and takes up what it was at",
    "stopping": STOPPING,
}
JOIN = "/veilsum.v1.Federation/Join"
UPLOAD = "/veilsum.v1.Federation/PushUpdate"
WATCH = "/veilsum.v1.Operator/WatchRun"

# gRPC's own services: health says how far we are. Looking does no harm either.
_ALWAYS = ("/grpc.",)
_LOOKING = frozenset(
    {
        "/veilsum.v1.Federation/PushStatus",
        "/veilsum.v1.Operator/GetRun",
        "/veilsum.v1.Operator/ListRuns",
    }
)


class Entrance:
    """Decides whether a call may begin, or go on.

    Attributes:
        state: of the coordinator.
        revoked: who is not to be believed.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.state: State = "starting"
        self.revoked = RevocationList()
        self._clock = clock
        self._joined: dict[str, Certificate] = {}

    def check(self, path: str, context: Context) -> None:
        """Lets a call begin.

        Args:
            path: "/<service>/<method>".

        Raises:
            CallRefused: PERMISSION_DENIED, the certificate is revoked; UNAUTHENTICATED, it is
                over; UNAVAILABLE, not now.
        """
        certificate = certificate_of(context)
        self.check_certificate(certificate)
        if certificate is not None and path == JOIN:
            self._joined[certificate.uri] = certificate
        if self.state == "serving" or path.startswith(_ALWAYS):
            return
        if self.state == "stopping" and path in _LOOKING:
            return
        raise CallRefused(grpc.StatusCode.UNAVAILABLE, _TEXTS[self.state])

    def revoked_members(self) -> frozenset[str]:
        """URIs of those that are revoked, and of those that joined last with a certificate that
        is."""
        joined = self._joined.items()
        return self.revoked.identities | {
            uri for uri, last in joined if self.revoked.names(uri, last.serial)
        }

    def check_certificate(self, certificate: Certificate | None) -> None:
        """Lets a call go on.

        Raises:
            CallRefused: as check.
        """
        if certificate is None:
            return
        if self.revoked.names(certificate.uri, certificate.serial):
            raise CallRefused(
                grpc.StatusCode.PERMISSION_DENIED,
                f"the certificate {certificate.serial:x} is revoked",
                hint="the consortium's authority issues another, if there is to be one",
            )
        if certificate.ends <= self._clock():
            raise CallRefused(
                grpc.StatusCode.UNAUTHENTICATED,
                f"the certificate {certificate.serial:x} is over",
                hint="ask the consortium's authority for a new one",
            )
