"""What is written down of events: all that the state follows from, and nothing that is secret."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.federation import Fault, Federation, small_model
from veilsum import secagg
from veilsum.control import Decline, Progress, ProtocolMessage, RoundId, RunSpec
from veilsum.coordinator.events import (
    DeadlinePassed,
    Event,
    Proceed,
    RunAbortRequested,
    SiteJoined,
    SiteLeft,
    SiteSent,
)
from veilsum.errors import ConfigError, DecodeError
from veilsum.transport.event_log import (
    Draws,
    Entry,
    draws_from_bytes,
    draws_to_bytes,
    entry_of,
    event_of,
)

SITES = ("basel", "kyoto", "lyon", "quito")
ROUND = RoundId("run", 3, 1)
SPEC = RunSpec("task", rounds=2, min_sites=3, clip=0.5)


@pytest.mark.parametrize(
    "event",
    [
        SiteJoined("basel", b"process"),
        SiteLeft("basel", "the stream ended"),
        SiteSent("basel", ProtocolMessage(ROUND, b"payload")),
        SiteSent("basel", Decline(ROUND, "policy", "not this task")),
        DeadlinePassed(ROUND, "inputs"),
        Proceed("run"),
    ],
)
def test_an_event_comes_back_as_it_was(event: Event) -> None:
    entry = entry_of(event, 1.5, (b"drawn", b""))

    assert event_of(entry) == event
    assert (entry.time, entry.draws) == (1.5, (b"drawn", b""))


def test_what_is_not_written_down_is_refused() -> None:
    with pytest.raises(ConfigError, match="RunAbortRequested is not an event"):
        entry_of(RunAbortRequested("run", ""), 0.0, ())
    with pytest.raises(DecodeError, match="unknown kind 'gossip'"):
        event_of(Entry("gossip", 0.0, ROUND))


@given(st.lists(st.binary(max_size=40)).map(tuple))
def test_random_bytes_come_back_as_they_were(draws: tuple[bytes, ...]) -> None:
    data = draws_to_bytes(draws)

    assert draws_from_bytes(data) == draws
    if draws and draws[-1]:
        with pytest.raises(DecodeError, match="cut off"):
            draws_from_bytes(data[:-1])


def test_draws_are_noted_and_given_again() -> None:
    fresh = iter((b"ab", b"cde", b"f"))
    draws = Draws(lambda size: next(fresh))
    assert (draws(2), draws(3)) == (b"ab", b"cde")
    noted = draws.taken()
    assert noted == (b"ab", b"cde")
    assert draws.taken() == ()

    draws.again(noted)

    assert (draws(2), draws(3)) == (b"ab", b"cde")
    with pytest.raises(DecodeError, match="does not hold the random bytes"):
        draws(1)
    draws.again(noted)
    with pytest.raises(DecodeError, match="does not hold the random bytes"):
        draws(3)
    draws.again(None)
    assert draws(1) == b"f"


# --- what the core says of events -------------------------------------------------------


@dataclass
class Kept:
    """Events of a whole run as they would be written down, and the shares that came."""

    written: list[Event] = field(default_factory=list)
    shares: list[tuple[str, bytes]] = field(default_factory=list)


class Watched(Federation):
    """Notes what the core says of each event."""

    def __init__(self, sites: tuple[str, ...], **how: object) -> None:
        self.kept = Kept()
        super().__init__(sites, **how)

    def tell(self, event: Event) -> list:
        if isinstance(event, SiteSent) and isinstance(event.message, ProtocolMessage):
            payload = event.message.payload
            if secagg.holds_secrets(payload):
                self.kept.shares.append((event.site, payload))
        written = self.coordinator.written(event)
        if written is not None:
            self.kept.written.append(written)
        return super().tell(event)


def messages(kept: Kept) -> Iterator[bytes]:
    for event in kept.written:
        if isinstance(event, SiteSent) and isinstance(event.message, ProtocolMessage):
            yield event.message.payload


def test_no_unmask_share_of_a_run_is_written_down() -> None:
    federation = Watched(SITES, faults={"quito": Fault(1, "unmask")})
    federation.submit("run", SPEC, small_model())
    assert federation.run("run").state == "completed"

    assert len(federation.kept.shares) >= 2 * 3
    assert not any(map(secagg.holds_secrets, messages(federation.kept)))
    assert len(list(messages(federation.kept))) >= 2 * 3 * len(SITES) - 2


@pytest.mark.parametrize("phase", ["keys", "shares", "inputs", "votes"])
def test_shares_that_come_out_of_turn_cost_their_site_the_round_and_are_not_written_down(
    phase: str,
) -> None:
    other = Watched(SITES)
    other.submit("run", SPEC, small_model())
    other.run("run")
    shares = dict(other.kept.shares)["basel"]
    federation = Watched(SITES)
    federation.submit("run", SPEC, small_model())
    while federation.coordinator.status("run").phase != phase:
        assert federation.step()

    sent = SiteSent("basel", ProtocolMessage(RoundId("run", 1), shares))
    federation.tell(sent)

    (written,) = (
        event
        for event in federation.kept.written
        if isinstance(event, SiteSent) and isinstance(event.message, Decline)
    )
    assert written == SiteSent(
        "basel",
        Decline(RoundId("run", 1), "protocol", "it sent unmask shares out of turn"),
    )
    assert not any(map(secagg.holds_secrets, messages(federation.kept)))
    record = federation.run("run").rounds[0]
    # Once its update is in the sum it stays there.
    assert ("basel" in record.dropped) == (phase != "votes")


def test_an_entry_with_shares_cannot_be_made() -> None:
    federation = Watched(SITES)
    federation.submit("run", SPEC, small_model())
    federation.run("run")
    site, shares = federation.kept.shares[0]
    with pytest.raises(ConfigError, match="unmask shares must not be written down"):
        entry_of(SiteSent(site, ProtocolMessage(ROUND, shares)), 0.0, ())


def test_what_changes_nothing_is_not_written_down() -> None:
    federation = Watched(SITES)
    core = federation.coordinator
    assert core.written(SiteJoined("basel")) is None  # nobody needs it
    federation.submit("run", SPEC, small_model())
    while core.status("run").phase != "shares":
        assert federation.step()
    where = RoundId("run", 1)
    advert = next(messages(federation.kept))
    (sender,) = (
        event.site
        for event in federation.kept.written
        if isinstance(event, SiteSent) and event.message == ProtocolMessage(where, advert)
    )

    for event in (
        SiteSent(sender, ProtocolMessage(where, advert)),  # a repeat
        SiteSent("basel", Progress(where, 0.5)),
        SiteSent("basel", ProtocolMessage(RoundId("run", 2), b"other round")),
        SiteSent("oslo", ProtocolMessage(where, b"a stranger's")),
        DeadlinePassed(where, "keys"),  # that phase is over
    ):
        assert core.written(event) is None, event
    assert core.written(SiteLeft("basel", "gone")) is not None
    assert core.written(DeadlinePassed(where, "shares")) is not None
