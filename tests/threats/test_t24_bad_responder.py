"""T24: a site returns another share than it was dealt."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from support.faults import aborted, accused, left_out, wrong_answer
from support.secagg import NAMES, Federation, make_plan, read, seal
from veilsum import secagg
from veilsum.secagg import unmask
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import ShareDeal
from veilsum.secagg.papers import read_digests, write_digests

SITES = NAMES[:5]
BAD = SITES[1]
DEALER = SITES[3]


def answered_badly() -> Federation:
    federation = Federation(make_plan(5, colluders=1, share_threshold=3))
    answer = federation.hold("unmask-shares", origin=BAD)
    federation.deliver(BAD, "", wrong_answer(answer, DEALER))
    federation.run()
    return federation


def test_shares_that_are_not_held_against_their_commitments_spoil_the_round(monkeypatch):
    monkeypatch.setattr(unmask, "check_shares", lambda *args, **shares: None)
    federation = Federation(make_plan(5, colluders=1))  # every one of four answers is needed
    federation.from_coordinator(federation.coordinator.lost(SITES[4], "is gone"))
    answer = federation.hold("unmask-shares", origin=BAD)
    federation.deliver(BAD, "", wrong_answer(answer, DEALER))
    federation.run()

    assert f"site {DEALER!r} shared another secret" in aborted(federation)
    # Of shares that nobody verified the honest dealer is not convicted all the same.
    assert accused(federation) == set()


def test_the_responder_is_accused_and_the_round_completes():
    federation = answered_badly()

    assert federation.result.sites == SITES
    assert accused(federation) == {(BAD, "WRONG_SHARE")}
    assert left_out(federation) == {BAD}
    assert f"site {DEALER!r} dealt to it" in federation.excluded[BAD]


@pytest.mark.parametrize("dropped", [False, True])
def test_shares_of_dropouts_are_held_against_their_commitments_as_well(dropped):
    federation = Federation(make_plan(5, colluders=1, share_threshold=3))
    if dropped:
        federation.hold("masked-input", origin=DEALER)
        federation.from_coordinator(federation.coordinator.lost(DEALER, "is gone"))
    answer = federation.hold("unmask-shares", origin=BAD)
    federation.deliver(BAD, "", wrong_answer(answer, DEALER))
    federation.run()

    assert (DEALER in federation.result.sites) != dropped
    assert accused(federation) == {(BAD, "WRONG_SHARE")}


# --- evidence against an honest responder, by a dealer that signs a second root ------------


def evidence_of(federation: Federation) -> secagg.Evidence:
    (blamed,) = [e for e in federation.coordinator_effects if isinstance(e, secagg.Blamed)]
    return secagg.Evidence.from_bytes(blamed.evidence)


def shows(evidence: secagg.Evidence) -> secagg.Verdict:
    return secagg.check_evidence(evidence.to_bytes(), make_plan(5).roster)


def test_a_dealer_that_signs_another_root_afterwards_convicts_nobody():
    """The evidence of a real case, the honest answer put in, and a root under which it is wrong."""
    federation = answered_badly()
    evidence = evidence_of(federation)
    honest = next(
        message
        for origin, _, message in federation.sent
        if origin == BAD and isinstance(message, bytes) and b"unmask-shares" in message[:30]
    )
    header, _ = evidence.envelopes
    adverts, deals, inputs, entry, name = evidence.papers
    wrong = bytes(32) + entry[32:]
    leaf = hashlib.sha256(b"\0" + wrong[:96]).digest()
    # The forger deals to three sites only, which makes a tree it can choose freely.
    second = Envelope.from_bytes(
        seal(replace(read(ShareDeal, header.to_bytes()), root=_root_over(leaf, wrong[96:])))
    )
    forged_deals = _with(deals, DEALER, second.payload_digest)

    answer = Envelope.from_bytes(honest)
    cases = {
        "the dealer's root is not the one of the round": (adverts, deals, inputs, wrong, name),
        "another view of the round": (adverts, forged_deals, inputs, wrong, name),
    }
    for reason, papers in cases.items():
        verdict = shows(replace(evidence, envelopes=(second, answer), papers=papers))
        assert isinstance(verdict, secagg.Invalid)
        assert reason in verdict.reason
    assert isinstance(shows(replace(evidence, envelopes=(header, answer))), secagg.Invalid)


def _root_over(leaf: bytes, proof_paper: bytes) -> bytes:
    """Of five leaves, for the second one, with the proof that is in the paper."""
    nodes = [proof_paper[2 + at : 34 + at] for at in range(0, len(proof_paper) - 2, 32)]
    first, pair, last = nodes
    node = lambda left, right: hashlib.sha256(b"\1" + left + right).digest()  # noqa: E731
    return node(node(node(first, leaf), pair), last)


def _with(paper: bytes, site: str, digest: bytes) -> bytes:
    return write_digests(read_digests(paper) | {site: digest})
