"""Signed refusals: a site's word, for the coordinator and for anyone else, that it left a round.

A refusal is a code and the text that belongs to it, nothing of the site's data and none of its
limits. It is signed only under a context that the site computed itself from an invitation whose
signature it had verified: who could have any context signed would have an oracle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Self

from veilsum.errors import DecodeError
from veilsum.roster import Roster
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.payload import Message, open_envelope
from veilsum.secagg.wire import Reader, Writer

_MAX_TEXT_BYTES = 256


class RefusalCode(IntEnum):
    """Why a site left. The numbers are on the wire: they stay, and new ones are appended."""

    MALFORMED = 1
    SUITE = 2
    ROSTER = 3
    EPOCH = 4
    NOT_INVITED = 5
    COHORT = 6
    CONTRIBUTORS = 7
    QUORUM = 8
    COLLUDERS = 9
    THRESHOLD = 10
    RING = 11
    WEIGHT_CAP = 12
    GENERATOR = 13
    TASK = 14
    REPLAY = 15
    ATTEMPTS = 16
    MODEL = 17
    SPENT = 18
    SURVIVORS = 19
    COHORT_DIFFERENCE = 20
    EQUIVOCATION = 21
    LEDGER = 22
    POLICY = 23
    KEYS = 24
    SHARES = 25
    VOTES = 26
    ORDER = 27
    RESULT = 28


TEXTS: Mapping[RefusalCode, str] = {
    RefusalCode.MALFORMED: "a message does not follow the format, or its signature is wrong",
    RefusalCode.SUITE: "the suite is not allowed here",
    RefusalCode.ROSTER: "the roster is another one",
    RefusalCode.EPOCH: "the roster's epoch is over",
    RefusalCode.NOT_INVITED: "this site is not in the cohort",
    RefusalCode.COHORT: "too few sites are invited",
    RefusalCode.CONTRIBUTORS: "too few updates may be in the sum",
    RefusalCode.QUORUM: "the vote quorum is too small",
    RefusalCode.COLLUDERS: "too few colluders are assumed",
    RefusalCode.THRESHOLD: "the share threshold does not protect",
    RefusalCode.RING: "the sum can leave its ring",
    RefusalCode.WEIGHT_CAP: "the weight cap is too large",
    RefusalCode.GENERATOR: "the generator of masks is not allowed here",
    RefusalCode.TASK: "the task is not allowed here",
    RefusalCode.REPLAY: "this site did that before",
    RefusalCode.ATTEMPTS: "the round was attempted too often",
    RefusalCode.MODEL: "the model is not the one this site computed",
    RefusalCode.SPENT: "this site's update left it before",
    RefusalCode.SURVIVORS: "the survivor set is not one to vote for",
    RefusalCode.COHORT_DIFFERENCE: "the survivor set differs too little from the last one",
    RefusalCode.EQUIVOCATION: "two different messages of one kind came",
    RefusalCode.LEDGER: "this site's ledger cannot be written",
    RefusalCode.POLICY: "the plan is outside of this site's policy",
    RefusalCode.KEYS: "the key adverts are not in order",
    RefusalCode.SHARES: "a dealt share is wrong",
    RefusalCode.VOTES: "the certificate does not hold",
    RefusalCode.ORDER: "a message came out of order",
    RefusalCode.RESULT: "the result of a round is not the one this site knows, or not acknowledged",
}
"""The whole vocabulary: a refusal says nothing else."""

_OF_NAME: Mapping[str, RefusalCode] = {
    "malformed": RefusalCode.MALFORMED,
    "not_invited": RefusalCode.NOT_INVITED,
    "policy": RefusalCode.POLICY,
    "replay": RefusalCode.REPLAY,
    "epoch": RefusalCode.EPOCH,
    "spent": RefusalCode.SPENT,
    "survivors": RefusalCode.SURVIVORS,
    "cohort_difference": RefusalCode.COHORT_DIFFERENCE,
    "equivocation": RefusalCode.EQUIVOCATION,
    "ledger": RefusalCode.LEDGER,
    "keys": RefusalCode.KEYS,
    "bad_share": RefusalCode.SHARES,
    "votes": RefusalCode.VOTES,
    "protocol": RefusalCode.ORDER,
    "model": RefusalCode.MODEL,
    "result": RefusalCode.RESULT,
}


def code_of(name: str) -> RefusalCode:
    """The number for the code of a Withdraw after an invitation was verified."""
    return _OF_NAME[name]


@dataclass(frozen=True, slots=True)
class Refuse(Message):
    """A site leaves the round, at whatever point. The text is the code's."""

    kind: ClassVar[str] = "refuse"
    code: RefusalCode

    def _write(self, writer: Writer) -> None:
        writer.integer(self.code, 2).text(TEXTS[self.code])

    @classmethod
    def _read(cls, context: bytes, sender: str, reader: Reader) -> Self:
        number = reader.integer(2, "the refusal's code")
        try:
            code = RefusalCode(number)
        except ValueError as error:
            raise DecodeError(f"no refusal has the code {number}") from error
        # Another text would not encode back to the same bytes, which read_payload refuses.
        reader.text(_MAX_TEXT_BYTES, "the refusal's text")
        return cls(context, sender, code)


def open_refusal(roster: Roster, site: str, context: bytes, refusal: bytes) -> RefusalCode:
    """Checks a refusal with nothing but the roster: it is evidence for anyone.

    Args:
        context: of the round and attempt (Plan.context), 32 bytes.

    Raises:
        ConfigError: the site is not in the roster.
        DecodeError: the site did not sign this in that round and attempt.
    """
    envelope, key = Envelope.from_bytes(refusal), roster.signing_key(site)
    return open_envelope(Refuse, envelope, key, sender=site, context=context).code
