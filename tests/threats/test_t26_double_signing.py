"""T26: a party signs two different messages where there is one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.faults import accused, forged_from, left_out
from support.secagg import NAMES, UPLOAD, Federation, consortium, make_plan, read, seal
from veilsum import secagg
from veilsum._native import Secret
from veilsum.errors import PeerError
from veilsum.secagg import accusing
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.evidence import Evidence, Fault
from veilsum.secagg.messages import (
    InputHeader,
    KeyAdvert,
    KeyRoster,
    RoundOpen,
    ShareRelay,
    SurvivorCertificate,
    SurvivorProposal,
    SurvivorVote,
    UnmaskShares,
)

SITES = NAMES[:5]
BAD = SITES[2]
SECOND = {
    "key-advert": (KeyAdvert, {"self_commitment": bytes(32)}),
    "survivor-vote": (SurvivorVote, {"t3": bytes(32)}),
    "unmask-shares": (UnmaskShares, {"t3": bytes(32)}),
}


def federation() -> Federation:
    return Federation(make_plan(5, colluders=1, share_threshold=3))


def twice(kind: str) -> Federation:
    made = federation()
    message = made.hold(kind, origin=BAD)
    made.deliver(BAD, "", message)
    made.deliver(BAD, "", message)  # a repeat is none
    assert accused(made) == set()
    of, changes = SECOND[kind]
    made.deliver(BAD, "", forged_from(message, of, **changes).to_bytes())
    made.run()
    return made


@pytest.mark.parametrize("kind", SECOND)
def test_without_a_memory_of_what_was_signed_nothing_is_shown(kind, monkeypatch):
    monkeypatch.setattr(accusing.Accuser, "took", lambda self, site, message: None)

    assert accused(twice(kind)) == set()


@pytest.mark.parametrize("kind", SECOND)
def test_the_first_counts_and_both_are_kept(kind):
    made = twice(kind)

    assert accused(made) == {(BAD, "DOUBLE_SIGNED")}
    assert left_out(made) == {BAD}
    assert "different messages" in made.excluded[BAD] or "has no part" in made.excluded[BAD]
    if kind != "key-advert":
        assert BAD in made.result.sites  # its update came before
        assert len(made.result.sites) == 5


def test_two_headers_of_an_upload_are_two_updates_under_the_same_masks():
    made = federation()
    upload = made.hold(UPLOAD, origin=BAD)
    second = seal(replace(read(InputHeader, upload.header), root=bytes(32)))
    made.coordinator.input_receiver(BAD, upload.header, upload.update_id)  # not one chunk yet

    for _ in range(3):
        with pytest.raises(PeerError, match="signed two different headers"):
            made.coordinator.input_receiver(BAD, second, upload.update_id)
    made.deliver(BAD, "", upload)
    made.run()

    assert accused(made) == {(BAD, "DOUBLE_SIGNED")}
    assert [type(e) for e in made.coordinator_effects].count(secagg.Blamed) == 1
    assert made.result.sites == SITES  # the first header counts


def test_a_late_second_header_is_noticed_too():
    made = federation()
    upload = made.hold(UPLOAD, origin=BAD)
    made.deliver(BAD, "", upload)
    made.hold("survivor-vote", origin=SITES[0])
    second = seal(replace(read(InputHeader, upload.header), root=bytes(32)))

    with pytest.raises(PeerError, match="signed two different headers"):
        made.coordinator.input_receiver(BAD, second, upload.update_id)
    made.from_coordinator(made.coordinator.abort("enough"))

    assert accused(made) == {(BAD, "DOUBLE_SIGNED")}


# --- the coordinator ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["key-roster", "survivor-proposal"])
def test_a_site_keeps_evidence_of_a_coordinator_that_says_two_things(kind):
    of = {"key-roster": KeyRoster, "survivor-proposal": SurvivorProposal}[kind]
    made = federation()
    message = made.hold(kind, to=BAD)
    made.deliver("", BAD, message)
    shorter = {"key-roster": "adverts", "survivor-proposal": "survivors"}[kind]
    second = forged_from(message, of, **{shorter: getattr(read(of, message), shorter)[1:]})

    made.deliver("", BAD, second.to_bytes())

    assert accused(made) == {("", "DOUBLE_SIGNED")}
    assert made.sites[BAD].phase == "withdrawn"


def test_two_plans_for_one_attempt_are_evidence_and_plans_for_two_attempts_are_not():
    made = federation()
    made.deliver("", BAD, made.hold("round-open", to=BAD))
    second = make_plan(5, colluders=1, share_threshold=3, nonce=b"\1" * 32)

    made.deliver("", BAD, seal(RoundOpen(second.context, "", second.to_bytes())))

    assert accused(made) == {("", "DOUBLE_SIGNED")}
    first = made.plan
    for other in (make_plan(5, attempt=1), make_plan(5, round_number=2), make_plan(5, run_id="b")):
        pair = tuple(
            Envelope.from_bytes(seal(RoundOpen(p.context, "", p.to_bytes())))
            for p in (first, other)
        )
        evidence = Evidence(Fault.DOUBLE_SIGNED, "", first.to_bytes(), pair)
        assert isinstance(shown(evidence), secagg.Invalid)


def shown(evidence: Evidence) -> secagg.Verdict:
    return secagg.check_evidence(evidence.to_bytes(), consortium().roster)


def test_an_honest_coordinator_relays_different_boxes_and_may_name_different_votes():
    made = federation()
    made.run()
    of_kind = {
        kind: [
            Envelope.from_bytes(message)
            for origin, _, message in made.sent
            if not origin and kind.kind.encode() in message[:40]
        ]
        for kind in (ShareRelay, SurvivorCertificate)
    }
    certificate = of_kind[SurvivorCertificate][0]
    fewer = read(SurvivorCertificate, certificate.to_bytes())
    second = Envelope.from_bytes(seal(replace(fewer, votes=fewer.votes[1:])))
    for pair in (of_kind[ShareRelay][:2], [certificate, second]):
        evidence = Evidence(Fault.DOUBLE_SIGNED, "", made.plan.to_bytes(), tuple(pair))
        assert isinstance(shown(evidence), secagg.Invalid)


def test_a_second_message_that_someone_else_made_shows_nothing():
    """Anybody on the way could make it, and would have the site accused."""
    made = federation()
    message = made.hold("survivor-vote", origin=BAD)
    made.deliver(BAD, "", message)
    forged = seal(replace(read(SurvivorVote, message), t3=bytes(32)), signer=SITES[0])

    made.deliver(BAD, "", forged)

    assert accused(made) == set()


# --- a restart ----------------------------------------------------------------------------


class Forgetful(secagg.Ledger):
    """The defence removed."""

    def __init__(self) -> None:
        super().__init__(Secret.zeros(32), lambda record: None)

    def remember(self, record: object) -> None:
        """Forgets at once."""


@pytest.mark.parametrize("ledger", [Forgetful(), secagg.Ledger.in_memory(Secret.from_os)])
def test_an_honest_site_that_crashed_after_its_advert_does_not_sign_a_second_one(ledger):
    """It would, and be convicted, if it had forgotten that it was there before."""
    plan = make_plan(5, colluders=1)
    opened = seal(RoundOpen(plan.context, "", plan.to_bytes()))
    adverts = []
    for number in range(2):  # two processes, one ledger

        def entropy(size: int, number: int = number) -> Secret:
            return Secret.from_bytes(bytes([number + 1]) * size)

        session = secagg.SiteSession(
            site=BAD,
            signing_key=consortium().site_keys[BAD],
            roster=plan.roster,
            policy=secagg.LocalPolicy(min_colluders=1),
            entropy=entropy,
            ledger=ledger,
        )
        adverts += [e.message for e in session.handle(opened) if isinstance(e, secagg.Send)]

    if isinstance(ledger, Forgetful):
        pair = tuple(Envelope.from_bytes(advert) for advert in adverts)
        evidence = Evidence(Fault.DOUBLE_SIGNED, BAD, plan.to_bytes(), pair)
        assert shown(evidence) == secagg.Guilty(BAD, Fault.DOUBLE_SIGNED)
    else:
        assert len(adverts) == 1
