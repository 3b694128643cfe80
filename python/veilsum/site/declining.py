"""How a site says that it does not take part in a round, the first time and again."""

from __future__ import annotations

from collections.abc import Sequence

from veilsum.control import Decline, RoundId
from veilsum.site.effects import Note, SendToCoordinator, SiteEffect


def declined(round_id: RoundId, code: str, reason: str) -> list[SiteEffect]:
    """Says it to the coordinator and in the site's own log."""
    return [
        SendToCoordinator(Decline(round_id, code, reason)),
        Note(f"declined ({code}): {reason}"),
    ]


class LastWords:
    """What this site said when it last left or declined a round: a Decline, and the signed
    refusal before it, if there is one.

    It may have been lost with a connection. The coordinator then repeats its messages of that
    round, and is told the same once more.
    """

    def __init__(self) -> None:
        self._round: RoundId | None = None
        self._said: tuple[SendToCoordinator, ...] = ()

    def listen(self, effects: Sequence[SiteEffect]) -> None:
        """Keeps what is said in these effects, if the site leaves a round with them."""
        sends = [effect for effect in effects if isinstance(effect, SendToCoordinator)]
        if sends and isinstance(sends[-1].message, Decline):
            self._round = sends[-1].message.round
            self._said = tuple(sends)

    def about(self, round_id: RoundId) -> list[SiteEffect]:
        """The same once more; nothing if the site said nothing when it left that round."""
        return list(self._said) if round_id == self._round else []

    def to_a_message_of(self, round_id: RoundId) -> list[SiteEffect]:
        """The answer to a message of a round that this site is not in."""
        reason = "this site is not in that round"
        return self.about(round_id) or declined(round_id, "not_in_round", reason)
