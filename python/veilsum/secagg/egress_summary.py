"""What a site says of all that left it: how much of which kind, and the head of the list of it.

The list itself, the egress ledger, stays with the site. Its head is a hash over all of it: a
site that has told its head to others cannot leave out or change a line of the list afterwards
without that showing when the list is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from veilsum.secagg.wire import DIGEST_BYTES


@dataclass(frozen=True, slots=True)
class Sent:
    """Messages of one kind that left.

    Attributes:
        kind: a protocol message's own kind, or "hello", "masked-update" and the like.
        messages: how many gRPC messages; an update leaves in several.
        size_bytes: of all of them, before TLS.
    """

    kind: str
    messages: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class EgressSummary:
    """All that left a site until now, or between two moments.

    Attributes:
        head: of the egress ledger at the end, 32 bytes.
        sent: sorted by kind; kinds of which nothing left are not in it.
    """

    head: bytes
    sent: tuple[Sent, ...] = ()

    def since(self, earlier: EgressSummary) -> EgressSummary:
        """What left after `earlier`, a summary of the same site's same process."""
        before = {one.kind: one for one in earlier.sent}
        return EgressSummary(self.head, tuple(_after(self.sent, before)))


def _after(sent: Iterable[Sent], before: dict[str, Sent]) -> Iterable[Sent]:
    for one in sent:
        past = before.get(one.kind, Sent(one.kind, 0, 0))
        if one.messages > past.messages:
            messages, size = one.messages - past.messages, one.size_bytes - past.size_bytes
            yield Sent(one.kind, messages, size)


Egress: TypeAlias = Callable[[], EgressSummary]
"""What left this site until now. Asked when a round opens and when it ends; see `since`."""


def no_egress() -> EgressSummary:
    """Of a site that keeps no egress ledger: a head of zeros, and nothing said."""
    return EgressSummary(bytes(DIGEST_BYTES))
