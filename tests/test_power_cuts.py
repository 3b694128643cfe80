"""Runs whose coordinator loses its power at any event, and with it what was not synced yet."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from support.federation import signing_key, small_model
from support.power_cuts import Interrupted
from veilsum.control import Deadlines, ProtocolMessage, RunSpec
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import UnmaskShares, kind_of_message
from veilsum.secagg.payload import read_payload
from veilsum.site import effects as site_to_do

SITES = ("basel", "kyoto", "lyon", "oslo", "quito")  # with one helper, q = 4
MASKED = RunSpec(
    "task", rounds=2, colluders=1, clip=0.5, weight_cap=64, deadlines=Deadlines(acks_s=50.0)
)
PLAIN = RunSpec(
    "task", rounds=5, masked=False, min_sites=2, deadlines=Deadlines(join_s=20, inputs_s=60)
)
LATE = replace(PLAIN, quorum=3, late="next")
BUFFERED = replace(PLAIN, rounds=8, buffer_size=3, max_staleness=2)


def play(run: Interrupted, rate: float = 0.0, restless: float = 0.0) -> Interrupted:
    """Goes on until the run has ended. `restless`: how likely a site begins anew at a step."""
    run.rate = rate
    for _ in range(20_000):
        if run.ended:
            return run
        if run.random.random() < restless:
            run.connect(run.random.choice(SITES))
        elif not run.step():
            break
    raise AssertionError("the run does not end")


def begun(seed: int, spec: RunSpec, **federation: Any) -> Interrupted:
    run = Interrupted(SITES, Random(seed), **federation)
    run.submit("run", spec, small_model())
    return run


def paces(seed: int) -> dict[str, float]:
    return {site: 1.0 + 7 * ((7 * seed + 5 * n) % 11) for n, site in enumerate(SITES)}


@pytest.mark.parametrize("seed", range(6))
def test_a_masked_run_comes_to_the_same_whatever_is_lost(seed: int) -> None:
    undisturbed = play(begun(seed, MASKED))

    cut = play(begun(seed, MASKED), rate=(0.01, 0.04, 0.1)[seed % 3])

    assert cut.cuts > 0
    assert cut.contradictions == []
    assert [record.digest for record in cut.records] == [r.digest for r in undisturbed.records]
    assert [record.sites for record in cut.records] == [SITES, SITES]


@pytest.mark.parametrize("spec", [LATE, BUFFERED, MASKED], ids=["late", "buffered", "masked"])
def test_every_acknowledged_update_counts_once(spec: RunSpec) -> None:
    cuts = 0
    for seed in range(12):
        pace = {} if spec.masked else {"pace_of": paces(seed)}
        run = play(begun(seed, spec, **pace), rate=0.05, restless=(0.0, 0.02)[seed % 2])
        cuts += run.cuts

        assert run.contradictions == []
        for round_id, site in run.acknowledged:
            assert counted(run, round_id, site) == 1, (seed, round_id, site)
    assert cuts > 12


def counted(run: Interrupted, round_id: Any, site: str) -> int:
    """How often a site's update of a round is in a mean; once if the round came to none."""
    times = 0
    for record in run.records:
        if record.round == round_id and not record.completed:
            return 1
        if record.updates:
            mine = (site, round_id.number - 1)
            times += sum((one.site, one.version) == mine for one in record.updates)
        elif record.round == round_id:
            times += site in record.sites and site not in record.late
        elif record.round.number == round_id.number + 1:
            times += site in record.late
    return times


class OneLies(Interrupted):
    """Kyoto returns a share that is not the one it was dealt."""

    def _carry_out_for(self, site: str, effect: site_to_do.SiteEffect) -> None:
        match effect:
            case site_to_do.SendToCoordinator(ProtocolMessage(round_id, payload)):
                if site == "kyoto" and kind_of_message(payload) == UnmaskShares.kind:
                    effect = site_to_do.SendToCoordinator(ProtocolMessage(round_id, lie(payload)))
        super()._carry_out_for(site, effect)


def lie(payload: bytes) -> bytes:
    answer = read_payload(UnmaskShares, Envelope.from_bytes(payload).payload, context=None)
    (dealer, share), *others = answer.self_shares
    answer = replace(answer, self_shares=((dealer, bytes([share[0] ^ 1]) + share[1:]), *others))
    return Envelope.sign(answer.kind, answer.to_payload(), signing_key("kyoto")).to_bytes()


def test_whom_its_shares_convicted_is_not_invited_after_a_restart() -> None:
    run = OneLies(SITES, Random(1))
    run.submit("run", MASKED, small_model())
    while run.coordinator.status("run").phase != "acks":
        assert run.step()

    run.cut()
    play(run)

    assert [record.sites for record in run.records] == [
        SITES,
        ("basel", "lyon", "oslo", "quito"),
    ]
