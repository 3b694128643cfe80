"""What a site refuses when the SuperLink, or the server behind it, does not keep to the rules."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="flwr is not installed (extra `flower`)")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp.exception import AggregationError

from support.consortium import make_consortium
from support.flower_grid import flower_task, record_of
from support.flower_masked import (
    SITES,
    SPEC,
    MaskedFederation,
    masked_federation,
    model,
    says,
    start,
    training_app,
)
from veilsum.errors import ConfigError
from veilsum.integrations.flower import secure_parts as parts
from veilsum.integrations.flower.secure_socket import RemoteKeeper, serving_in_thread
from veilsum.integrations.flower.secure_wire import (
    TO_COORDINATOR,
    TO_SITE,
    Frame,
    Hello,
    Part,
    Sealed,
    from_content,
    read_frame,
    seal,
    to_content,
)
from veilsum.secagg.envelope import Envelope
from veilsum.transport.logs import Log
from veilsum.transport.tls import load_signing_key

VICTIM = SITES[1]


@pytest.fixture
def federation(tmp_path: Path):
    with flower_task(), masked_federation(make_consortium(tmp_path / "c", SITES)) as found:
        yield found


def coordinator_key(federation: MaskedFederation) -> Ed25519PrivateKey:
    return load_signing_key(federation.consortium.hub.signing_key)


def sent(content: RecordDict, kind: str = MessageType.TRAIN) -> Message:
    return Message(content, dst_node_id=1, message_type=kind)


def frame_of(message: Message) -> Frame:
    sealed = from_content(message.content)
    return read_frame(Envelope.from_bytes(sealed.envelope).payload, sealed.blobs)


def refusal(federation: MaskedFederation, message: Message) -> str:
    reply = federation.call(VICTIM, message)
    assert reply.has_error()
    return reply.error.reason


def test_a_plain_training_message_is_refused_and_nothing_is_trained(federation):
    arrays = {"arrays": record_of(model()), "config": ConfigRecord({"seed": 3})}

    reason = refusal(federation, sent(RecordDict(arrays)))

    assert "carries no veilsum frame" in reason


def test_other_kinds_of_messages_are_refused(federation):
    reason = refusal(federation, sent(RecordDict(), "evaluate"))

    assert "answers no message of type 'evaluate'" in reason


def test_what_leaves_in_clear_the_app_names(federation):
    app = training_app(VICTIM, lambda: federation.keepers[VICTIM], let_through=("evaluate",))

    reply = app(sent(RecordDict(), "evaluate"), None)

    assert reply.content["m"]["auc"] == 1.0
    with pytest.raises(ConfigError, match="let_through may name"):
        training_app(VICTIM, lambda: None, let_through=("train",))


def test_a_stranger_who_poses_as_the_coordinator_is_refused(federation):
    frame = Frame(bytes(32), 0, (Part("hello", federation.consortium.roster.hash),))
    content = to_content(seal(TO_SITE, frame, Ed25519PrivateKey.generate()))

    assert "signed with another key" in refusal(federation, sent(content))


def test_a_coordinator_with_another_roster_is_refused(federation):
    frame = Frame(bytes(32), 0, (Part("hello", bytes(32)),))

    reason = refusal(
        federation, sent(to_content(seal(TO_SITE, frame, coordinator_key(federation))))
    )

    assert "another roster" in reason


def test_a_frame_of_the_site_does_not_pass_for_one_of_the_coordinator(federation):
    frame = Frame(bytes(32), 0, (Part("hello", federation.consortium.roster.hash),))
    reflected = seal(TO_COORDINATOR, frame, coordinator_key(federation))

    assert "signature" in refusal(federation, sent(to_content(reflected)))


def test_a_repeated_message_gets_the_identical_answer_and_masks_nothing_twice(federation):
    def repeated(site, number, message):
        if site == VICTIM and "upload" in says(message):
            again = federation.call(site, federation.taken[site][-1])
            assert from_content(again.content) == from_content(message.content)
            repeats.append(again)
        return message

    repeats: list[Message] = []
    federation.to_server = repeated

    start(federation.strategy(), federation.grid())

    assert len(repeats) == 1


def test_old_stages_and_those_of_another_session_are_refused(federation):
    start(federation.strategy(), federation.grid())
    old = federation.taken[VICTIM]

    reasons = {refusal(federation, message) for message in old[1:-1]}
    hello = federation.call(VICTIM, old[0])
    after = {refusal(federation, message) for message in old[1:]}

    assert all("a message was repeated, left out or changed" in reason for reason in reasons)
    assert not hello.has_error()
    assert all("is in no session of that name" in reason for reason in after)


@pytest.mark.parametrize("what", ["envelope", "blob", "swapped", "more"])
def test_a_message_that_was_changed_on_the_way_is_refused(federation, what):
    def changed(site, number, message):
        sealed = from_content(message.content)
        if site != VICTIM or len(sealed.blobs) < 2:
            return message
        blobs = list(map(bytes, sealed.blobs))
        envelope = sealed.envelope
        match what:
            case "envelope":
                envelope = envelope[:40] + bytes([envelope[40] ^ 1]) + envelope[41:]
            case "blob":
                blobs[0] = blobs[0][:-1] + bytes([blobs[0][-1] ^ 1])
            case "swapped":
                blobs.reverse()
            case "more":
                blobs.append(b"more")
        return sent(to_content(Sealed(envelope, blobs)))

    federation.to_site = changed
    strategy = federation.strategy()

    start(strategy, federation.grid())

    assert VICTIM not in strategy.rounds[0].sites
    assert any(reply.has_error() for reply in federation.answered[VICTIM])


def lying(federation: MaskedFederation, lie) -> None:
    """A server that signs what `lie` makes of the parts for the victim."""
    key = coordinator_key(federation)

    def changed(site, number, message):
        frame = frame_of(message)
        if site != VICTIM or frame.number == 0:
            return message
        told = tuple(made for part in frame.parts for made in lie(part))
        content = to_content(seal(TO_SITE, frame._replace(parts=told), key))
        message.content = content
        return message

    federation.to_site = changed


def test_a_model_that_is_not_the_one_of_the_signed_plan_is_not_trained_from(federation):
    def other(part):
        if part.kind != parts.MODEL:
            return [part]
        round_id, layout, arrays = parts.read_model_part(part)
        return [
            parts.model_part(round_id, layout, {n: a + a.dtype.type(1) for n, a in arrays.items()})
        ]

    lying(federation, other)
    strategy = federation.strategy()

    start(strategy, federation.grid())

    assert VICTIM not in strategy.rounds[0].sites
    assert not [r for r in federation.answered[VICTIM] if "upload" in says(r)]


def test_a_part_of_an_unknown_kind_ends_the_session(federation):
    lying(federation, lambda part: [part, Part("shares-of-others")])
    strategy = federation.strategy()

    start(strategy, federation.grid())

    assert VICTIM not in strategy.rounds[0].sites


@pytest.mark.parametrize("stage", ["share-deal", "upload", "survivor-vote"])
def test_a_keeper_that_starts_again_loses_its_round_and_is_back_in_the_next(federation, stage):
    restarted: list[int] = []

    def restart(site, number, message):
        if site == VICTIM and stage in says(message) and not restarted:
            restarted.append(number)
            federation.start(site)
        return message

    federation.to_server = restart
    strategy = federation.strategy()

    start(strategy, federation.grid(), rounds=2)

    counted = stage != "share-deal"
    assert (VICTIM in strategy.rounds[0].sites) == counted
    assert VICTIM in strategy.rounds[-1].sites
    reasons = [r.error.reason for r in federation.answered[VICTIM] if r.has_error()]
    assert any("the keeper has started again" in reason for reason in reasons)


def test_another_site_cannot_speak_for_a_member(federation):
    """A stranger answers the hello in the victim's name, with a key of its own."""

    def posing(site, number, message):
        if site != VICTIM or number != 0:
            return message
        frame = frame_of(federation.taken[site][-1])
        hello = Hello(SITES[0], federation.consortium.roster.hash, bytes(16), bytes(16), "1")
        answer = Frame(frame.session, 0, (Part("hello", hello.to_bytes()),))
        key = load_signing_key(federation.consortium.sites[VICTIM].signing_key)
        message.content = to_content(seal(TO_COORDINATOR, answer, key))
        return message

    federation.to_server = posing
    strategy = federation.strategy()

    start(strategy, federation.grid())

    assert SITES[0] in strategy.rounds[0].sites


def test_a_policy_of_the_site_is_held_against_the_plan(tmp_path):
    from veilsum.secagg import LocalPolicy

    consortium = make_consortium(tmp_path / "c", SITES)
    strict = LocalPolicy(max_weight_cap=SPEC.weight_cap - 1)
    with flower_task(), masked_federation(consortium, policy=strict) as federation:
        strategy = federation.strategy()

        with pytest.raises(AggregationError):
            start(strategy, federation.grid())


def test_a_training_function_that_fails_tells_the_server_nothing_of_it(federation, monkeypatch):
    def failing(*_):
        raise RuntimeError("record 4711 cannot be read")

    monkeypatch.setattr("support.flower_masked.weight_of", failing)

    with pytest.raises(AggregationError):
        start(federation.strategy(), federation.grid())

    said = [
        part.head
        for replies in federation.answered.values()
        for reply in replies
        if not reply.has_error()
        for part in frame_of(reply).parts
    ]
    assert not any(b"4711" in head for head in said)


def test_a_keeper_without_a_pinned_roster_or_a_ledger_does_not_start(tmp_path):
    consortium = make_consortium(tmp_path / "c", SITES)
    lone = MaskedFederation(consortium)

    with pytest.raises(ConfigError, match="a keeper needs a ledger"):
        lone.start(VICTIM, ledger=None)


def test_a_keeper_over_its_socket_says_why_it_refuses(federation, tmp_path):
    path = tmp_path / "s" / "keeper"
    keeper = RemoteKeeper(path)

    with pytest.raises(ConfigError, match="does not answer"):
        keeper.deliver(Sealed(b"", ()))
    with serving_in_thread(federation.keepers[VICTIM], path, Log("test")):
        mode = path.parent.stat().st_mode & 0o777
        with pytest.raises(ConfigError, match=r"payload|message|bytes"):
            keeper.deliver(Sealed(b"nonsense", ()))

    assert mode == 0o700
    assert not path.exists()
