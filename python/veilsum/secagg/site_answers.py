"""What a site says, under its signature; and what it says again when it is asked again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from veilsum.errors import ConfigError
from veilsum.roster import Roster
from veilsum.secagg.blame import against_coordinator
from veilsum.secagg.effects import Blamed, Send, SiteEffect
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import (
    KeyRoster,
    RoundOpen,
    ShareRelay,
    SurvivorCertificate,
    SurvivorProposal,
)
from veilsum.secagg.payload import COORDINATOR, Message, open_envelope
from veilsum.secagg.plan import Plan
from veilsum.secagg.result_messages import RoundResult
from veilsum.secagg.site_checks import check_same_attempt, open_plan

_Message = TypeVar("_Message", bound=Message)

_ANSWERED: Mapping[str, type[Message]] = {
    message.kind: message
    for message in (KeyRoster, ShareRelay, SurvivorProposal, SurvivorCertificate, RoundResult)
}
"""What the coordinator sends after the invitation, by type."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a message of the coordinator was answered with, to answer a repeat alike."""

    message: Envelope
    sends: tuple[Send, ...]


@dataclass(frozen=True, slots=True)
class Signer:
    """A site's name and signing key."""

    site: str
    key: Ed25519PrivateKey

    @classmethod
    def of_roster(cls, roster: Roster, site: str, key: Ed25519PrivateKey) -> Signer:
        """Raises:
        ConfigError: the key is not the one the roster lists for this site.
        """
        if key.public_key().public_bytes_raw() != roster.signing_key(site):
            raise ConfigError(
                f"the signing key is not the one the roster lists for site {site!r}",
                hint="point the site at the key its roster entry was made from",
            )
        return cls(site, key)

    def seal(self, message: Message) -> Envelope:
        """The message under the site's signature."""
        return Envelope.sign(message.kind, message.to_payload(), self.key)


def open_message(kind: type[_Message], roster: Roster, plan: Plan, envelope: Envelope) -> _Message:
    """A message of the coordinator in this attempt.

    Raises:
        DecodeError: it is not one.
    """
    return open_envelope(
        kind, envelope, roster.coordinator_key, sender=COORDINATOR, context=plan.context
    )


def check_is_of_this_attempt(roster: Roster, plan: Plan, kind: str, envelope: Envelope) -> None:
    """Whether the coordinator signed a second message of a kind in the attempt at hand. Until that
    is verified it says nothing about the coordinator: anybody on the way could have made it.

    Raises:
        DecodeError, Refusal: it did not.
    """
    if kind == RoundOpen.kind:
        check_same_attempt(plan, open_plan(roster, envelope)[0])
    else:
        open_message(_ANSWERED[kind], roster, plan, envelope)


def shown_by(plan: Plan | None, answers: Mapping[str, Answer], message: bytes) -> list[SiteEffect]:
    """What a message that the site refused shows of the coordinator, with what it answered."""
    earlier = {kind: answer.message for kind, answer in answers.items()}
    papers = against_coordinator(plan, earlier, message)
    return [Blamed(one.accused, one.fault, one.to_bytes()) for one in papers]
