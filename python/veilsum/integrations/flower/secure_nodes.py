"""The nodes of a Flower federation, as SecureFedAvg knows them."""

from __future__ import annotations

from dataclasses import dataclass, field

from veilsum.integrations.flower.secure_wire import Part
from veilsum.records import RoundId


@dataclass(eq=False)
class Node:
    """One node. What site it speaks for, a signature has shown.

    Attributes:
        site: "" before its hello, and once it is lost.
        nonce: of the hello that it was sent, until that is answered.
        session, number: of the frames that go back and forth.
        message_id: of the one message that it has not answered; None: it waits for the next.
        late: whether its round has gone on, so that its answer counts for nothing.
        resting: whether it answered with an error, and is asked again in the next phase.
        yielded: the site that another node has spoken for since; while it does, this one is not
            asked: both may reach one keeper, and would take its session from each other for ever.
        wants_model: the round whose model it has asked for.
        wants_turn: the round whose model it has, and for which it waits to train.
        outbox: what is to be said to it.
    """

    node_id: int
    site: str = ""
    nonce: bytes = b""
    session: bytes = b""
    number: int = 0
    message_id: str | None = None
    late: bool = False
    resting: bool = False
    yielded: str = ""
    wants_model: RoundId | None = None
    wants_turn: RoundId | None = None
    outbox: list[Part] = field(default_factory=list)

    def serve(self, part: Part) -> None:
        """Of each kind that it asks for it gets one, the last: a site awaits the last thing that it
        asked for, and one that asks for more would have the coordinator hold all of it."""
        self.outbox = [*(one for one in self.outbox if one.kind != part.kind), part]

    def answered(self) -> bool:
        """It waits for the next message; whether the answer counts for nothing."""
        late, self.late, self.message_id = self.late, False, None
        return late

    def lose(self) -> str:
        """Forgets who it is; the site that it spoke for."""
        site = self.site
        self.site, self.nonce, self.session, self.number = "", b"", b"", 0
        self.wants_model, self.wants_turn, self.outbox = None, None, []
        return site
