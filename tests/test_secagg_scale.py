"""Rounds of many sites, and what they need of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from support.secagg import Federation, make_plan
from support.unmasking import words_of
from veilsum import _native, secagg
from veilsum._native import Secret
from veilsum.aggregate.secure_sum import SecureSum
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout
from veilsum.secagg import unmask
from veilsum.secagg.masks import MaskKeys
from veilsum.secagg.rehearsal import Stage
from veilsum.secagg.upload import encode_upload

SITES, COLLUDERS = 200, 66
STAGES: tuple[Stage, ...] = ("keys", "shares", "inputs", "votes", "unmask")


def update(number: int, coordinates: int) -> dict[str, Any]:
    fresh = np.random.default_rng(number)
    return {
        "w": fresh.uniform(-1, 1, coordinates).astype(np.float32),
        "count": fresh.integers(-1000, 1000, 5).astype(np.int64),
    }


def contribution(number: int, coordinates: int) -> secagg.Contribution:
    rounding = Secret.from_bytes(number.to_bytes(32, "little"))
    return secagg.Contribution(update(number, coordinates), 1 + number % 97, {}, rounding)


def centred(total: int, bits: int) -> int:
    half = 1 << (bits - 1)
    return (total + half) % (1 << bits) - half


@pytest.mark.slow
def test_a_round_of_200_sites_of_which_60_are_lost_at_every_stage_gives_their_integer_sum(
    monkeypatch,
):
    coordinates = 2_000
    names = [f"site-{number:03}" for number in range(SITES)]
    consortium = secagg.make_consortium(names)
    plan = make_plan(
        SITES,
        roster=consortium.roster,
        cohort=consortium.roster.sites,
        colluders=COLLUDERS,
        layout=ModelLayout.from_arrays(update(0, coordinates)),
    )
    given = {name: contribution(number, coordinates) for number, name in enumerate(names)}
    drop = {names[3 * number]: STAGES[number % 5] for number in range(60)}
    survivors = [name for name in names if drop.get(name, "votes") in ("votes", "unmask")]
    sums: list[dict[int, list[int]]] = []
    finish = SecureSum.finish

    def watched(total: SecureSum, contributors: int) -> Any:
        words = {
            stream.group: [
                int(word)
                for chunk in total.chunks()
                if chunk.stream == stream.group
                for word in _native.unpack_ring(
                    chunk.words, min(stream.elements, plan.chunk_coordinates), stream.bits
                )
            ]
            for stream in plan.ring.streams
        }
        sums.append(words)
        return finish(total, contributors)

    monkeypatch.setattr(SecureSum, "finish", watched)
    result = secagg.run_in_process(plan, given, drop=drop, consortium=consortium)

    assert result.sites == tuple(survivors)
    assert len(survivors) == SITES - 36
    (found,) = sums
    plain = {
        name: encode_upload(plan, given[name], MaskKeys(), update_id=0, threads=1).chunks
        for name in survivors
    }
    for stream in plan.ring.streams:
        columns = [words_of(plan, chunks, stream.group).tolist() for chunks in plain.values()]
        expected = [centred(sum(words), stream.bits) for words in zip(*columns, strict=True)]
        assert [centred(word, stream.bits) for word in found[stream.group]] == expected
    weights = {name: given[name].weight for name in survivors}
    counts = [
        sum(weights[name] * int(given[name].update["count"][at]) for name in survivors)
        for at in range(5)
    ]
    assert [centred(word, 64) for word in found[2]][:5] == counts
    assert result.total_weight == sum(weights.values())
    exact = np.average(
        [given[name].update["w"] for name in survivors], axis=0, weights=list(weights.values())
    )
    steps = plan.weight_cap / (plan.scale * result.total_weight)
    np.testing.assert_allclose(result.arrays["w"], exact, rtol=0, atol=len(survivors) * steps)


# --- too little memory to lock --------------------------------------------------------------

# The limit does not bind root, who gives up being root once everything is imported.
NO_MEMORY_LEFT = """
import os, resource
from support.secagg import consortium, make_contributions, make_plan
from veilsum import secagg
from veilsum._native import Secret
from veilsum.errors import ConfigError
plan = make_plan(3)
contributions = make_contributions(plan)
secagg.run_in_process(plan, contributions, consortium=consortium())
resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 * 1024, 64 * 1024))
if os.getuid() == 0:
    os.setuid(65534)
taken = []
try:
    for _ in range(4096):  # twice as many as fit
        taken.append(Secret.from_os(32))
except ConfigError:
    del taken[-10:]
try:
    secagg.run_in_process(plan, contributions, consortium=consortium())
except ConfigError as error:
    print(error)
    print(error.hint)
"""


@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""),
    reason="the address sanitizer turns mlock into a no-op",
)
def test_sites_that_cannot_lock_memory_for_a_round_say_so_and_what_helps():
    done = subprocess.run(
        [sys.executable, "-c", NO_MEMORY_LEFT],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )

    message, hint = done.stdout.splitlines()
    assert message.startswith("cannot lock 4096 bytes for a secret")
    assert message.endswith("the limit on locked memory is 64 KiB")
    assert "ulimit -l" in hint


class NoMemory:
    """Stands for Secret once the limit is reached."""

    @staticmethod
    def from_bytes(data: bytes) -> Secret:
        raise ConfigError("cannot lock 4096 bytes for a secret")


@pytest.mark.parametrize("answers", [0, 3])
def test_a_coordinator_that_cannot_lock_memory_aborts_the_round_and_blames_no_site(
    monkeypatch, answers
):
    federation = Federation(make_plan(4))
    cohort = federation.plan.cohort
    for site in cohort[:answers]:
        federation.deliver(site, "", federation.hold("unmask-shares", origin=site))
    shares = federation.hold("unmask-shares", origin=cohort[answers])
    held = list(federation.coordinator._phase.received.values())
    monkeypatch.setattr(unmask, "Secret", NoMemory)

    federation.deliver(cohort[answers], "", shares)

    last = federation.coordinator_effects[-1]
    assert last == secagg.Aborted("cannot lock 4096 bytes for a secret")
    assert federation.excluded == {}
    assert federation.coordinator.phase == "aborted"
    assert len(held) == answers
    assert all(
        share.wiped
        for one in held
        for share in (*one.self_shares.values(), *one.mask_shares.values())
    )
