"""What a site is sent again when it comes back: the messages of its current round, in order."""

from __future__ import annotations

from veilsum.control import (
    ProtocolMessage,
    RoundClosed,
    RoundId,
    RoundOpened,
    RunClosed,
    SiteDropped,
    ToSite,
    Welcome,
)


class Outbox:
    """Of one site. Filled whether or not the site is connected.

    A message that was written to a connection may never have arrived, so each is kept until the
    round is over for the site. Then only how it ended is kept, up to the end of the next one:
    whoever was away must still learn whether its update counts.
    """

    def __init__(self) -> None:
        self._round: RoundId | None = None
        self._open = False
        self._messages: list[ToSite] = []

    @property
    def round(self) -> RoundId | None:
        """The round that the site was last invited to."""
        return self._round

    @property
    def messages(self) -> tuple[ToSite, ...]:
        """In the order they were sent."""
        return tuple(self._messages)

    def file(self, message: ToSite) -> None:
        """Keeps a message, if it belongs to the round that the site was last invited to."""
        match message:
            case RoundOpened(round_id):
                before = [] if self._open else self._messages
                self._round, self._open, self._messages = round_id, True, [*before, message]
            case ProtocolMessage(round_id):
                if self._open and round_id == self._round:
                    self._messages.append(message)
            case SiteDropped(round_id) | RoundClosed(round_id):
                # After a restart the end of a round may be all that is left of it.
                self._round = self._round or round_id
                if round_id == self._round:
                    self._end(message)
            case RunClosed(run_id):
                if self._round is not None and run_id == self._round.run_id:
                    self._end(message)
            case Welcome():
                pass

    def clear(self) -> None:
        """Whoever comes next was sent nothing yet."""
        self._round, self._open, self._messages = None, False, []

    def _end(self, message: ToSite) -> None:
        if self._open:
            self._open, self._messages = False, []
        self._messages.append(message)
