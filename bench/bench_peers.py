"""The cases of `veilsum bench` as a suite, for --benchmark-save and --benchmark-compare.

    pytest bench/bench_peers.py --benchmark-save=before
    pytest bench/bench_peers.py --benchmark-compare --benchmark-compare-fail=median:20%

One thread, processor time. VEILSUM_BENCH_SCALE is the share of each model's parameters (1/16),
VEILSUM_BENCH_PEERS which peers stand beside ours, by commas (none). Everybody is checked first.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from harness import Report

from veilsum.bench import codec, masked, mean, rule
from veilsum.bench.contenders import Case, Contender, Work
from veilsum.bench.installed import HOSTS
from veilsum.bench.options import BenchOptions
from veilsum.bench.sides import require_correct

SCALE = float(os.environ.get("VEILSUM_BENCH_SCALE", "0.0625"))
NAMES = tuple(filter(None, os.environ.get("VEILSUM_BENCH_PEERS", "").split(",")))
OPTIONS = BenchOptions(scale=SCALE, peers=NAMES)
SECTIONS: tuple[Callable[[BenchOptions], list[Case]], ...] = (mean.cases, codec.cases, rule.cases)
CASES = [case for section in SECTIONS for case in section(OPTIONS)]


def title(case: Case) -> str:
    return f"{case.section}, {case.name}"


def _there(contender: Contender) -> bool:
    return contender.host not in HOSTS or HOSTS[contender.host].version is not None


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEILSUM_THREADS", "1")


def _call(work: Work) -> Callable[[], Any]:
    """With new arguments in every call; making them is small beside the work."""
    return lambda: work.call(*work.fresh())


@pytest.mark.parametrize("case", CASES, ids=title)
def test_of_peers(report: Report, case: Case) -> None:
    [contender] = case.ours
    if not _there(contender):
        pytest.skip(f"{contender.host} is not installed")
    payload = case.payload()
    payload.ready(contender.form)
    ours = contender.prepare(payload, 1)
    require_correct(case, contender, ours.check(ours.call(*ours.fresh())))
    peers = {}
    for peer in case.peers:
        if peer.host in NAMES and _there(peer):
            payload.ready(peer.form)
            work = peer.prepare(payload, 1)
            assert work.check(work.call(*work.fresh())).correct, peer.name
            peers[peer.name] = _call(work)
    [part] = case.parts.values()

    report(_call(ours), size=part.size, coordinates=part.coordinates, peers=peers)


class Spent:
    """A clock that moves by what parts of rounds took, and stands still otherwise."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("part", [masked.SITE, masked.SERVER], ids=["site", "server"])
def test_of_a_masked_round(request: pytest.FixtureRequest, part: str) -> None:
    [case] = masked.cases(OPTIONS)
    payload = case.payload()
    payload.ready("arrays")
    work = case.ours[0].prepare(payload, 1)
    require_correct(case, case.ours[0], work.check(work.call(*work.fresh())))
    clock = Spent()
    request.node.add_marker(pytest.mark.benchmark(timer=clock))

    def one_round() -> None:
        assert work.parts is not None
        clock.now += work.parts(work.call(*work.fresh()))[part]

    request.getfixturevalue("benchmark").pedantic(one_round, rounds=5, warmup_rounds=1)
