"""A round that is finished is kept, whatever becomes of its acknowledgements."""

from __future__ import annotations

import pytest

from support.federation import Fault, Federation, small_model
from veilsum import secagg
from veilsum.control import Deadlines, ProtocolMessage, RoundClosed, RoundOpened, RunSpec, RunStatus
from veilsum.coordinator.effects import Announce, SaveReceipt, SaveRound, SendToSite
from veilsum.coordinator.events import RunAbortRequested, SiteJoined
from veilsum.errors import DeviceError
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import RoundOpen, kind_of_message
from veilsum.secagg.payload import read_payload
from veilsum.secagg.receipt import check_chain, check_receipt
from veilsum.secagg.result_checks import open_link

SITES = ("basel", "kyoto", "lyon", "oslo", "quito")  # with one helper, q = 4
DEADLINES = Deadlines(acks_s=50.0)


def spec(rounds: int = 2) -> RunSpec:
    return RunSpec("task", rounds=rounds, colluders=1, clip=0.5, weight_cap=64, deadlines=DEADLINES)


def run(federation: Federation, settings: RunSpec) -> RunStatus:
    federation.submit("run", settings, small_model())
    return federation.run("run")


def silent(*sites: str, round_number: int = 1) -> dict[str, Fault]:
    return {site: Fault(round_number, "acks", silent=True) for site in sites}


def until_acks(federation: Federation) -> None:
    federation.submit("run", spec(), small_model())
    while federation.coordinator.status("run").phase != "acks":
        assert federation.step()


def test_the_round_is_saved_before_any_site_is_told_of_its_result() -> None:
    federation = Federation(SITES)
    run(federation, spec(rounds=1))

    kinds = []
    for effect in federation.effects:
        match effect:
            case SaveRound():
                kinds.append("saved")
            case SendToSite(_, ProtocolMessage(_, payload)):
                kinds.append(kind_of_message(payload))
            case SendToSite(_, RoundClosed()):
                kinds.append("closed")
    assert kinds[-11:] == ["saved", *["round-result"] * 5, *["closed"] * 5]


def test_a_quorum_of_acknowledgements_is_enough_for_the_next_round() -> None:
    federation = Federation(SITES, faults=silent("lyon"))
    before = federation.clock

    status = run(federation, spec())

    assert status.state == "completed"
    assert [record.sites for record in status.rounds] == [SITES, SITES]
    assert federation.clock - before > DEADLINES.acks_s  # it was waited for
    opened = [
        effect.message.open_message
        for effect in federation.effects
        if isinstance(effect, SendToSite) and isinstance(effect.message, RoundOpened)
    ]
    first, last = (
        read_payload(RoundOpen, Envelope.from_bytes(message).payload, context=None)
        for message in (opened[0], opened[-1])
    )
    assert first.previous is None
    link = open_link(federation.roster, last.previous)
    assert tuple(link.acks) == ("basel", "kyoto", "oslo", "quito")
    assert link.result.model_hash.hex() == status.rounds[0].model_hash


def test_without_a_quorum_the_round_stays_and_the_run_ends() -> None:
    federation = Federation(SITES, faults=silent("lyon", "oslo"))

    status = run(federation, spec())

    reason = "round 1: 3 sites acknowledged its result, 4 are needed for a next round"
    assert (status.state, status.reason) == ("aborted", reason)
    (record,) = status.rounds
    assert record.completed
    assert len(federation.saved_models("run")) == 1
    closed = [
        effect.message.completed
        for effect in federation.effects
        if isinstance(effect, SendToSite) and isinstance(effect.message, RoundClosed)
    ]
    assert closed == [True] * 5


def test_the_last_round_of_a_run_needs_no_quorum_and_says_if_there_was_none() -> None:
    federation = Federation(SITES, faults=silent("basel", "kyoto", "lyon", "oslo", "quito"))

    status = run(federation, spec(rounds=1))

    reason = "round 1: 0 sites acknowledged its result, 4 are needed for a next round"
    assert (status.state, status.reason) == ("completed", reason)


def test_a_result_that_cannot_be_published_ends_the_run_and_the_round_stays(monkeypatch) -> None:
    def fails(*_: object) -> None:
        raise DeviceError("the device is gone")

    monkeypatch.setattr(secagg.CoordinatorSession, "publish", fails)
    federation = Federation(SITES)

    status = run(federation, spec())

    reason = "round 1: its result was not published: the device is gone"
    assert (status.state, status.reason) == ("aborted", reason)
    assert [record.completed for record in status.rounds] == [True]
    assert len(federation.saved_models("run")) == 1


@pytest.mark.parametrize("gone", [True, False])
def test_a_site_that_starts_anew_before_its_acknowledgement_takes_part_in_the_next_round(
    gone: bool,
) -> None:
    federation = Federation(SITES)
    until_acks(federation)
    if gone:
        federation.disconnect("lyon")
    federation.connect("lyon")

    status = federation.run("run")

    assert status.state == "completed"
    assert [record.sites for record in status.rounds] == [SITES, SITES]


def test_an_operator_who_aborts_meanwhile_ends_the_run_after_the_round() -> None:
    federation = Federation(SITES)
    until_acks(federation)

    effects = federation.tell(RunAbortRequested("run", "enough"))

    status = federation.coordinator.status("run")
    assert (status.state, status.reason) == ("aborted", "enough")
    assert [record.completed for record in status.rounds] == [True]
    events = [effect.event for effect in effects if isinstance(effect, Announce)]
    assert [(event.kind, event.detail) for event in events][-2:] == [
        ("round", "completed"),
        ("run", "aborted: enough"),
    ]
    (saved,) = [effect for effect in federation.effects if isinstance(effect, SaveReceipt)]
    assert check_receipt(saved.receipt, federation.roster).last.acks == {}


def test_every_masked_round_leaves_a_receipt_and_together_they_are_a_chain() -> None:
    federation = Federation(SITES, faults={"lyon": Fault(2, "inputs")})

    status = run(federation, spec(rounds=3))

    assert status.state == "completed"
    saved = [effect for effect in federation.effects if isinstance(effect, SaveReceipt)]
    chain = check_chain([effect.receipt for effect in saved], federation.roster)
    assert [effect.round for effect in saved] == [record.round for record in status.rounds]
    assert [facts.survivors for facts in chain] == [record.sites for record in status.rounds]
    assert [facts.parts.difference for facts in chain] == [None, 1, 0]
    for facts, record in zip(chain, status.rounds, strict=True):
        assert facts.last.result.mean_digest.hex() == record.digest
        assert facts.last.result.model_hash.hex() == record.model_hash
        assert facts.last.result.total_weight == record.total_weight


def test_a_site_that_joins_meanwhile_waits_for_the_next_round() -> None:
    federation = Federation(SITES, faults={"quito": Fault(1, "keys")})
    federation.submit("run", spec(), small_model())
    while federation.coordinator.status("run").phase != "acks":
        assert federation.step()
    federation.sites["quito"].connected = True

    assert federation.tell(SiteJoined("quito")) == []
    status = federation.run("run")

    assert [record.sites for record in status.rounds] == [SITES[:4], SITES]
