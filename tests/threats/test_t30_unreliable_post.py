"""T30: messages are lost, repeated, delayed and reordered on their way.

The defences: each message belongs to one phase of one attempt, a repeat changes nothing, and the
same answer is given again. So a round ends with the right sum, or with none. What a network does
to connections is the transport's (TLS, test_loopback.py); test_state_machine.py plays crashes too.
"""

from __future__ import annotations

import random

import pytest

from support.secagg import NAMES, UPLOAD, Federation, make_plan
from veilsum import secagg
from veilsum.errors import DecodeError, PeerError
from veilsum.secagg.collecting import checked_header
from veilsum.secagg.messages import InputHeader
from veilsum.secagg.phases import CollectingInputs

SITES = NAMES[:5]
PLAN = make_plan(5, colluders=0, metrics=())


class UnreliablePost(Federation):
    """Delivers in any order, some messages again and again, and some never.

    Args:
        seed: of what happens.
        repeats: how likely a message stays under way after it was delivered.
        losses: how likely it is thrown away instead.
    """

    def __init__(self, seed: int, *, repeats: float, losses: float = 0.0) -> None:
        super().__init__(PLAN)
        self._random = random.Random(seed)
        self._repeats, self._losses = repeats, losses

    def run(self) -> None:
        while self.queue:
            at = self._random.randrange(len(self.queue))
            item = self.queue[at]
            if self._random.random() >= self._repeats:
                del self.queue[at]
            if self._random.random() >= self._losses:
                self._deliver_or_refuse(item)
            if not self.queue:
                # Nobody has anything to say any more: the phase's deadline passes.
                self.from_coordinator(self.coordinator.close_phase())

    def _deliver_or_refuse(self, item: tuple) -> None:
        try:
            self.deliver(*item)
        except (DecodeError, PeerError):
            assert isinstance(item[2], secagg.UploadInput)  # late, or a second time

    def outcome(self) -> secagg.SecureResult | None:
        self.run()
        last = self.coordinator_effects[-1]
        return last.result if isinstance(last, secagg.Completed) else None


EXPECTED: dict[tuple[str, ...], str] = {}


def plain_digest(sites: tuple[str, ...], round_: Federation) -> str:
    if sites not in EXPECTED:
        EXPECTED[sites] = secagg.plain_ring_sum(PLAN, round_.contributions, sites).digest
    return EXPECTED[sites]


def takes_it_again(
    plan: secagg.Plan, phase: CollectingInputs, site: str, header: bytes, update_id: int
) -> InputHeader:
    """The variant: who has sent an update may send one."""
    first = phase.received.pop(site, None)
    try:
        return checked_header(plan, phase, site, header, update_id)
    finally:
        if first is not None:
            phase.received[site] = first


def delivered_twice() -> Federation:
    round_ = Federation(PLAN)
    upload = round_.hold(UPLOAD, origin=SITES[0])
    round_.deliver(SITES[0], "", upload)
    round_.deliver(SITES[0], "", upload)
    return round_


def test_a_repeated_upload_that_is_folded_again_spoils_the_sum(monkeypatch):
    monkeypatch.setattr("veilsum.secagg.collecting.checked_header", takes_it_again)
    round_ = delivered_twice()
    round_.run()

    last = round_.coordinator_effects[-1]
    assert isinstance(last, secagg.Aborted)
    assert "updates instead of 5" in last.reason  # its masks are on the sum twice, too


def test_a_repeated_upload_is_not_folded_again():
    with pytest.raises(PeerError, match="sent a second update in this round"):
        delivered_twice()


def check(round_: Federation, result: secagg.SecureResult | None) -> None:
    if result is not None:
        assert len(result.sites) >= PLAN.fewest_survivors
        assert result.digest == plain_digest(result.sites, round_)


@pytest.mark.parametrize("seed", range(12))
def test_reordered_and_repeated_messages_change_nothing(seed):
    round_ = UnreliablePost(seed, repeats=0.4)

    result = round_.outcome()

    assert result is not None
    assert result.sites == SITES
    check(round_, result)


def test_lost_messages_cost_a_round_or_some_sites_and_never_give_a_wrong_sum():
    sizes = set()
    for seed in range(16):
        round_ = UnreliablePost(seed, repeats=0.1, losses=0.06)
        result = round_.outcome()
        check(round_, result)
        sizes.add(len(result.sites) if result else 0)

    assert {0, 3, 5} <= sizes  # all of this was among what was tried
