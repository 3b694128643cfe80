"""The server's step as a plan states it: which optimizer, its settings, and what it remembers."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.secagg import consortium
from veilsum import secagg
from veilsum.control import OptimizerSpec, RunSpec
from veilsum.errors import DecodeError
from veilsum.model import ModelLayout
from veilsum.optimizers import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    read_step_rule,
    step_rule_bytes,
)
from veilsum.optimizers.applying import (
    FRESH,
    apply_mean,
    saved_state,
    start_optimizer,
    state_hash,
)

EVERY = [
    FedAvg(0.5),
    FedAvgM(0.5, 0.75),
    FedAdagrad(0.01, 1e-5),
    FedAdam(0.1, 0.8, 0.95, 1e-4),
    FedYogi(0.1, 0.8, 0.95, 1e-4),
]
LAYOUT = ModelLayout.from_arrays({"w": np.zeros(5, np.float32), "n": np.zeros(2, np.int64)})


def _model(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"w": rng.normal(size=5).astype(np.float32), "n": rng.integers(0, 9, 2)}


def _lp(text: str) -> bytes:
    return struct.pack("<I", len(text)) + text.encode()


@pytest.mark.parametrize("settings", EVERY, ids=lambda settings: settings.name)
def test_a_step_rule_gives_back_the_same_settings(settings: Any) -> None:
    assert read_step_rule(step_rule_bytes(settings)) == settings


def test_the_bytes_of_a_step_rule() -> None:
    expected = b"VSS1" + _lp("fedavgm") + struct.pack("<H", 2)
    expected += _lp("learning_rate") + struct.pack("<d", 0.5)
    expected += _lp("momentum") + struct.pack("<d", 0.75)

    assert step_rule_bytes(FedAvgM(0.5, 0.75)) == expected


RULE = step_rule_bytes(FedAvgM(0.5, 0.75))
SWAPPED = (
    b"VSS1" + _lp("fedavgm") + struct.pack("<H", 2)
    + _lp("momentum") + struct.pack("<d", 0.75)
    + _lp("learning_rate") + struct.pack("<d", 0.5)
)  # fmt: skip


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not one of this version"),
        (b"VSS0" + RULE[4:], "not one of this version"),
        (RULE + b"\0", "not in canonical form"),
        (SWAPPED, "not in canonical form"),
        (b"VSS1" + _lp("fedavgm") + struct.pack("<H", 0), "not in canonical form"),  # defaults
        (b"VSS1" + _lp("fedsgd") + struct.pack("<H", 0), "unknown optimizer"),
        (b"VSS1" + struct.pack("<I", 2**31), "has 2147483648 bytes"),
        (b"VSS1" + _lp("fedavg") + struct.pack("<H", 17), "17 parameters"),
        (b"VSS1" + _lp("fedavg") + struct.pack("<H", 1) + _lp("name") + bytes(8), "'name'"),
        (RULE.replace(struct.pack("<d", 0.75), struct.pack("<d", np.nan)), "momentum"),
        (RULE.replace(struct.pack("<d", 0.5), struct.pack("<d", -1.0)), "learning_rate"),
    ],
)
def test_other_bytes_are_no_step_rule(data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        read_step_rule(data)


@given(st.integers(0, len(RULE) - 1), st.integers(1, 255), st.integers(0, len(RULE)))
def test_changed_or_cut_bytes_are_refused_or_are_another_rule(
    position: int, value: int, end: int
) -> None:
    changed = bytearray(RULE)
    changed[position] ^= value

    for data in (bytes(changed), RULE[:end]):
        try:
            settings = read_step_rule(data)
        except DecodeError:
            continue
        assert (settings == FedAvgM(0.5, 0.75)) == (data == RULE)


@pytest.mark.parametrize("settings", EVERY, ids=lambda settings: settings.name)
def test_the_hash_of_the_state_tells_two_states_apart_and_only_those(settings: Any) -> None:
    optimizer, again = settings.start(LAYOUT), settings.start(LAYOUT)
    seen = [state_hash(optimizer)]
    for number in range(3):
        for each in (optimizer, again):
            apply_mean(each, _model(0), _model(number))
        assert state_hash(optimizer) == state_hash(again)
        seen.append(state_hash(optimizer))

    assert seen[0] == FRESH
    state = saved_state(optimizer)
    if state is None:  # of a kind that remembers nothing
        assert seen == [FRESH] * 4
        return
    assert len(set(seen)) == 4
    assert seen[-1] == hashlib.sha256(state.to_bytes()).digest()
    assert state_hash(start_optimizer(settings, LAYOUT, state, 1)) == seen[-1]


def test_a_state_without_a_step_that_is_not_the_first_one_has_a_hash() -> None:
    optimizer = FedAvgM().start(LAYOUT)
    loaded = optimizer.state_dict()
    optimizer.load_state_dict(loaded)
    assert state_hash(optimizer) == FRESH

    loaded["first"]["w"] += 1
    optimizer.load_state_dict(loaded)

    assert optimizer.steps == 0
    assert state_hash(optimizer) != FRESH


def test_a_plan_states_the_step_rule_of_its_run() -> None:
    spec = RunSpec(
        "diagnosis",
        server_learning_rate=0.25,
        server_optimizer=OptimizerSpec("fedyogi", beta1=0.5),
        colluders=1,
    )
    plan = secagg.Plan.for_round(
        roster=consortium().roster,
        cohort=consortium().roster.sites[:4],
        spec=spec,
        run_id="run",
        round_number=1,
        attempt=0,
        layout=LAYOUT,
        model_hash=bytes(32),
        previous_result=bytes(32),
        nonce=bytes(32),
        state_hash=b"\1" * 32,
    )

    again = secagg.Plan.from_bytes(plan.to_bytes(), roster=plan.roster)

    assert read_step_rule(again.step_rule) == FedYogi(0.25, beta1=0.5)
    assert again.state_hash == b"\1" * 32
