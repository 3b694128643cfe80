"""Where secrets are, how long, and that they show nowhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from support.secagg import UPLOAD, Federation, forge, make_plan, read
from veilsum import secagg
from veilsum._native import Secret
from veilsum.errors import PeerError
from veilsum.secagg import keys
from veilsum.secagg.messages import SealedDeal, SurvivorProposal

VICTIM, PEER = "basel", "kyoto"

# The message after which the victim is in the phase, and what it holds then.
PHASES = {
    "keys": "key-roster",
    "shares": "share-relay",
    "votes": "survivor-proposal",
    "unmask": "survivor-certificate",
}


def secrets_in(value: object) -> Iterator[Secret]:
    """Every Secret reachable from a phase."""
    if isinstance(value, Secret):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from secrets_in(getattr(value, field.name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from secrets_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from secrets_in(item)


def held_by(session: object) -> list[Secret]:
    return list(secrets_in(session._phase))  # type: ignore[attr-defined]


def at_phase(phase: str) -> tuple[Federation, secagg.SiteSession]:
    """A round stopped when the victim is in this phase."""
    federation = Federation(make_plan(4))
    if phase == "inputs":
        federation.contribute = lambda site: []  # type: ignore[method-assign]
        federation.run()
    else:
        federation.hold(PHASES[phase], to=VICTIM)
    session = federation.sites[VICTIM]
    assert session.phase == phase
    return federation, session


@pytest.mark.parametrize("phase", [*PHASES, "inputs"])
def test_closing_a_session_wipes_what_it_holds(phase):
    _, session = at_phase(phase)
    held = held_by(session)
    assert held
    assert not any(secret.wiped for secret in held)

    session.close()
    session.close()

    assert all(secret.wiped for secret in held)
    assert held_by(session) == []
    assert session.phase == "closed"


@pytest.mark.parametrize("phase", [*PHASES, "inputs"])
def test_withdrawing_wipes_what_the_session_holds(phase):
    _, session = at_phase(phase)
    held = held_by(session)

    (effect,) = session.handle(b"not a message")

    assert isinstance(effect, secagg.Withdraw)
    assert all(secret.wiped for secret in held)
    assert held_by(session) == []


def test_own_secrets_are_wiped_as_soon_as_the_masks_are_derived():
    """But for the channel key, which may have to answer a complaint: it goes with the mask keys."""
    federation = Federation(make_plan(4))
    relay = federation.hold("share-relay", to=VICTIM)
    session = federation.sites[VICTIM]
    own = held_by(session)
    channel = session._phase.secrets.channel_private
    assert len(own) == 4

    session.handle(relay)

    assert [secret for secret in own if not secret.wiped] == [channel]
    Federation.contribute(federation, VICTIM)
    assert channel.wiped


def test_the_channel_key_is_wiped_where_the_round_goes_on_without_the_update():
    _, session = at_phase("inputs")
    channel = session._phase.channel.private
    proposal = Federation(make_plan(4)).hold("survivor-proposal", to=VICTIM)
    survivors = tuple(one for one in read(SurvivorProposal, proposal).survivors if one[0] != VICTIM)

    session.handle(forge(SurvivorProposal, proposal, t2=session._phase.t2, survivors=survivors))

    assert channel.wiped


def test_mask_keys_are_wiped_as_soon_as_the_update_is_masked():
    federation, session = at_phase("inputs")
    masks = list(session._phase.masks.keys)
    assert len(masks) == 4

    Federation.contribute(federation, VICTIM)

    assert all(secret.wiped for secret in masks)


def test_mask_keys_are_wiped_where_the_round_goes_on_without_the_update():
    _, session = at_phase("inputs")
    proposal = Federation(make_plan(4)).hold("survivor-proposal", to=VICTIM)
    survivors = tuple(one for one in read(SurvivorProposal, proposal).survivors if one[0] != VICTIM)
    masks = list(session._phase.masks.keys)

    (vote,) = session.handle(
        forge(SurvivorProposal, proposal, t2=session._phase.t2, survivors=survivors)
    )

    assert isinstance(vote, secagg.Send)
    assert all(secret.wiped for secret in masks)


def test_shares_are_wiped_once_they_are_returned():
    federation = Federation(make_plan(4))
    certificate = federation.hold("survivor-certificate", to=VICTIM)
    session = federation.sites[VICTIM]
    shares = held_by(session)
    assert len(shares) == 8

    session.handle(certificate)

    assert session.phase == "result"
    assert held_by(session) == []
    assert all(secret.wiped for secret in shares)


def test_the_coordinator_holds_no_secret_before_the_unmask_shares_and_none_afterwards():
    federation = Federation(make_plan(4))
    for kind in ("key-advert", "share-deal", UPLOAD, "survivor-vote"):
        message = federation.hold(kind, origin=PEER)
        assert held_by(federation.coordinator) == []
        federation.deliver(PEER, "", message)

    last = federation.hold("unmask-shares", origin="oslo")
    shares = held_by(federation.coordinator)
    assert len(shares) == 3 * 4
    federation.deliver("oslo", "", last)

    assert federation.result.sites == federation.plan.cohort
    assert all(secret.wiped for secret in shares)
    assert held_by(federation.coordinator) == []


def test_an_abort_in_the_unmask_phase_wipes_the_shares():
    federation = Federation(make_plan(4))
    federation.hold("unmask-shares", origin="oslo")
    shares = held_by(federation.coordinator)

    (effect,) = federation.coordinator.abort("the operator stopped the run")

    assert effect == secagg.Aborted("the operator stopped the run")
    assert shares
    assert all(secret.wiped for secret in shares)


def test_fresh_bytes_are_wiped_once_the_seeds_are_derived_from_them():
    drawn: list[Secret] = []
    federation = Federation(make_plan(4))
    session = federation.sites[VICTIM]
    inner = federation.entropies[VICTIM]
    session._entropy = lambda size: drawn.append(inner(size)) or drawn[-1]
    federation.hold("share-relay", to=VICTIM)

    own = held_by(session)

    sizes = [len(secret) for secret in drawn]
    assert sizes == [32, 32, 32, 64, 64]
    assert [secret.wiped for secret in drawn] == [True, True, False, True, True]
    assert drawn[2] in own  # the channel key is used as it was drawn


@pytest.mark.parametrize("phase", [*PHASES, "inputs"])
def test_no_secret_shows_in_a_repr(phase):
    _, session = at_phase(phase)
    shown = repr(session) + repr(session._phase) + repr(session.upload)

    for secret in held_by(session):
        content = bytes(secret)
        assert content.hex() not in shown
        assert repr(content)[2:-1] not in shown


def test_no_secret_and_no_update_shows_in_effects_messages_or_logs(caplog):
    caplog.set_level(0)
    federation = Federation(make_plan(4))
    federation.run()

    for effect in [one for _, one in federation.site_effects] + federation.coordinator_effects:
        assert len(repr(effect)) < 600
    assert "Contribution(<2 tensors>)" in repr(federation.contributions[VICTIM])
    assert caplog.records == []


def test_nothing_that_travels_before_the_unmask_shares_holds_a_secret_in_the_clear():
    federation = Federation(make_plan(4))
    known: list[bytes] = []
    for phase_message in ("key-roster", "share-relay", "survivor-proposal"):
        message = federation.hold(phase_message, to=VICTIM)
        known += [bytes(secret) for secret in held_by(federation.sites[VICTIM])]
        federation.deliver("", VICTIM, message)
    federation.hold("unmask-shares", origin=VICTIM)

    before = [one for one in federation.sent if one[0] == "" or one[0] == VICTIM][:-1]
    travelled = b"".join(
        message.header + b"".join(message.chunks)
        if isinstance(message, secagg.UploadInput)
        else message
        for _, _, message in before
    )
    assert len(known) == 4 + 4 + 8
    assert not [secret for secret in known if secret in travelled]


def test_who_rebuilds_the_mask_seed_of_a_dropout_still_opens_none_of_its_boxes():
    """The channel key is no function of the mask seed."""
    federation = Federation(make_plan(4))
    relay = federation.hold("share-relay", to=VICTIM)
    phase = federation.sites[VICTIM]._phase
    members = phase.members
    opening = keys.channel_key(
        members.t1,
        phase.secrets.mask_private,
        members.channel_key(VICTIM),
        members.channel_key(PEER),
        sending=False,
    )
    box = next(
        SealedDeal.from_bytes(message).shares[0].box
        for origin, to, message in federation.sent
        if origin == PEER and len(message) > 600
    )

    with pytest.raises(PeerError, match="does not open"):
        keys.open_box(opening, members.t1, PEER, VICTIM, box)
    assert federation.sites[VICTIM].handle(relay) == [secagg.NeedUpdate()]


def test_a_repeated_generator_state_gives_other_secrets_in_another_round():
    """As after a virtual machine was restored from a snapshot."""
    first, second = (Federation(make_plan(4, attempt=attempt), seed=9) for attempt in (0, 1))
    seeds = []
    for federation in (first, second):
        federation.hold("key-roster", to=VICTIM)
        secrets = federation.sites[VICTIM]._phase.secrets
        seeds.append((bytes(secrets.mask_seed), bytes(secrets.self_seed)))

    assert not set(seeds[0]) & set(seeds[1])
