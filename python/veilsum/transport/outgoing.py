"""What a site does about a message that is to leave: a record in its ledger, a line in its log."""

from __future__ import annotations

from veilsum.control import (
    Decline,
    Goodbye,
    Hello,
    Progress,
    ProtocolMessage,
    ToCoordinator,
    UpdateHeader,
)
from veilsum.secagg.egress_summary import EgressSummary, no_egress
from veilsum.secagg.messages import kind_of_message
from veilsum.transport.egress_file import PIECES, EgressFile
from veilsum.transport.logs import Log


def update_kind(header: UpdateHeader) -> str:
    """The kind of message that an update leaves as."""
    return "masked-update" if header.masked_header else "plain-update"


def message_kind(message: ToCoordinator) -> str:
    """The kind of message that this leaves as."""
    match message:
        case ProtocolMessage(_, payload):
            return kind_of_message(payload)
        case Hello():
            return "hello"
        case Decline():
            return "decline"
        case Progress():
            return "progress"
        case Goodbye():
            return "goodbye"


class Outgoing:
    """Takes what Endpoint.on_sent is told.

    Args:
        file: None: the site keeps no list.
    """

    def __init__(self, file: EgressFile | None, log: Log) -> None:
        self._file = file
        self._log = log
        self._pieces = 0

    def leaves(self, kind: str, size_bytes: int, digest: bytes) -> None:
        """Raises:
        LedgerError: the message must stay.
        """
        if self._file is not None:
            self._file.append(kind, size_bytes, digest)
        if kind in PIECES:
            self._pieces += size_bytes
        else:
            self._log.info("sent", kind=kind, bytes=size_bytes)

    def upload_ended(self, kind: str) -> None:
        """One line of the log for all the pieces of an upload, however it ended."""
        pieces, self._pieces = self._pieces, 0
        self._log.info("sent", kind=kind, bytes=pieces)

    def summary(self) -> EgressSummary:
        """What left until now."""
        return no_egress() if self._file is None else self._file.summary()
