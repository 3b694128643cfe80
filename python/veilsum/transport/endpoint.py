"""Where a site finds the coordinator, and as whom it calls."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc.aio

from veilsum.pki.identity import Identity
from veilsum.roster import Roster
from veilsum.transport.callers import INSECURE_IDENTITY
from veilsum.transport.process import KEEPALIVE_OPTIONS
from veilsum.transport.settings import MESSAGE_LIMIT, RELAY_LIMIT
from veilsum.transport.tls_reload import ClientTls
from veilsum.transport.wire import INSTANCE_BYTES

OnSent: TypeAlias = Callable[[str, int, bytes], None]
"""Takes kind, bytes and SHA-256 of a message before it is handed to gRPC. Raises LedgerError
where it may not leave."""


def _not_listed(kind: str, size: int, digest: bytes) -> None:
    """Nobody keeps a list of what leaves."""


@dataclass(frozen=True)
class Endpoint:
    """Where the coordinator is and as whom to call it.

    Attributes:
        tls: None is the insecure mode.
        on_sent: called for every message, right before it leaves.
        instance: of this process: whoever calls with the same one is who called before.
    """

    address: str
    identity: Identity
    tls: ClientTls | None = field(repr=False)
    roster: Roster
    version: str
    on_sent: OnSent = field(default=_not_listed, repr=False)
    instance: bytes = field(default_factory=lambda: secrets.token_bytes(INSTANCE_BYTES))

    def channel(self) -> grpc.aio.Channel:
        """A fresh channel: one that failed may be stuck with the address it resolved."""
        options = [
            ("grpc.max_receive_message_length", RELAY_LIMIT),
            ("grpc.max_send_message_length", MESSAGE_LIMIT),
            # Without it, channels to one address share a connection and its back-off.
            ("grpc.use_local_subchannel_pool", 1),
            *KEEPALIVE_OPTIONS,
        ]
        if self.tls is None:
            return grpc.aio.insecure_channel(self.address, options=options)
        credentials = self.tls.credentials()
        return grpc.aio.secure_channel(self.address, credentials, options=options)

    def leaves(self, kind: str, message: bytes) -> None:
        """To be called right before a message is handed to gRPC.

        Raises:
            LedgerError: it must stay here.
        """
        self.on_sent(kind, len(message), hashlib.sha256(message).digest())

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Who calls, where no certificate says it."""
        return () if self.tls is not None else ((INSECURE_IDENTITY, self.identity.uri),)
